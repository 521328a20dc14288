"""The numbers, the names of variables and the lists of the documentation are those of the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import re
from pathlib import Path
from typing import Any, Final

import pytest
from pymongo.errors import AutoReconnect

import opentelemetry_mongo_events
from opentelemetry_mongo_events import MongoEventsInstrumentor, event_listeners
from opentelemetry_mongo_events._config import _SWITCHES, ENVIRONMENT_PREFIX, OPTIONS, Config
from opentelemetry_mongo_events._driver import command_names
from opentelemetry_mongo_events._servers import errors, outages, selection_listener
from opentelemetry_mongo_events._telemetry import other_tracers, semconv
from tests.pages import PAGES, ROOT, column, rows, table

PACKAGE = "opentelemetry_mongo_events"
SOURCE = Path(opentelemetry_mongo_events.__file__).parent


def flat(page: str) -> str:
    """The text of a page without its line breaks."""
    return " ".join((ROOT / page).read_text().split())


# Each sentence that names a number, with what that is in the code.
NUMBERS: Final = [
    ("docs/how-it-works.md", r"([\d,]+) commands may be open", "_commands.open_commands:LIMIT"),
    ("docs/how-it-works.md", r"([\d,]+) cursors and", "_commands.listener:_REMEMBERED"),
    ("docs/how-it-works.md", r"([\d,]+) failed attempts are remembered", "_commands.listener:_REMEMBERED"),
    ("docs/how-it-works.md", r"the last ([\d,]+) commands that failed", "_servers.state:_MAX_FAILURES"),
    ("docs/how-it-works.md", r"for each topology the last ([\d,]+) events", "_servers.state:_MAX_EVENTS"),
    ("docs/how-it-works.md", r"and the last ([\d,]+) selections that waited", "_servers.state:_MAX_DELAYS"),
    ("docs/how-it-works.md", r"([\d,]+) server selections may wait", "_servers.selection_listener:_LIMIT"),
    ("docs/how-it-works.md", r"begin to wait while ([\d,]+) others do", "_servers.selection_listener:_LIMIT"),
    ("docs/how-it-works.md", r"tasks every ([\d.]+) seconds", "_servers.selection_listener:_CHECK_INTERVAL"),
    ("docs/how-it-works.md", r"if that takes more than ([\d.]+) %", "_servers.selection_listener:_MAX_CHECK_SHARE"),
    ("docs/how-it-works.md", r"for at most ([\d.]+) seconds, and then", "_servers.outages:_MAX_WAIT_FOR_SELECTIONS"),
    ("docs/how-it-works.md", r"([\d,]+) log records and failed selections may", "_runtime.background:_LIMIT"),
    ("docs/how-it-works.md", r"the newest ([\d,]+) pools", "_pools.state:_MAX_POOLS"),
    ("docs/how-it-works.md", r"the kind of a command \(([\d,]+) combinations", "_commands.listener:_REMEMBERED"),
    ("docs/how-it-works.md", r"only names \(([\d,]+) of commands", "_query_text.text:_texts_of_shapes._limit"),
    ("docs/how-it-works.md", r"of commands, ([\d,]+) of documents\)", "_query_text.text:_texts_of_keys._limit"),
    ("docs/how-it-works.md", r"detected within ([\d,]+) ms, a meter", "_telemetry.telemetry:_CHECK_INTERVAL"),
    ("docs/how-it-works.md", r"a meter provider within ([\d,]+) ms", "_telemetry.instruments:_CHECK_INTERVAL"),
    ("docs/how-it-works.md", r"and its queue holds ([\d,]+) events", "_driver.events_executor:_MAX_EVENTS"),
    ("docs/how-it-works.md", r"With more than ([\d,]+) clients in", "_driver.events_executor:_PROMPT_CLIENTS"),
    ("docs/how-it-works.md", r"empties the queue every ([\d.]+) seconds", "_driver.events_executor:_INTERVAL"),
    ("docs/metrics.md", r"counted as idle for (\w+) seconds longer", "_pools.state:_GRACE"),
    ("docs/outages.md", r"At most the first ([\d,]+) events are recorded", "_commands.open_commands:_MAX_EVENTS"),
    ("docs/outages.md", r"the first ([\d,]+) failed heartbeats", "_servers.outages:_MAX_REPEATED_EVENTS"),
    ("docs/outages.md", r"At most ([\d,]+) are recorded, which is the SDK's limit", "_servers.outages:_MAX_EVENTS"),
    ("docs/outages.md", r"failed on the servers that were lost, from (\w+) seconds before", "_servers.outages:_WINDOW"),
    ("docs/outages.md", r"no longer writable: at most ([\d,]+) of them", "_servers.outages:_MAX_LINKS"),
    ("docs/outages.md", r"succeeded or failed: at most ([\d,]+) of those", "_servers.outages:_MAX_LINKS"),
    ("docs/outages.md", r"waits up to ([\d.]+) seconds more", "_servers.outages:_MAX_WAIT_FOR_SELECTIONS"),
    ("docs/outages.md", r"At most ([\d,]+) log records and failed selections wait", "_runtime.background:_LIMIT"),
    ("docs/outages.md", r"until all are emitted, for (\w+) seconds at most", "_runtime.background:_FLUSH_TIMEOUT"),
    ("docs/outages.md", r"`episode_timeout`\]\(options.md\), ([\d,]+) seconds", "option episode_timeout"),
    ("docs/spans.md", r"At most ([\d,]+) characters", "_commands.description:_SUMMARY_LENGTH"),
    ("docs/spans.md", r"one of the last ([\d,]+) cursors", "_commands.listener:_REMEMBERED"),
    ("docs/spans.md", r"that waited for at least ([\d,]+) ms", "_servers.selections:_MIN_SPAN"),
    ("docs/spans.md", r"At most ([\d,]+) transactions are open", "_commands.transactions:_LIMIT"),
    ("docs/spans.md", r"and for at most ([\d,]+) seconds", "_commands.transactions:_MAX_REPEAT_WAIT"),
    ("docs/spans.md", r"right before it, the last ([\d,]+) at most", "_servers.failed_checkouts:_MAX_SPANS"),
    ("docs/metrics.md", r"for less than the ([\d,]+) ms", "_servers.selections:_MIN_SPAN"),
    ("docs/troubleshooting.md", r"that waited for at least ([\d,]+) ms", "_servers.selections:_MIN_SPAN"),
    ("docs/troubleshooting.md", r"More than ([\d,]+) selections are waiting", "_servers.selection_listener:_LIMIT"),
    ("docs/troubleshooting.md", r"More than ([\d,]+) commands are in progress", "_commands.open_commands:LIMIT"),
    ("docs/troubleshooting.md", r"`episode_timeout`\]\(options.md\), ([\d,]+) seconds", "option episode_timeout"),
    ("docs/troubleshooting.md", r"wasn't released for (\w+) seconds", "_driver.client_internals:_LOCK_TIMEOUT"),
    ("docs/what-is-captured.md", r"has at most ([\d,]+) characters and, if", "_query_text.masking:_SEGMENT_LENGTH"),
    ("docs/what-is-captured.md", r"`query_text_max_length` characters \((\d+)\)", "option query_text_max_length"),
    ("docs/what-is-captured.md", r"At most ([\d,]+) elements of an array and", "_query_text.text:_ELEMENTS"),
    ("docs/what-is-captured.md", r"and ([\d,]+) values of a command", "_query_text.text:_VALUES"),
    ("docs/what-is-captured.md", r"Truncated text shows ([\d,]+) levels", "_query_text.cutting:_LEVELS"),
    ("docs/what-is-captured.md", r"up\s+to ([\d,]+)\s+values are read in addition", "_query_text.text:_MORE_VALUES"),
    ("docs/what-is-captured.md", r"more than ([\d,]+) keys, all keys are masked", "_query_text.text:_KEYS"),
]  # fmt: skip
WORDS = {"five": "5", "ten": "10"}


def number(what: str) -> float:
    """A constant of the code, or the default of an option."""
    if what.startswith("option "):
        return float(getattr(Config(), what.removeprefix("option ")))
    module, _, name = what.partition(":")
    return float(operator.attrgetter(name)(importlib.import_module(f"{PACKAGE}.{module}")))


@pytest.mark.parametrize(("page", "sentence", "what"), NUMBERS)
def test_a_number_is_that_of_the_code(page: str, sentence: str, what: str) -> None:
    (told,) = re.findall(sentence, flat(page))

    value = number(what) * (1000 if " ms" in sentence else 100 if " %" in sentence else 1)
    assert float(WORDS.get(told, told).replace(",", "")) == value


def test_a_message_of_the_driver_is_cut_where_it_is_said_to_be() -> None:
    (told,) = re.findall(r"configured timeouts; at most (\d+) characters", flat("docs/outages.md"))

    attributes = errors.error_attributes(AutoReconnect("x" * 1000))
    assert len(str(attributes[semconv.ERROR_MESSAGE])) == int(told)


def test_no_limit_of_the_code_is_left_out() -> None:
    """Whoever adds one is led here: to a sentence in the documentation, or to this list of what nobody notices."""
    unnoticed = {
        ("_driver.frames", "_MAX_FRAMES"),
        ("_runtime.guard", "_MAX_KINDS"),
        ("_commands.held_connections", "_LIMIT"),
        ("_telemetry.instruments", "_MAX_PENDING"),
        ("_query_text.masking", "KEY_LENGTH"),
        ("_query_text.text", "_MAX_CACHED_LENGTH"),
        ("_query_text.text", "_MORE_ROOM"),
        ("_query_text.text", "_PARTS"),
        ("_query_text.cutting", "_LEAST_ROOM"),
        ("_query_text.cutting", "_FIELD_ROOM"),
        ("_query_text.cutting", "_STAGE_ROOM"),
        ("_pools.waiters", "_CLEANUP_THRESHOLD"),
        ("_servers.state", "_MAX_ANSWERS"),
    }
    limits = {
        (".".join(path.relative_to(SOURCE).with_suffix("").parts), node.target.id)
        for path in SOURCE.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(node.value, ast.Constant) and type(node.value.value) is int and node.value.value >= 16
    }
    settings = {
        ("_commands.outcome", "_DUPLICATE_KEY"),
        ("_pools.state", "_MAX_POOL_SIZE"),
    }  # MongoDB's and the driver's

    assert limits - unnoticed - settings <= {
        tuple(re.split("[:.](?=_*[A-Z])", what)) for _, _, what in NUMBERS if ":" in what
    }


def variables_of(module: str) -> set[str]:
    try:
        return {value for value in vars(importlib.import_module(module)).values() if isinstance(value, str)}
    except ImportError:
        return set()


def test_each_environment_variable_is_read_by_somebody() -> None:
    ours = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in OPTIONS}
    ours |= {other for each in OPTIONS.values() if (other := each.metadata["other_variable"])}
    theirs = variables_of("opentelemetry.environment_variables")
    theirs |= variables_of("opentelemetry.sdk.environment_variables")
    theirs |= variables_of("opentelemetry.instrumentation.environment_variables")
    theirs |= {"OTEL_SEMCONV_STABILITY_OPT_IN"}  # the API has it in a private module
    theirs |= {"OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH"}  # since 0.58b0
    pymongo_tells = set(re.findall(r"OTEL_\w+", inspect.getsource(other_tracers)))

    for page in [*PAGES, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]:
        named = set(re.findall(r"\bOTEL_[A-Z_]*[A-Z]\b", page.read_text())) - {"OTEL_PYTHON_MONGO_EVENTS"}
        assert named <= ours | theirs | pymongo_tells, page.name


def test_each_keyword_without_a_variable_is_in_the_reference() -> None:
    told = [
        cells[0].strip("`").partition("(")[0] for cells in rows("docs/options.md", "## Keywords that have no variable")
    ]

    keywords = [each.name for each in inspect.signature(event_listeners).parameters.values() if each.name != "options"]
    assert sorted(told) == sorted(keywords)


def test_the_words_for_on_and_off_are_those_that_are_understood() -> None:
    (on, off) = re.findall(r"A switch is on for (.*?), and off for (.*?)\. Case", flat("docs/options.md"))[0]

    assert set(re.findall(r"`(\w+)`", on)) == {word for word, value in _SWITCHES.items() if value}
    assert set(re.findall(r"`(\w+)`", off)) == {word for word, value in _SWITCHES.items() if not value}


def test_the_defaults_of_the_readme_are_those_of_the_reference() -> None:
    told = column("README.md", "## Options", "Default")

    assert told == {
        name: "none" if option.default == frozenset() else str(option.default).lower()
        if isinstance(option.default, bool)
        else str(option.default)
        for name, option in OPTIONS.items()
    }  # fmt: skip


def test_the_choices_of_an_option_are_those_that_are_allowed() -> None:
    for name in ("events", "query_text"):
        (told,) = [cells[3] for cells in rows("docs/options.md", "# Options") if cells[0] == f"`{name}`"]
        allowed = OPTIONS[name].metadata["allowed"].replace(" or ", ", ").split(", ")

        assert set(re.findall(r"`([a-z]+)`", told)) == set(allowed)


def test_each_public_name_is_in_the_reference() -> None:
    told = re.findall(r"^\.\. auto(?:class|function):: (\w+)", (ROOT / "docs/api.rst").read_text(), re.MULTILINE)

    assert set(told) == set(opentelemetry_mongo_events.__all__) - {"__version__"}


def test_instrument_has_the_keywords_and_the_docstring_of_event_listeners() -> None:
    def documented(function: object) -> dict[str, str]:
        """Each argument's description, without line breaks."""
        arguments = inspect.cleandoc(str(function.__doc__)).partition("Args:\n")[2].partition("\n\n")[0]
        found = re.findall(r"^    (\S+): (.*(?:\n {5}.*)*)", arguments, re.MULTILINE)
        return {name: " ".join(text.split()) for name, text in found}

    instrument, listeners = MongoEventsInstrumentor.instrument, event_listeners
    both = [dict(inspect.signature(function).parameters) for function in (instrument, listeners)]
    assert both[1].pop("client_name")
    assert both[0].pop("self")
    assert both[0] == both[1]

    told, of_listeners = documented(instrument), documented(listeners)
    assert set(told) == {"**options", *both[0]} - {"options"}
    assert told.pop("**options").startswith(of_listeners["**options"])
    assert told.items() <= of_listeners.items()


