"""The options: keyword over environment over default, and one warning for what can't be used."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from opentelemetry_mongo_events._runtime.log import warn

ENVIRONMENT_PREFIX = "OTEL_PYTHON_MONGO_EVENTS_"

SPAN_EVENTS = ("span", "both")
"""Where incidents are span events."""
LOG_RECORDS = ("log", "both")
"""Where they are log records."""

MASKED = "masked"
RAW = "raw"
OFF = "off"
"""What is shown of commands."""

_MANY_NAMES = 10_000

_SWITCHES = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _switch(value: object) -> bool:
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        return _SWITCHES[value.strip().lower()]
    raise TypeError


def _names(value: object) -> frozenset[str]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        raise TypeError
    names = list(itertools.islice(value, _MANY_NAMES + 1))  # of what has no end, too
    if len(names) > _MANY_NAMES:
        raise ValueError
    if not all(isinstance(name, str) for name in names):
        raise TypeError
    return frozenset(name.strip() for name in names if name.strip())


def _one_of(*allowed: str) -> Callable[[object], str]:
    def usable(value: object) -> str:
        if isinstance(value, str) and (text := value.strip().lower()) in allowed:
            return text
        raise ValueError

    return usable


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError
    return seconds


def _characters(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError
    characters = int(value)
    if characters < 0:
        raise ValueError
    return characters


def _option(default: Any, usable: Callable[[object], Any], allowed: str, other_variable: str | None = None) -> Any:
    metadata = {"usable": usable, "allowed": allowed, "other_variable": other_variable}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What is observed, and how.

    A value that can't be used is one warning on the logger `opentelemetry_mongo_events`, which names the option, the
    value and what is allowed; the default stands in for it, as it does for None. No value makes the constructor raise.

    Attributes:
        commands: Whether commands are observed at all, as spans and metrics. Where they are not, no listener is
            registered for them.
        pools: Whether connection pools are observed: their metrics, and a span for a checkout that failed. Where they
            are not, no listener is registered for them, but for what a command span needs.
        heartbeats: Whether heartbeats are observed: their metrics, and those that failed as events. Where they are not,
            no listener is registered for them.
        topology: Whether servers and topologies are observed: their metrics, their changes as events, and discoveries
            and outages as spans. Where they are not, no listener is registered for them.
        events: Where incidents go (a failed heartbeat, a pool that was cleared, a server or topology that changed):
            `span` makes them events of the spans of commands, discoveries and outages, `log` makes them log records,
            `both` does both and `none` neither.
        episode_timeout: How many seconds a discovery or an outage lasts before its span ends as an error, and another
            one goes on with it.
        query_text: What is shown of a command on its span: `masked` its keys, with `?` for what comes from data,
            `raw` its values and the messages of errors, too, `off` neither.
        query_text_max_length: How many characters that is at most. 0 is as good as `off`.
        exclude_commands: Names of commands that get no span, as MongoDB spells them (`ping`, `endSessions`). Takes any
            iterable of names, or one text with commas between them; holds a frozenset.
        require_parent_span: Whether a command outside of any span gets none.
    """

    commands: bool = _option(True, _switch, "true or false is")
    pools: bool = _option(True, _switch, "true or false is")
    heartbeats: bool = _option(True, _switch, "true or false is")
    topology: bool = _option(True, _switch, "true or false is")
    events: str = _option("span", _one_of("span", "log", "both", "none"), "span, log, both or none is")
    episode_timeout: float = _option(60.0, _seconds, "a number of seconds above 0 is")
    query_text: str = _option(MASKED, _one_of(MASKED, RAW, OFF), "masked, raw or off is")
    query_text_max_length: int = _option(
        4096,
        _characters,
        "a whole number of characters, 0 or more, is",
        # Source: the MongoDB drivers' OpenTelemetry specification.
        other_variable="OTEL_PYTHON_INSTRUMENTATION_MONGODB_QUERY_TEXT_MAX_LENGTH",
    )
    exclude_commands: Collection[str] = _option(
        frozenset(), _names, "a list of command names, or a text with commas between them, is"
    )
    require_parent_span: bool = _option(False, _switch, "true or false is")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = _usable(option, getattr(self, option.name), option.name)
            object.__setattr__(self, option.name, value)


OPTIONS = {option.name: option for option in dataclasses.fields(Config)}


def _usable(option: dataclasses.Field[Any], value: object, source: str) -> Any:
    """`value` as the option holds it; its default for None and, with a warning, for what can't be used."""
    if value is None:
        return option.default
    try:
        return option.metadata["usable"](value)
    except Exception:
        warn(
            "%s=%s can't be used: %s allowed; the default, %s, is used",
            source,
            shown(value),
            option.metadata["allowed"],
            "none" if option.default == frozenset() else option.default,
        )
        return option.default


def shown(value: object) -> str:
    """A value that can't be used, as a message shows it: short, and whatever it is."""
    try:
        return f"{value!r:.100}"
    except Exception:
        return f"a value of type {type(value).__name__}"


def config_from(environ: Mapping[str, str], keywords: Mapping[str, object], base: Config | None = None) -> Config:
    """The options that are in force.

    Args:
        environ: The environment; each option's variable is `OTEL_PYTHON_MONGO_EVENTS_` and its name in capitals, and
            some have a second one, for where the first is unset. An empty variable counts as unset, as the
            OpenTelemetry specification has it.
        keywords: Options by name. They win over all else, but for None. An unknown name is a warning.
        base: Options that stand in for environment and defaults.
    """
    values: dict[str, object] = {}
    for name, option in OPTIONS.items():
        if keywords.get(name) is not None:
            values[name] = keywords[name]
        elif base is not None:
            values[name] = getattr(base, name)
        else:
            for variable in (ENVIRONMENT_PREFIX + name.upper(), option.metadata["other_variable"]):
                if variable is not None and (value := environ.get(variable)):
                    values[name] = _usable(option, value, variable)
                    break
    for name in keywords.keys() - OPTIONS.keys():
        near = difflib.get_close_matches(name, OPTIONS, n=1)
        warn(
            "unknown option %.100s%s: the options are %s",
            name,
            f" (is {near[0]} meant?)" if near else "",
            ", ".join(OPTIONS),
        )
    return Config(**values)  # type: ignore[arg-type]  # each value is checked when the Config is made
