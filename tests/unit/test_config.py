"""The options: keyword over environment over default, and one warning for an invalid value."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from opentelemetry_mongo_events import Config
from opentelemetry_mongo_events._config import config_from


def test_the_defaults() -> None:
    assert config_from({}, {}) == Config(commands=True, exclude_commands=frozenset(), require_parent_span=False)


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().commands = False  # type: ignore[misc]


@pytest.mark.parametrize("text", ["false", "False", " OFF ", "0", "no"])
def test_a_switch_is_read_from_the_environment(text: str) -> None:
    assert config_from({"OTEL_PYTHON_MONGO_EVENTS_COMMANDS": text}, {}) == Config(commands=False)


@pytest.mark.parametrize("text", ["true", "1", "yes", "on"])
def test_a_switch_is_switched_on_by_the_environment(text: str) -> None:
    assert config_from({"OTEL_PYTHON_MONGO_EVENTS_REQUIRE_PARENT_SPAN": text}, {}) == Config(require_parent_span=True)


def test_names_are_read_from_the_environment() -> None:
    environ = {"OTEL_PYTHON_MONGO_EVENTS_EXCLUDE_COMMANDS": "ping, endSessions ,,"}

    assert config_from(environ, {}) == Config(exclude_commands=frozenset({"ping", "endSessions"}))


@pytest.mark.parametrize("names", ["ping,hello", ["ping", "hello"], {"ping", "hello"}, iter(("ping", " hello "))])
def test_names_are_any_iterable_or_a_text(names: Any) -> None:
    assert Config(exclude_commands=names).exclude_commands == {"ping", "hello"}


@pytest.mark.parametrize(("given", "on"), [(0, False), (1, True), (False, False), ("off", False)])
def test_a_switch_is_a_bool_or_what_stands_for_one(given: Any, on: bool, caplog: pytest.LogCaptureFixture) -> None:
    assert Config(commands=given) == Config(commands=on)
    assert caplog.messages == []


@pytest.mark.parametrize(("given", "choice"), [("log", "log"), (" Both ", "both"), ("NONE", "none")])
def test_a_choice_is_a_word(given: str, choice: str) -> None:
    assert config_from({"OTEL_PYTHON_MONGO_EVENTS_EVENTS": given}, {}) == Config(events=choice)


@pytest.mark.parametrize(("given", "seconds"), [("90", 90.0), ("0.5", 0.5), (120, 120.0), (1.5, 1.5)])
def test_seconds_are_a_number_above_0(given: Any, seconds: float) -> None:
    assert config_from({}, {"episode_timeout": given}) == Config(episode_timeout=seconds)


@pytest.mark.parametrize(("given", "characters"), [("100", 100), (0, 0), (" 7 ", 7), (10**9, 10**9)])
def test_a_length_is_a_whole_number(given: Any, characters: int) -> None:
    assert config_from({}, {"query_text_max_length": given}) == Config(query_text_max_length=characters)


def test_the_variable_that_the_drivers_of_mongodb_share_counts_where_the_own_is_unset(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = {"OTEL_PYTHON_INSTRUMENTATION_MONGODB_QUERY_TEXT_MAX_LENGTH": "100"}
    own = {"OTEL_PYTHON_MONGO_EVENTS_QUERY_TEXT_MAX_LENGTH": "200"}
    empty = {"OTEL_PYTHON_MONGO_EVENTS_QUERY_TEXT_MAX_LENGTH": ""}

    assert config_from(shared, {}).query_text_max_length == 100
    assert config_from(shared | empty, {}).query_text_max_length == 100
    assert config_from(shared | own, {}).query_text_max_length == 200
    assert config_from(shared, {"query_text_max_length": 300}).query_text_max_length == 300
    assert config_from(shared, {}, Config()).query_text_max_length == 4096
    assert caplog.messages == []

    assert config_from(dict.fromkeys(shared, "long"), {}) == Config()
    assert caplog.messages == [
        (
            "invalid OTEL_PYTHON_INSTRUMENTATION_MONGODB_QUERY_TEXT_MAX_LENGTH: 'long'; expected an integer of 0 or "
            "more; using the default, 4096"
        )
    ]


def test_none_is_not_given(caplog: pytest.LogCaptureFixture) -> None:
    environ = {"OTEL_PYTHON_MONGO_EVENTS_COMMANDS": "false"}

    assert config_from(environ, {"commands": None, "exclude_commands": None}) == Config(commands=False)
    assert Config(commands=None, exclude_commands=None) == Config()  # type: ignore[arg-type]
    assert caplog.messages == []


def test_an_empty_variable_is_unset(caplog: pytest.LogCaptureFixture) -> None:
    assert config_from({"OTEL_PYTHON_MONGO_EVENTS_COMMANDS": ""}, {}) == Config()
    assert caplog.messages == []


def test_a_keyword_wins_over_the_environment() -> None:
    environ = {"OTEL_PYTHON_MONGO_EVENTS_COMMANDS": "false", "OTEL_PYTHON_MONGO_EVENTS_EXCLUDE_COMMANDS": "ping"}

    assert config_from(environ, {"commands": True}) == Config(exclude_commands=frozenset({"ping"}))


def test_a_config_stands_in_for_environment_and_defaults_and_a_keyword_wins_over_it() -> None:
    environ = {"OTEL_PYTHON_MONGO_EVENTS_COMMANDS": "false"}
    base = Config(exclude_commands=frozenset({"ping"}))

    assert config_from(environ, {"require_parent_span": True}, base) == Config(
        exclude_commands=frozenset({"ping"}), require_parent_span=True
    )
