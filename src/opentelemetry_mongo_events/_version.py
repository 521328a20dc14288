"""The version of this package; the one in pyproject.toml is held to it by a test."""

__version__ = "0.1.0"
