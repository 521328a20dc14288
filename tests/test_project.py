"""What surrounds the code: workflows, forms, hooks and pages for maintainers agree with the project."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from opentelemetry_mongo_events import __version__
from tests.pages import ROOT, column

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

yaml = pytest.importorskip("yaml")

GITHUB: Final = ROOT / ".github"
YAML_FILES: Final = [
    *sorted(GITHUB.rglob("*.yml")),
    ROOT / ".pre-commit-config.yaml",
    ROOT / ".readthedocs.yaml",
]
WORKFLOWS: Final = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(GITHUB.glob("workflows/*.yml"))}
FORMS: Final = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml"))
    if path.stem != "config"
}
PROJECT: Final = (ROOT / "pyproject.toml").read_text()
MAKEFILE: Final = (ROOT / "Makefile").read_text()
MARKDOWN: Final = [*sorted(ROOT.glob("*.md")), GITHUB / "pull_request_template.md", ROOT / "docs/versioning.md"]
NOT_SET: Final = "not set yet"


def group(name: str) -> list[str]:
    """The requirements of a dependency group."""
    groups = PROJECT.partition("[dependency-groups]")[2]
    found = re.findall(rf"^{name} = (\[.*?\])(?: #.*)?$", groups, re.MULTILINE | re.DOTALL)
    return [each for each in ast.literal_eval(re.sub(r"\{.*\},|#.*", "", found[0])) if isinstance(each, str)]


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile, without the directory of the programs."""
    found = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return [line.strip().removeprefix("$(BIN)/") for line in found[0].splitlines()]


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The jobs of all workflows, with the workflow and the job's name."""
    for workflow, content in WORKFLOWS.items():
        for name, job in content["jobs"].items():
            yield workflow, name, job


def steps() -> Iterator[dict[str, Any]]:
    """The steps of all jobs."""
    for _, _, job in jobs():
        yield from job.get("steps", ())


def commands() -> Iterator[list[str]]:
    """The words of all commands that the workflows run."""
    for step in steps():
        for line in step.get("run", "").splitlines():
            for command in line.split("&&"):
                yield command.removeprefix("sudo ").strip().removeprefix("sudo ").split()


def pythons(workflow: str, job: str) -> list[str]:
    """The Pythons that a job sets up, the default one last."""
    (step,) = [
        each
        for each in WORKFLOWS[workflow]["jobs"][job]["steps"]
        if each.get("uses", "").startswith("actions/setup-python@")
    ]
    return str(step["with"]["python-version"]).split("\n")[:-1]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in YAML_FILES])
def test_a_yaml_file_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_workflows_call_what_exists() -> None:
    programs = set()
    for program, *arguments in commands():
        programs.add(program)
        if program == "make":
            for target in arguments:
                stamp = re.fullmatch(r"\.venv/(\w+)\.stamp", target)
                assert group(stamp[1]) if stamp else re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
        elif program.startswith((".ci/", "scripts/")):
            assert os.access(ROOT / program, os.X_OK), program

    assert programs == {"apt-get", ".ci/run", "make", ".venv/bin/nox", "scripts/check-tag"}


def test_a_workflow_that_is_called_exists() -> None:
    called = [job["uses"] for _, _, job in jobs() if "uses" in job]

    assert called == ["./.github/workflows/ci.yml"]
    assert all((ROOT / path).exists() for path in called)


def test_ci_sets_up_each_python_that_it_tests_with() -> None:
    script = (ROOT / ".ci/run").read_text()
    (tested,) = re.findall(r"^REQUIRE_PYTHONS=1 .*printf '%s\\n' ([\d. ]+) \|", script, re.MULTILINE)

    assert sorted(pythons("ci", "check")) == sorted(tested.split())


