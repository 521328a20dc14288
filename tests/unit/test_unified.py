"""Which tests of the drivers' specifications can be run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unified import Vector

ENTITIES = [{"client": {"id": "client0"}}]


def hindrance(*operations: dict[str, Any], entities: Any = ENTITIES, **test: Any) -> str | None:
    return Vector({"createEntities": entities}, {"operations": operations, **test}).hindrance


@pytest.mark.parametrize("name", ["createFindCursor", "iterateUntilDocumentOrError", "find", "insertOne", "close"])
def test_an_operation_that_is_known_is_run(name: str) -> None:
    assert hindrance({"name": name, "object": "collection0"}) is None


@pytest.mark.parametrize(
    ("name", "target"), [("createChangeStream", "collection0"), ("iterateOnce", "cursor0"), ("wait", "testRunner")]
)
def test_one_that_is_not_is_skipped_with_its_name(name: str, target: str) -> None:
    operation = {"name": name, "object": target}
    reason = f"needs an operation that isn't known here: {name} of {target}"

    assert hindrance(operation) == reason
    nested = {"name": "withTransaction", "object": "session0", "arguments": {"callback": [operation]}}
    assert hindrance(nested) == reason


def test_what_else_is_not_known_is_skipped_too() -> None:
    assert hindrance(entities=[{"thread": {"id": "t"}}]) == "needs an entity that isn't known here: thread"
    assert hindrance(expectTracingMessages=[{}, {}]) == "expects the spans of several clients"
    assert hindrance(skipReason="later") == "later"
