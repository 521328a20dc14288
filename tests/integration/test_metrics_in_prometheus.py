"""End to end: what is measured arrives in Prometheus, and the dashboard and the rules understand it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError

from opentelemetry_mongo_events import event_listeners
from opentelemetry_mongo_events._telemetry import semconv
from tests.clients import connect
from tests.exposition import Exposed
from tests.integration.conftest import running
from tests.pools import held
from tests.servers.processes import Prometheus, promtool
from tests.servers.scripted import ScriptedReplicaSet
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo import MongoClient

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
DASHBOARD = DEPLOY / "grafana" / "mongodb-client.json"
RULES = DEPLOY / "prometheus" / "mongodb-client.rules.yml"
RULE_TESTS = DEPLOY / "prometheus" / "mongodb-client.test.yml"

DURATION = "db_client_operation_duration_seconds"
WAIT = "db_client_connection_wait_time_seconds"
MEASURED = {
    getattr(semconv, name).replace(".", "_")
    for name in semconv.__all__
    if name.startswith(("DB_CLIENT_", "MONGODB_CLIENT_"))
}
SELECTION = "mongodb_client_server_selection_wait_time_seconds"


def expressions(dashboard: Path) -> list[Any]:
    """The expressions of a dashboard's panels, and of what its variables list; with the variables replaced."""
    board = json.loads(dashboard.read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel.get("targets", ())
    }
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            listed = re.fullmatch(r"label_values\((?P<series>.*), (?P<label>\w+)\)", variable["definition"])
            assert listed is not None
            found[f"variable {variable['name']}"] = f"count by ({listed['label']}) ({listed['series']})"
    window = re.compile(r"\$__(?:rate_interval|range)\b")
    return [
        pytest.param(re.sub(r"\$(?:job|pool)\b", ".*", window.sub("10s", expression)), id=name)
        for name, expression in found.items()
    ]


def value(answer: list[dict[str, Any]]) -> float:
    """The value of the only series."""
    assert len(answer) == 1, answer
    return float(answer[0]["value"][1])


def values(answer: list[dict[str, Any]], label: str) -> dict[str, float]:
    """The values by a label."""
    return {each["metric"].get(label, ""): float(each["value"][1]) for each in answer}


@pytest.fixture(scope="module")
def exposed() -> Iterator[Exposed]:
    """A meter provider that Prometheus can scrape."""
    with Exposed() as exposed:
        yield exposed


@pytest.fixture(scope="module")
def scraping(exposed: Exposed) -> Iterator[Prometheus]:
    """The Prometheus that scrapes it, as the job `shop`, with the rules."""
    server = Prometheus({"shop": exposed.target}, rule_files=[RULES])
    with running(server):
        yield server


@pytest.fixture(scope="module")
def measured(exposed: Exposed) -> list[Any]:
    return event_listeners(meter_provider=exposed.provider, topology=True, selections=True)


@pytest.mark.usefixtures("prometheus")
@pytest.mark.parametrize("command", ["check", "test"])
def test_the_rules_are_rules(command: str) -> None:
    done = promtool(command, "rules", str(RULES if command == "check" else RULE_TESTS))

    assert done.returncode == 0, done.stdout


def test_counts_and_durations_are_those_that_the_load_knows(
    scraping: Prometheus, measured: list[Any], mongodb_uri: str
) -> None:
    database = f"shop_{uuid.uuid4().hex}"
    took: dict[str, list[float]] = {"orders": [], "users": []}
    with connect(mongodb_uri, event_listeners=measured, maxPoolSize=4) as client:
        shop = client[database]
        for name in took:
            shop[name].insert_many([{"number": number} for number in range(50)])

        def load(name: str) -> None:
            for number in range(50):
                since = time.perf_counter()
                shop[name].find_one({"number": number})
                took[name].append(time.perf_counter() - since)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(load, [*took] * 4))

        finds = f'db_namespace="{database}", db_operation_name="find"'
        counted = scraping.wait_for(
            f"sum by (db_collection_name) ({DURATION}_count{{{finds}}})",
            lambda answer: sum(values(answer, "db_collection_name").values()) == 400,
        )
        assert values(counted, "db_collection_name") == {"orders": 200, "users": 200}

        buckets = f"sum by (le, db_collection_name) ({DURATION}_bucket{{{finds}}})"
        p99 = values(scraping.query(f"histogram_quantile(0.99, {buckets})"), "db_collection_name")
        bounds = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]
        for name, seconds in took.items():
            # A quantile is known to a bucket; what the load measured has the wait for a connection in it too.
            assert 0 < p99[name] <= next(bound for bound in bounds if max(seconds) <= bound)

        pool = f'db_client_connection_pool_name="{":".join(map(str, client.address or ()))}"'
        waits = value(scraping.query(f"sum({WAIT}_count{{{pool}}})"))
        assert waits >= 400
        assert value(scraping.query(f"sum({WAIT}_sum{{{pool}}})")) <= sum(map(sum, took.values())) + 5

        states = dict(zip(("idle", "used"), held(client), strict=True))
        scraping.wait_for(
            f"sum by (db_client_connection_state) (db_client_connection_count{{{pool}}})",
            lambda answer: values(answer, "db_client_connection_state") == states,
        )
        client.drop_database(database)