def test_the_grid_runs_each_python_of_the_noxfile() -> None:
    (found,) = re.findall(r"^PYTHONS: Final = (\(.*\))$", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    job = WORKFLOWS["grid"]["jobs"]["grid"]

    assert tuple(job["strategy"]["matrix"]["python"]) == ast.literal_eval(found)
    assert pythons("grid", "grid")[0] == "${{ matrix.python }}"


def test_caches_are_those_that_the_scripts_use() -> None:
    (cache,) = [each["with"] for each in steps() if each.get("uses", "").startswith("actions/cache@")]
    script = (ROOT / "scripts/build-servers").read_text()

    assert cache["path"].replace("~/.cache", "${XDG_CACHE_HOME:-$HOME/.cache}") in script
    assert "hashFiles('project/scripts/build-servers')" in cache["key"]


def test_jobs_have_few_permissions_and_a_timeout() -> None:
    assert all(each["permissions"] == {"contents": "read"} for each in WORKFLOWS.values())
    assert {(workflow, name): job["permissions"] for workflow, name, job in jobs() if "permissions" in job} == {
        ("release", "publish"): {"id-token": "write"}
    }
    assert all(job.get("timeout-minutes", "uses" in job) for _, _, job in jobs())


def test_only_what_was_checked_is_published() -> None:
    release = WORKFLOWS["release"]["jobs"]

    assert set(release["publish"]["needs"]) == release.keys() - {"publish"}
    assert [each.get("uses", "run") for each in release["publish"]["steps"]] == [
        "actions/download-artifact@v8",
        "pypa/gh-action-pypi-publish@release/v1",
    ]
    text = (ROOT / "RELEASING.md").read_text()
    assert f"the environment `{release['publish']['environment']}`" in text
    assert "`release.yml`" in text


@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_fields_with_names_of_their_own(name: str) -> None:
    fields = [each for each in FORMS[name]["body"] if each["type"] != "markdown"]

    assert {"name", "description", "labels", "body"} == FORMS[name].keys()
    assert len({each["id"] for each in fields}) == len(fields)
    assert all(each["attributes"]["label"] for each in fields)


def test_a_bug_report_needs_versions_and_a_reproduction() -> None:
    required = {each["id"] for each in FORMS["bug"]["body"] if each.get("validations", {}).get("required")}

    assert {"reproduction", "versions", "server"} <= required


def test_the_labels_of_the_forms_are_explained() -> None:
    text = (ROOT / "RELEASING.md").read_text()

    assert all(f"`{label}`" in text for form in FORMS.values() for label in form["labels"])


def test_the_hooks_run_what_make_lint_runs() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = local["hooks"]

    assert [each["entry"].removesuffix(" --force-exclude") for each in hooks] == [
        command.removesuffix(" --check") for command in recipe("lint")
    ]
    for hook in hooks:
        program = hook["entry"].split()[0]
        assert hook["additional_dependencies"] == [each for each in group("check") if each.split()[0] == program]


def test_read_the_docs_runs_what_make_docs_runs() -> None:
    config = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    jobs = config["build"]["jobs"]

    built = [command.replace("$READTHEDOCS_OUTPUT/html", "docs/_build/html") for command in jobs["build"]["html"]]
    assert built == recipe("docs")
    installed = re.findall(r"python -m pip (install -q .*?)[;\n]", MAKEFILE)
    assert [command.removeprefix("python -m pip ") for command in jobs["install"]] == [
        arguments.replace(" -q", "").replace("$*", "docs") for arguments in installed
    ]
    assert (ROOT / config["sphinx"]["configuration"]).exists()


def test_the_versions_that_are_supported_are_those_of_the_project() -> None:
    told = column("docs/versioning.md", "## Supported versions", "Supported")

    def asked(pattern: str) -> tuple[Any, ...]:
        found = re.search(pattern, PROJECT, re.MULTILINE)
        assert found is not None
        return found.groups()

    assert told == {
        "Python": "{} and newer".format(*asked(r"^requires-python = .>=([0-9.]+)")),
        "PyMongo": "{} and newer, below {}".format(*asked(r"^instruments = .*pymongo >= ([0-9.]+), < ([0-9]+)")),
        "OpenTelemetry API": "{} and newer, below {}".format(*asked(r"opentelemetry-api >= ([0-9.]+), < ([0-9]+)")),
        "Motor": "{} and newer".format(*asked(r"motor >= ([0-9.]+)")),
    }


def test_the_contact_is_set_in_one_place() -> None:
    assert [path.name for path in MARKDOWN if NOT_SET in path.read_text()] in (["SECURITY.md"], [])
    assert "(SECURITY.md#contact)" in (ROOT / "CODE_OF_CONDUCT.md").read_text()


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in MARKDOWN])
def test_links_lead_to_a_file_and_a_section(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if "://" in link:
            continue
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{link}#{anchor}"


def test_files_that_are_named_exist() -> None:
    allowed = {".github/CODEOWNERS"}  # which the owner adds
    for page in MARKDOWN:
        for name in re.findall(r"`((?:\.\w[\w-]*|src|scripts|docs|tests)/[\w./-]+)`", page.read_text()):
            assert name in allowed or name.startswith((".venv", "docs/_build")) or (ROOT / name).exists(), name


def test_nothing_names_a_place_of_one_machine() -> None:
    files = [*YAML_FILES, *MARKDOWN, *sorted((ROOT / "scripts").iterdir()), ROOT / "pyproject.toml", ROOT / "Makefile"]
    found = re.compile(r"/(?:work|root|Users|home/\w+|tmp)/\S*|\b(?:10|192\.168)\.\d+\.\d+\.\d+\b")

    assert {path.name: found.findall(path.read_text()) for path in files if found.search(path.read_text())} == {}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_sdist_has_all_that_is_in_the_checkout() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (included,) = re.findall(r"\[tool\.hatch\.build\.targets\.sdist\]\ninclude = (\[.*?\n\])", PROJECT, re.DOTALL)
    always = {"pyproject.toml", "README.md", "LICENSE", ".gitignore"}

    top = {path.partition("/")[0] for path in listed.splitlines()}
    assert top == {path.lstrip("/") for path in ast.literal_eval(included)} | always


@pytest.mark.parametrize(
    ("tag", "heading", "message"),
    [
        (f"v{__version__}", f"## {__version__} - 2027-01-31", ""),
        (f"v{__version__}", f"## {__version__} - unreleased", "has no heading"),
        (__version__, f"## {__version__} - 2027-01-31", "the tag is"),
        ("v99.0.0", f"## {__version__} - 2027-01-31", "the tag is"),
    ],
)
def test_a_tag_is_the_version_with_a_date_in_the_changelog(
    tag: str, heading: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/check-tag", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")

    checked = subprocess.run([tmp_path / "scripts/check-tag", tag], capture_output=True, text=True, check=False)

    assert checked.returncode == (1 if message else 0)
    assert message in checked.stderr
    assert bool(message) is bool(checked.stderr)