def test_each_outcome_of_a_discovery_or_an_outage_is_in_the_reference() -> None:
    ends = {outages.CLOSED, outages.UNINSTRUMENTED, outages._COLLECTED, outages._EXIT, outages._TIMEOUT}

    head, *lines = table("docs/outages.md", "## Discoveries and outages", 1)
    assert head == ["Outcome", "How it ended"]
    assert ends | {outages._RECOVERED, outages._DISCOVERED} == {
        name for cells in lines for name in re.findall(r"`(\w+)`", cells[0])
    }


def test_each_error_of_a_server_selection_is_in_the_reference() -> None:
    head, *lines = table("docs/spans.md", "## Server selections", 1)

    assert head == ["`error.type`", "Why the selection failed"]
    assert [cells[0].strip("`") for cells in lines] == [selection_listener._TIMEOUT, semconv.INTERRUPTED]


def test_the_sensitive_commands_are_all_named() -> None:
    (spans,) = re.findall(r"carry credentials \((.*?)\), the driver", flat("docs/spans.md"))
    captured = flat("docs/what-is-captured.md").partition("## Credentials")[2].partition("## Limits")[0]
    for name in re.findall(r"`(\w+)`", spans):
        assert command_names.is_sensitive(name) or name in ("hello", "speculativeAuthenticate")
    for text in (spans, captured):
        told = {name.lower() for name in re.findall(r"`(\w+)`", text)}
        assert {name for name in command_names._SENSITIVE if not name.startswith("copydb")} <= told


