"""Each message that this package can leave is explained in docs/troubleshooting.md, and no other is."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import opentelemetry_mongo_events
from tests.pages import rows

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(opentelemetry_mongo_events.__file__).parent
PAGE = "docs/troubleshooting.md"
WARNINGS, EXCEPTIONS = "## Warnings", "## Exceptions"


def calls() -> Iterator[tuple[str, ast.Call, bool]]:
    """Each call in the source, with its module and whether it makes what is raised."""
    for path in sorted(SOURCE.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        raised = {id(node.exc) for node in nodes if isinstance(node, ast.Raise)}
        for node in nodes:
            if isinstance(node, ast.Call):
                yield path.stem, node, id(node) in raised


def text_of(node: ast.expr) -> str | None:
    """A text as it is in the source, with an ellipsis for what is filled in; None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "…" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(\.\d+)?s", "…", node.value)
    return None


def warnings() -> list[str | None]:
    return [
        text_of(call.args[0]) for _, call, _ in calls() if isinstance(call.func, ast.Name) and call.func.id == "warn"
    ]


def exceptions() -> list[str]:
    """The texts of what is raised; that of one which is another's cause has none of its own."""
    texts = [text_of(call.args[0]) for _, call, is_raised in calls() if is_raised and call.args]
    return [text for text in texts if text is not None]


def is_of(message: str, text: str) -> bool:
    """Whether a message of the page, with an ellipsis for what it leaves out, is that text of the source."""
    pieces = [piece.strip() for piece in message.split("…")]
    ends = [0]
    for piece in pieces:
        start = text.find(piece, ends[-1])
        if start < 0:
            return False
        ends.append(start + len(piece))
    return (not pieces[0] or text.startswith(pieces[0])) and all(before <= after for before, after in pairwise(ends))


@pytest.mark.parametrize(("heading", "texts"), [(WARNINGS, warnings()), (EXCEPTIONS, exceptions())])
def test_each_message_has_its_cause_and_its_remedy(heading: str, texts: list[str | None]) -> None:
    told = rows(PAGE, heading)

    assert None not in texts, "a message must stand where it is told: a name for it can't be looked up"
    matches = {cells[0]: [text for text in texts if text and is_of(cells[0].strip("`"), text)] for cells in told}
    assert {message: len(found) for message, found in matches.items()} == dict.fromkeys(matches, 1)
    assert sorted(text for found in matches.values() for text in found) == sorted(text or "" for text in texts)
    assert all(len(cells) == 3 and all(cells) for cells in told)


def test_a_message_that_nobody_explains_is_found() -> None:
    assert is_of("invalid …: …; ignored", "invalid …: …; expected …; ignored")
    assert is_of("the client … rest", "the client isn't at rest, or")
    assert not is_of("client … rest", "the client isn't at rest")
    assert not is_of("rest … client", "client, rest")


def test_nothing_is_told_in_another_way() -> None:
    imports = {
        (path.stem, name)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    named = {call.func.id for _, call, _ in calls() if isinstance(call.func, ast.Name)}

    assert {module for module, name in imports if name in ("logging", "warnings")} == {"log", "selection_log"}
    assert named.isdisjoint({"print", "getLogger"})
    # That one hands on what the driver logs, on the driver's logger.
    driver = [ast.unparse(call.func) for module, call, _ in calls() if module == "selection_log"]
    logging = {"critical", "debug", "error", "exception", "getLogger", "info", "log", "suppress", "warning"}
    assert sorted(each for each in driver if each.rpartition(".")[2] in logging) == [
        "logging.getLogger",
        "type(logger).debug",
    ]
    logs = [call.func for module, call, _ in calls() if module == "log"]
    assert sorted(each.attr for each in logs if isinstance(each, ast.Attribute)) == ["getLogger", "suppress", "warning"]
