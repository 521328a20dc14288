"""The options (`Config`) and how they are read from keywords, environment variables and defaults."""

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
"""The values of `Config.events` with which background events become span events."""
LOG_RECORDS = ("log", "both")
"""The values of `Config.events` with which background events become log records."""

MASKED = "masked"
RAW = "raw"
OFF = "off"
"""The last of the three values of `Config.query_text`."""

_MAX_NAMES = 10_000

# Keywords of `opentelemetry-instrumentation-pymongo` that have another name here. Its others have the same name.
_OTHER_NAMES = {"capture_statement": "query_text"}

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
    names = list(itertools.islice(value, _MAX_NAMES + 1))  # the iterable may be infinite
    if len(names) > _MAX_NAMES:
        raise ValueError
    if not all(isinstance(name, str) for name in names):
        raise TypeError
    return frozenset(name.strip() for name in names if name.strip())


def _one_of(*allowed: str) -> Callable[[object], str]:
    def convert(value: object) -> str:
        if isinstance(value, str) and (text := value.strip().lower()) in allowed:
            return text
        raise ValueError

    return convert


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


def _option(default: Any, convert: Callable[[object], Any], allowed: str, other_variable: str | None = None) -> Any:
    """Define a field of `Config`.

    Args:
        default: The default.
        convert: Converts a value to the field's type; raises an exception for an invalid value.
        allowed: Describes the valid values, for a warning.
        other_variable: An environment variable that is used if the option's own is not set.
    """
    metadata = {"convert": convert, "allowed": allowed, "other_variable": other_variable}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The options.

    An invalid value never raises an exception. It is logged as a warning on the logger `opentelemetry_mongo_events`,
    which names the option, the value and the valid values. The default is used instead. None stands for the default,
    too.

    Attributes:
        commands: Whether commands and transactions are instrumented: spans and metrics. If disabled, no command
            listener is registered.
        command_spans: Whether commands and transactions get spans. If disabled, only their metrics are recorded.
            Disable this option if another instrumentation or PyMongo itself traces the commands. This also disables the
            warning about double tracing.
        pools: Whether connection pools are instrumented: metrics, and a span for each failed checkout. If disabled, no
            pool listener is registered, except the one that command spans require.
        heartbeats: Whether heartbeats are instrumented: metrics and events. If disabled, no heartbeat listener is
            registered, except the one that `selections` requires.
        topology: Whether servers and topologies are instrumented: metrics, an event for each change, and spans for
            discoveries and outages. If disabled, no topology listener is registered.
        selections: Whether server selections are instrumented: a span for each one that waited or failed, and a metric.
            If disabled, the driver's log of selections is not touched. Requires PyMongo 4.7 or newer; with older
            versions, the option has no effect.
        events: Where background events are recorded (failed heartbeats, cleared pools, changes of servers and
            topologies). `span` adds them to the spans of commands, discoveries and outages. `log` emits them as log
            records (requires OpenTelemetry 1.38 or newer). `both` does both, `none` neither.
        episode_timeout: The maximum duration of the span of a discovery or an outage, in seconds. After that, the span
            ends as an error, so that a long outage is visible before it ends, and another span continues it.
        query_text: What `db.query.text` shows of a command. `masked` shows its shape, with `?` in place of values.
            `raw` shows the values, and the messages of errors. `off` shows nothing.
        query_text_max_length: The maximum length of `db.query.text`, in characters. 0 is equivalent to
            `query_text="off"`.
        exclude_commands: Commands that get no span: their names, as MongoDB spells them (`ping`, `endSessions`). The
            server selections of operations with these names get no span either. Accepts any iterable of names, or a
            comma-separated string; stored as a frozenset.
        require_parent_span: Whether commands, transactions, failed checkouts and server selections get a span only if
            there is a current span.
    """

    commands: bool = _option(True, _switch, "true or false")
    command_spans: bool = _option(True, _switch, "true or false")
    pools: bool = _option(True, _switch, "true or false")
    heartbeats: bool = _option(True, _switch, "true or false")
    topology: bool = _option(True, _switch, "true or false")
    selections: bool = _option(True, _switch, "true or false")
    events: str = _option("span", _one_of("span", "log", "both", "none"), "span, log, both or none")
    episode_timeout: float = _option(60.0, _seconds, "a number of seconds greater than 0")
    query_text: str = _option(MASKED, _one_of(MASKED, RAW, OFF), "masked, raw or off")
    query_text_max_length: int = _option(
        4096,
        _characters,
        "an integer of 0 or more",
        # Source: the MongoDB drivers' OpenTelemetry specification.
        other_variable="OTEL_PYTHON_INSTRUMENTATION_MONGODB_QUERY_TEXT_MAX_LENGTH",
    )
    exclude_commands: Collection[str] = _option(
        frozenset(), _names, "a list of command names or a comma-separated string"
    )
    require_parent_span: bool = _option(False, _switch, "true or false")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = _converted(option, getattr(self, option.name), option.name)
            object.__setattr__(self, option.name, value)


OPTIONS = {option.name: option for option in dataclasses.fields(Config)}
_NAMES_IN_CAPITALS = [name.upper() for name in OPTIONS]


def _converted(option: dataclasses.Field[Any], value: object, source: str) -> Any:
    """Convert a value to the type of an option.

    Args:
        option: A field of `Config`.
        value: The value.
        source: The keyword or environment variable that the value comes from, for the warning.

    Returns:
        The converted value; the default for None and, with a warning, for an invalid value.
    """
    if value is None:
        return option.default
    try:
        return option.metadata["convert"](value)
    except Exception:
        warn(
            "invalid %s: %s; expected %s; using the default, %s",
            source,
            shown(value),
            option.metadata["allowed"],
            "none" if option.default == frozenset() else option.default,
        )
        return option.default


def shown(value: object) -> str:
    """Return a short representation of an invalid value of any type, for a warning. Never raises."""
    try:
        return f"{value!r:.100}"
    except Exception:
        return f"a value of type {type(value).__name__}"


def config_from(
    environ: Mapping[str, str],
    keywords: Mapping[str, object],
    base: Config | None = None,
    other_keywords: Iterable[str] = (),
) -> Config:
    """Combine the options from all sources.

    Args:
        environ: The environment variables. An option's variable is `OTEL_PYTHON_MONGO_EVENTS_` and the option's name in
            capitals. Some options have a second variable, which is used if the first is not set. As the OpenTelemetry
            specification requires, an empty variable counts as not set. An unknown variable with this prefix causes a
            warning.
        keywords: Options by name. They take precedence over everything else, unless they are None. An unknown name
            causes a warning.
        base: Options that replace environment variables and defaults.
        other_keywords: The names of keywords that are no options but allowed where the options are, for the warning.
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
                    values[name] = _converted(option, value, variable)
                    break
    if base is None:
        for variable in environ:
            name = variable.removeprefix(ENVIRONMENT_PREFIX)
            if name != variable and name not in _NAMES_IN_CAPITALS and environ.get(variable):
                hint = _did_you_mean(name, _NAMES_IN_CAPITALS, ENVIRONMENT_PREFIX)
                warn("unknown environment variable: %.100s%s; ignored", variable, hint)
    allowed = [*OPTIONS, *other_keywords]
    for name in keywords.keys() - OPTIONS.keys():
        hint = f" (use {_OTHER_NAMES[name]} instead)" if name in _OTHER_NAMES else _did_you_mean(name, allowed)
        warn("unknown option: %.100s%s; expected one of %s; ignored", name, hint, ", ".join(allowed))
    return Config(**values)  # type: ignore[arg-type]  # the constructor checks each value


def _did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a hint at the known name that an unknown name resembles. It is empty if there is none."""
    matches = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {prefix}{matches[0]}?)" if matches else ""