def test_the_versions_of_the_readme_are_those_that_are_asked_for() -> None:
    told = column("README.md", "## Compatibility", "Versions")
    project = (ROOT / "pyproject.toml").read_text()

    def asked(pattern: str) -> str:
        return str(re.findall(pattern, project, re.MULTILINE)[0])

    assert told["Python"].startswith(f"{asked(r'^requires-python = .>=([0-9.]+)')} and newer")
    oldest, below = re.findall(r"^instruments = .*pymongo >= ([0-9.]+), < ([0-9]+)", project, re.MULTILINE)[0]
    assert told["PyMongo"].startswith(f"{oldest} and newer, below {below};")
    assert told["OpenTelemetry API"].startswith(f"{asked(r'opentelemetry-api >= ([0-9.]+)')} and newer")
    for package in ("instrumentation", "semantic-conventions"):
        assert asked(rf"opentelemetry-{package} >= ([0-9.b]+)") in told["OpenTelemetry API"]
    assert told["Motor"] == f"{asked(r'motor >= ([0-9.]+)')} and newer"


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in [*PAGES, ROOT / "SECURITY.md"]])
def test_a_link_to_a_section_leads_to_one(page: Path) -> None:
    text = page.read_text()
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        if "://" in link:
            continue
        other = (page.parent / link).read_text() if link else text
        headings: list[Any] = re.findall(r"^#+ (.+)$", other, re.MULTILINE)
        assert anchor in [slug(heading) for heading in headings], f"{page.name}: {link}#{anchor}"
