"""The description that a package registry shows: README.md, with absolute links once there is a repository."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest

import opentelemetry_mongo_events
from tests.markdown import links, parsed
from tests.pages import ROOT

pytest.importorskip("hatchling")

REPOSITORY = "https://git.example/owner/name"


def described(**metadata: Any) -> str:
    """The text in the metadata."""
    spec = importlib.util.spec_from_file_location("registry_readme", ROOT / "scripts" / "registry_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    metadata["version"] = opentelemetry_mongo_events.__version__
    module.RegistryReadme(str(ROOT), {}).update(metadata)
    assert metadata["readme"]["content-type"] == "text/markdown"
    return str(metadata["readme"]["text"])


def test_without_a_repository_it_is_the_readme() -> None:
    assert described() == (ROOT / "README.md").read_text()


@pytest.mark.parametrize("repository", [REPOSITORY, f"{REPOSITORY}/"])
def test_with_a_repository_each_link_is_absolute(repository: str) -> None:
    tag = f"v{opentelemetry_mongo_events.__version__}"
    before = links(parsed((ROOT / "README.md").read_text()))
    after = links(parsed(described(urls={"Repository": repository})))

    relative = [(kind, link) for kind, link in before if not re.match(r"https?:|#", link)]
    assert len(relative) > 10
    assert after == [
        (kind, f"{REPOSITORY}/{'raw' if kind == 'image' else 'blob'}/{tag}/{link}")
        if (kind, link) in relative
        else (kind, link)
        for kind, link in before
    ]
    assert all(link.startswith(("https://", "#")) for _, link in after)
