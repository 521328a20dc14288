"""The panels of the dashboard, and what Prometheus answers to them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DASHBOARD: Final = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "mongodb-client.json"

SHOWN: Final = (
    "Commands per second, by operation",
    "Servers by type",
    "Failed heartbeats per second",
    "Server selections that waited or failed",
    "Wait for a server, p95",
    "Pools in use",
    "Requests that wait for a connection",
    "Wait for a connection",
)


@dataclass(frozen=True)
class Panel:
    """A panel of lines.

    Attributes:
        title: Its title.
        unit: Grafana's name of its unit.
        targets: The expression and the legend's format of each of its queries.
    """

    title: str
    unit: str
    targets: tuple[tuple[str, str], ...]


def panel(title: str) -> Panel:
    """The panel of this title.

    Raises:
        LookupError: The dashboard has none.
    """
    for each in json.loads(DASHBOARD.read_text())["panels"]:
        if each["title"] == title and each["type"] == "timeseries":
            targets = tuple((target["expr"], target["legendFormat"]) for target in each["targets"])
            return Panel(title, each["fieldConfig"]["defaults"]["unit"], targets)
    raise LookupError(f"the dashboard has no panel of lines {title!r}")


def resolved(expression: str, rate_interval: str) -> str:
    """An expression with Grafana's variables replaced: all jobs, all pools."""
    return re.sub(r"\$(?:job|pool)\b", ".*", expression.replace("$__rate_interval", rate_interval))


def legend(template: str, labels: dict[str, str]) -> str:
    """What the legend says of a series; of a label that it hasn't, nothing."""
    return " ".join(re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template).split())


def line(series: dict[str, Any], times: Sequence[float]) -> Iterator[float]:
    """The values of a series of a range query at these times; NaN where it has none."""
    values = {round(float(time), 3): float(value) for time, value in series["values"]}
    return (values.get(round(time, 3), math.nan) for time in times)


def told(value: float, unit: str) -> str:
    """A value in a panel's unit, as on an axis."""
    if unit == "s":
        return f"{value * 1000:g} ms" if 0 < abs(value) < 1 else f"{value:g} s"
    if unit == "percentunit":
        return f"{value * 100:g} %"
    return f"{value:g}{ {'reqps': ' req/s', 'cps': ' c/s', 'short': ''}[unit] }"
