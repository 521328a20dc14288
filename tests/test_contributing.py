"""CONTRIBUTING.md shows the house as it is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import opentelemetry_mongo_events
from opentelemetry_mongo_events._telemetry import semconv
from tests.pages import ROOT, column

SOURCE = Path(opentelemetry_mongo_events.__file__).parent
PAGE = "CONTRIBUTING.md"


def tree() -> dict[str, str]:
    """The folders and modules of the map, with what it says of each."""
    (block,) = re.findall(r"```text\n(src/opentelemetry_mongo_events/\n.*?)```", (ROOT / PAGE).read_text(), re.DOTALL)
    ideas = {}
    folder = ""
    for line in block.splitlines()[1:]:
        name, _, words = line.strip().partition("  ")
        folder = "" if line.startswith("  _") else folder
        ideas[folder + name.removesuffix("/")] = words.strip()
        folder = name if name.endswith("/") else folder
    return ideas


def idea(path: Path) -> str:
    """What a module's docstring begins with."""
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring is not None
    return docstring.splitlines()[0].rstrip(".")


def test_each_folder_and_module_is_in_the_map_with_its_idea() -> None:
    modules = {
        str(path.relative_to(SOURCE).with_suffix("")): idea(path)
        for path in SOURCE.rglob("*.py")
        if path.stem != "__init__"
    }
    folders = {path.parent.name: idea(path) for path in SOURCE.glob("*/__init__.py")}

    assert tree() == modules | folders


def test_each_target_of_the_makefile_is_explained_and_no_other() -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    told = column(PAGE, "## Setup", "Description")
    assert sorted(told) == sorted(f"make {target}" for target in targets.split())


def test_what_is_told_before_make_check_is_what_it_runs() -> None:
    (checked,) = re.findall(r"^check: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    told = [target.removeprefix("make ") for target in column(PAGE, "## Setup", "Description")]
    assert sorted(told[: told.index("check")]) == sorted([*checked.split(), "demo"])


def test_each_folder_of_the_tests_is_explained() -> None:
    folders = {f"tests/{path.parent.name}/" for path in (ROOT / "tests").glob("*/*.py")}

    assert set(column(PAGE, "## Tests", "Contents")) == {"tests/", *folders}


def test_each_name_is_listed() -> None:
    """One that isn't would escape all tests that go through them."""
    names = {name for name in vars(semconv) if name.isupper()} - {"TYPE_CHECKING"}

    assert names == {name for name in semconv.__all__ if name.isupper()}


@pytest.mark.parametrize("name", re.findall(r"`(test_each_\w+)`", (ROOT / PAGE).read_text()))
def test_a_test_that_is_named_is_there(name: str) -> None:
    assert any(f"def {name}(" in path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


def test_files_and_variables_that_are_named_are_there() -> None:
    text = (ROOT / PAGE).read_text()
    for path in re.findall(r"`((?:tests|docs|scripts|examples|benchmarks)/[\w/.-]+)`", text):
        assert (ROOT / path).exists() or path == "docs/_build/html", path
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{variable} ?= " in makefile for variable in ("SHAPES", "SECONDS", "SEED"))
