"""Panels of the dashboard, drawn from what a Prometheus answers to their own expressions."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from pictures.files import keep
from pictures.load import day
from pictures.needs import pngquant
from pictures.panels import SHOWN, Panel, legend, line, panel, resolved, told
from tests.exposition import Exposed
from tests.servers.processes import Prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

NEEDS: Final = (pngquant,)

# In seconds. Grafana's $__rate_interval is four times the interval.
INTERVAL: Final = 1
RATE_INTERVAL: Final = f"{4 * INTERVAL}s"

COLOURS: Final = ("#56A64B", "#E0A800", "#3274D9", "#E0571B", "#C4162A", "#8F3BB8", "#37872D", "#806EB7")
GREY: Final = "#5A5F66"


def pictures() -> Iterator[Path]:
    """Make the picture."""
    with Exposed() as exposed, Prometheus({"shop": exposed.target}, interval=INTERVAL) as prometheus:
        prometheus.wait_for("up == 1")  # the first time it takes some seconds
        since = time.time()
        day(exposed.provider)
        until = time.time()
        yield keep("dashboard", drawing(prometheus, since, until))


def drawing(prometheus: Prometheus, since: float, until: float) -> bytes:
    """The panels, two in a row."""
    times = [since + second for second in range(0, int(until - since), INTERVAL)]
    figure = Figure(figsize=(9, 12.8), dpi=170, facecolor="#F4F5F5")
    grid = figure.subplots(len(SHOWN) // 2, 2)
    figure.subplots_adjust(left=0.075, right=0.98, top=0.974, bottom=0.068, wspace=0.2, hspace=0.55)
    for axes, title in zip(grid.flat, SHOWN, strict=True):
        draw(axes, panel(title), prometheus, times)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def draw(axes: Axes, panel: Panel, prometheus: Prometheus, times: Sequence[float]) -> None:
    """One panel with its title, its unit and its legend."""
    elapsed = [time - times[0] for time in times]
    colours = iter(COLOURS)
    for expression, template in panel.targets:
        answer = prometheus.query_range(resolved(expression, RATE_INTERVAL), times[0], times[-1], INTERVAL)
        for series in sorted(answer, key=lambda series: legend(template, series["metric"])):
            colour = next(colours)
            values = list(line(series, times))
            axes.plot(elapsed, values, color=colour, linewidth=1.2, label=legend(template, series["metric"]))
            axes.fill_between(elapsed, values, color=colour, alpha=0.1, linewidth=0)
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold", color="#24292E")
    axes.set_xlim(0, elapsed[-1])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MultipleLocator(10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda second, _: f"{int(second) // 60}:{int(second) % 60:02}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=panel.unit == "short"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value, panel.unit)))
    axes.tick_params(length=0, pad=6, labelsize=9, labelcolor=GREY)
    axes.grid(color="#E4E7EB", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color("#D8D9DA")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.11),
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=GREY,
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
