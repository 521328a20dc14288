"""Makes README.md the description that a package registry such as PyPI shows.

Relative links and pictures work on GitHub, but not on a registry's page. They become absolute with the address that
the publisher sets in pyproject.toml, as `Repository` in `[project.urls]`. Without it they stay as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def with_absolute_links(text: str, repository: str, version: str) -> str:
    """Return Markdown with links to the files of a repository on GitHub, at the tag of a version."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[1] else "blob"
        return f"{link[0][: -len(link[3])]}{repository.rstrip('/')}/{kind}/v{version}/{link[3]}"

    # A link that begins with `#` leads to a section of the page itself.
    return re.sub(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\]\([^()]*\))*)\]\((?!https?:|mailto:|#)([^()\s]+)", absolute, text)


class RegistryReadme(MetadataHookInterface):
    """Sets the readme in the metadata of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme. The builder calls this."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        if repository:
            text = with_absolute_links(text, repository, metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