def test_what_waits_and_what_is_used_shows_while_it_is_so(scraping: Prometheus, measured: list[Any]) -> None:
    with (
        ScriptedReplicaSet(1) as replica_set,
        connect(replica_set.uri, event_listeners=measured, maxPoolSize=2) as client,
        ThreadPoolExecutor(5) as threads,
    ):
        (server,) = replica_set.members
        pool = f'db_client_connection_pool_name="127.0.0.1:{server.port}"'
        frozen = server.freeze("find", times=2)
        results = [threads.submit(client.shop.command, "find", "orders") for _ in range(5)]
        try:
            scraping.wait_for(f"db_client_connection_pending_requests{{{pool}}} == 3")
            scraping.wait_for(f'db_client_connection_count{{{pool}, db_client_connection_state="used"}} == 2')
            scraping.wait_for(f"sum(db_client_connection_limit{{{pool}}}) == 2")
            time.sleep(0.2)  # however quick all that was, they have waited for more than 0.1 s
        finally:
            frozen.release()
        for result in results:
            result.result()

        scraping.wait_for(f"db_client_connection_pending_requests{{{pool}}} == 0")
        scraping.wait_for(f"sum({WAIT}_count{{{pool}}}) - sum({WAIT}_bucket{{{pool}, le='0.1'}}) == 3")


def test_server_selections_that_waited_or_failed(scraping: Prometheus, measured: list[Any]) -> None:
    with (
        ScriptedReplicaSet(2, name="selections") as replica_set,
        connect(replica_set.uri, event_listeners=measured, serverSelectionTimeoutMS=1000) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        primary, _ = replica_set.members
        until(lambda: client.primary == primary.address)  # no command waits for the discovery
        client.admin.command("ping")
        replica_set.step_down()
        until(lambda: client.primary is None)
        failing = [threads.submit(client.admin.command, "ping") for _ in range(2)]
        for each in failing:
            assert isinstance(each.exception(), ServerSelectionTimeoutError)
        waiting = threads.submit(client.admin.command, "ping")
        time.sleep(0.2)
        replica_set.elect(primary)
        waiting.result()

        of_the_set = 'job="shop", mongodb_client_replica_set_name="selections"'
        scraping.wait_for(
            f"{SELECTION}_count{{{of_the_set}}}",
            lambda answer: values(answer, "error_type") == {"ServerSelectionTimeoutError": 2, "": 1},
        )
        short = scraping.query(f"{SELECTION}_bucket{{{of_the_set}, le='0.1'}}")
        assert values(short, "error_type") == {"ServerSelectionTimeoutError": 0, "": 0}


@pytest.fixture(scope="module")
def bad_times(measured: list[Any]) -> Iterator[None]:
    """An application whose set loses its primary, whose pool is too small, and whose commands fail now and then."""
    with ScriptedReplicaSet(3) as replica_set:
        client: MongoClient[Any] = connect(
            replica_set.uri,
            event_listeners=measured,
            heartbeatFrequencyMS=500,
            maxPoolSize=2,
            serverSelectionTimeoutMS=300,
            waitQueueTimeoutMS=50,
            retryReads=False,
        )
        over = threading.Event()

        def load() -> None:
            while not over.wait(0.01):
                for command in ({"find": "orders"}, {"thereIsNoSuchCommand": 1}):
                    with contextlib.suppress(PyMongoError):
                        client.shop.command(command)

        def pay() -> None:
            while not over.wait(0.01):
                with contextlib.suppress(PyMongoError), pymongo.timeout(2), client.start_session() as session:
                    session.with_transaction(lambda each: client.shop.payments.insert_one({}, session=each))

        def faults() -> None:
            first, _, last = replica_set.members
            while not over.wait(0.5):
                first.fail("insert", code=112, labels=["TransientTransactionError"])
                frozen = first.freeze("find", times=2)
                over.wait(0.3)
                frozen.release()
                last.drop_connections()
                replica_set.step_down()
                over.wait(0.7)
                replica_set.elect(first)
                first.drop_connections()

        threads = [threading.Thread(target=each) for each in (*[load] * 6, pay, faults)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()
            client.close()


@pytest.mark.usefixtures("bad_times")
@pytest.mark.parametrize("expression", expressions(DASHBOARD))
def test_each_expression_of_the_dashboard_returns_data(expression: str, scraping: Prometheus) -> None:
    assert "$" not in expression
    answer = scraping.wait_for(expression, lambda answer: any(each["value"][1] != "NaN" for each in answer))

    assert len({json.dumps(each["metric"], sort_keys=True) for each in answer}) == len(answer)


@pytest.mark.usefixtures("bad_times")
def test_the_rules_are_evaluated_without_an_error(scraping: Prometheus) -> None:
    # They aren't there for long enough to be more than pending.
    for alert in ("MongoDBCommandsFail", "MongoDBServerSelectionsFail"):
        scraping.wait_for(f'ALERTS{{alertname="{alert}", alertstate="pending"}}')

    names = re.findall(r"alert: (\w+)", RULES.read_text())
    assert {rule["name"]: rule["health"] for rule in scraping.rules()} == dict.fromkeys(names, "ok")


@pytest.mark.usefixtures("bad_times", "prometheus")
def test_promtool_objects_to_nothing_but_two_names(exposed: Exposed) -> None:
    told: list[str] = []

    def has_all() -> bool:
        told.append(exposed.text())
        return all(name in told[-1] for name in MEASURED)

    until(has_all)
    checked = promtool("check", "metrics", text=told[-1])

    # The first name is the semantic conventions', and the second one follows it.
    assert sorted(line.partition(" ")[0] for line in checked.stdout.splitlines()) == [
        "db_client_connection_count",
        "mongodb_client_server_count",
    ]
    assert checked.stdout.count('should not have "_count" suffix') == 2


def test_what_is_measured_is_shown() -> None:
    shown = DASHBOARD.read_text()

    assert {name for name in MEASURED if name not in shown} == {"db_client_connection_idle_min"}
