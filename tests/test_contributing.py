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


def layers() -> list[list[str]]:
    """The modules by their layers, from the top, as import-linter is told of them."""
    section = (ROOT / "pyproject.toml").read_text().partition("\nlayers = [\n")[2].partition("\n]")[0]
    return [layer.split(" | ") for layer in re.findall(r'"(.*)"', section)]


def idea(module: str) -> str:
    """What a module's docstring begins with."""
    docstring = ast.get_docstring(ast.parse((SOURCE / f"{module}.py").read_text()))
    assert docstring is not None
    return docstring.splitlines()[0].rstrip(".")


def test_each_module_is_in_the_map_with_its_idea() -> None:
    modules = [module for layer in layers() for module in layer]

    assert column(PAGE, "## The house", "its idea") == {module: idea(module) for module in modules}
    assert list(column(PAGE, "## The house", "its idea")) == modules
    assert sorted(modules) == sorted(path.stem for path in SOURCE.glob("*.py") if path.stem != "__init__")


def test_each_target_of_the_makefile_is_explained_and_no_other() -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    told = column(PAGE, "## Set-up", "what it runs")
    assert sorted(told) == sorted(f"make {target}" for target in targets.split())


def test_what_is_told_before_make_check_is_what_it_runs() -> None:
    (checked,) = re.findall(r"^check: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    told = [target.removeprefix("make ") for target in column(PAGE, "## Set-up", "what it runs")]
    assert sorted(told[: told.index("check")]) == sorted([*checked.split(), "demo"])


def test_each_folder_of_the_tests_is_explained() -> None:
    folders = {f"tests/{path.parent.name}/" for path in (ROOT / "tests").glob("*/*.py")}

    assert set(column(PAGE, "## Tests", "what is in it")) == {"tests/", *folders}


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
