import pytest

pytest.register_assert_rewrite(f"{__name__}.rounds", f"{__name__}.witness")
