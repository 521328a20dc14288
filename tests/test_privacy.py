"""Nothing of the application's data leaves the process unasked, whatever it looks like and wherever it stands."""

from __future__ import annotations

import json
import os
from random import Random
from typing import TYPE_CHECKING, Any

from bson import encode
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.errors import OperationFailure
from pymongo.monitoring import CommandFailedEvent, CommandSucceededEvent

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._query_text import text
from opentelemetry_mongo_events._query_text.text import query_text
from opentelemetry_mongo_events._servers.heartbeat_listener import HeartbeatEvents
from tests import events
from tests.metrics import Metrics
from tests.planted import SECRETS, commands, filled
from tests.spans import Spans, commands_of

if TYPE_CHECKING:
    import pytest

    from tests.logs import Logs

# `make fuzz` looks at other commands each time, and at more of them, each with more values.
SHAPES = int(os.environ.get("FUZZ_SHAPES", "0"))
FILLINGS = 50 if SHAPES else 5
chosen = settings(
    max_examples=SHAPES or 40,
    derandomize=not SHAPES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**32)


def text_of(command: dict[str, Any], *, is_raw: bool = False, limit: int = 4096) -> str:
    text = query_text(next(iter(command)), command, is_raw, limit)
    assert text is not None
    assert len(text) <= limit
    assert isinstance(json.loads(text), dict)
    return text


def revealed(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@chosen
@given(commands, seeds)
def test_masked_text_is_the_shape_of_a_command_and_nothing_else(template: dict[str, Any], seed: int) -> None:
    chance = Random(seed)
    texts = {text_of(filled(template, chance)) for _ in range(FILLINGS)}

    assert len(texts) == 1
    text._texts_of_shapes.clear()
    text._texts_of_keys.clear()
    assert texts == {text_of(filled(template, chance))}
    assert revealed(texts.pop()) == []


@chosen
@given(commands, seeds)
def test_text_is_json_however_long_it_may_be(template: dict[str, Any], seed: int) -> None:
    chance = Random(seed)
    one = filled(template, chance)
    whole = text_of(one)

    for _ in range(FILLINGS):
        command = filled(template, chance)
        limit = chance.randint(40, len(whole) + 40)
        text = text_of(command, limit=limit)
        assert revealed(text) == []
        # Where a text is cut tells nothing of the values either.
        assert text == text_of(one, limit=limit)
        assert limit < len(whole) or text == whole
        text_of(command, is_raw=True, limit=limit + 100)


class Pairs(list[tuple[str, Any]]):
    """A JSON document. Masked text may have the same key twice."""


def parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=Pairs)


def is_cut_of(part: Any, whole: Any) -> bool:
    """Whether a value says of itself what it lacks of the whole one."""
    if isinstance(whole, Pairs):
        if not isinstance(part, Pairs):
            return bool(part == "...")
        is_marked = part[-1:] == [("...", "...")]
        rest = part[:-1] if is_marked else part[:]
        shown = []
        for key, value in whole:
            if rest and rest[0][0] == key and is_cut_of(rest[0][1], value):
                shown.append(rest.pop(0))
            elif key != "?" or not any(other == "?" and is_cut_of(each, value) for other, each in shown):
                return is_marked and not rest
        return not rest
    if isinstance(whole, list) and isinstance(part, list):
        shown = [each for each in part if each != "..."]
        ending = part[-1:] if "..." in part[:-1] else []  # the last stage of a pipeline
        if len(shown) < len(part):
            beginning = shown[:-1] if ending else shown
            return is_beginning_of(beginning, whole) and (not ending or is_beginning_of(ending, whole[-1:]))
        # Elements that are equal as far as they are shown are one.
        return is_beginning_of(shown, whole) and all(any(is_cut_of(each, one) for each in shown) for one in whole)
    if isinstance(whole, str) and isinstance(part, str) and part.endswith("..."):
        return part == whole or whole.startswith(part[:-3])
    return bool(part == whole) or part == "..."


def is_beginning_of(elements: list[Any], whole: list[Any]) -> bool:
    """Whether elements are some of the others, in their order.

    Two may be the same one: equal elements are one only if they are cut in the same place.
    """
    position = 0
    for element in elements:
        while position < len(whole) and not is_cut_of(element, whole[position]):
            position += 1
    return position < len(whole) or not elements


@chosen
@given(commands, seeds)
def test_what_is_cut_says_so(template: dict[str, Any], seed: int) -> None:
    chance = Random(seed)
    command = filled(template, chance)
    for is_raw in (False, True):
        whole = text_of(command, is_raw=is_raw, limit=10_000_000)
        for _ in range(FILLINGS):
            limit = chance.randint(min(40, len(whole)), len(whole))
            part = text_of(command, is_raw=is_raw, limit=limit)
            assert is_cut_of(parsed(part), parsed(whole)), (part, whole)
            assert limit < len(whole) or part == whole
            if limit >= 1_000:
                assert [key for key, _ in parsed(part)] == [key for key, _ in parsed(whole)]


@chosen
@given(commands, seeds)
def test_a_command_is_not_changed(template: dict[str, Any], seed: int) -> None:
    command, same = filled(template, Random(seed)), filled(template, Random(seed))

    text_of(command)
    text_of(command, is_raw=True)

    assert repr(command) == repr(same)


MESSAGE = 'E11000 duplicate key error collection: shop.a index: b_1 dup key: { b: "zecret" }'
SERVER_ERROR = {
    "ok": 0,
    "code": 11000,
    "codeName": "DuplicateKey",
    "errmsg": MESSAGE,
    "keyPattern": {"b": 1},
    "keyValue": {"b": "zecret"},
    "errInfo": {"details": "zecret"},
}


@settings(chosen, max_examples=SHAPES // 10 or 20)
@given(template=commands, seed=seeds)
def test_no_span_event_metric_or_message_holds_data(
    template: dict[str, Any], seed: int, logs: Logs, caplog: pytest.LogCaptureFixture
) -> None:
    spans, metrics = Spans(), Metrics()
    listeners = event_listeners(
        tracer_provider=spans.provider, meter_provider=metrics.provider, logger_provider=logs.provider, events="both"
    )
    listener = commands_of(listeners)
    command = filled(template, Random(seed))
    name = next(iter(command))
    outcomes: list[CommandSucceededEvent | CommandFailedEvent] = [
        events.succeeded(name, {"ok": 1, "cursor": {"id": 5, "firstBatch": [command]}, "value": command}, request_id=1),
        events.succeeded(name, {"ok": 1, "writeErrors": [{"index": 0, **SERVER_ERROR, "op": command}]}, request_id=2),
        events.succeeded(name, {"ok": 1, "writeConcernError": {"code": 64, "errmsg": MESSAGE}}, request_id=3),
        events.failed(name, SERVER_ERROR, request_id=4),
        events.failed(name, {"errmsg": MESSAGE, "errtype": "InvalidDocument"}, request_id=5),
        events.failed(name, RawBSONDocument(encode(SERVER_ERROR)), request_id=6),
        events.failed(name, OperationFailure(MESSAGE, 11000, SERVER_ERROR), request_id=7),
    ]
    (heartbeats,) = (each for each in listeners if isinstance(each, HeartbeatEvents))
    for number, outcome in enumerate(outcomes, 1):
        listener.started(events.started(command, request_id=number))
        heartbeats.failed(events.heartbeat_failed(events.ADDRESS, OperationFailure(MESSAGE), duration=0.1))
        if isinstance(outcome, CommandSucceededEvent):
            listener.succeeded(outcome)
        else:
            listener.failed(outcome)

    assert len(spans.finished) == len(outcomes)
    exported = [span.to_json() for span in spans.finished] + [repr(record) for record in logs.records]
    exported += [metric.to_json() for metric in metrics.collected().values()] + [caplog.text]
    assert [secret for text in exported for secret in revealed(text)] == []
