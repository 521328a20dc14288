"""What the pictures are made with, as far as it runs without a browser."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from pictures import files, needs, panels
from pictures.__main__ import main
from tests.servers.processes import Missing

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("title", panels.SHOWN)
def test_each_panel_that_is_drawn_is_in_the_dashboard(title: str) -> None:
    panel = panels.panel(title)

    assert panel.targets
    for expression, legend in panel.targets:
        assert "$" not in panels.resolved(expression, "4s")
        assert legend
    assert panels.told(0, panel.unit).startswith("0")


def test_a_panel_that_is_not_there_is_told() -> None:
    with pytest.raises(LookupError, match="no panel of lines 'Commands'"):
        panels.panel("Commands")  # a row


def test_an_expression_is_asked_for_all_jobs_and_pools() -> None:
    expression = 'sum(rate(waits{job=~"$job", pool=~"$pool"}[$__rate_interval]))'

    assert panels.resolved(expression, "4s") == 'sum(rate(waits{job=~".*", pool=~".*"}[4s]))'


def test_a_legend_leaves_out_what_a_series_has_not() -> None:
    assert panels.legend("p99 {{job}} {{pool}} {{job}}", {"pool": "db1:27017"}) == "p99 db1:27017"


def test_a_line_has_a_gap_where_there_is_no_value() -> None:
    values = list(panels.line({"values": [[10.25, "1.5"], [12.25, "NaN"]]}, [10.25, 11.25, 12.25]))

    assert values[0] == 1.5
    assert all(map(math.isnan, values[1:]))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.15, "s", "150 ms"),
        (0, "s", "0 s"),
        (2, "s", "2 s"),
        (0.25, "percentunit", "25 %"),
        (45, "reqps", "45 req/s"),
        (1.5, "cps", "1.5 c/s"),
        (1000, "short", "1000"),
    ],
)
def test_a_value_is_told_in_its_unit(value: float, unit: str, text: str) -> None:
    assert panels.told(value, unit) == text


def test_what_is_missing_is_told_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAEGER_UI", raising=False)

    chromium, pngquant, page = needs.missing([needs.chromium, needs.pngquant, needs.jaeger_ui])

    for name, told in (("chromium", chromium), ("pngquant", pngquant)):
        assert told.startswith(f"{name} is not installed: ")
        assert told.endswith(f"apt-get install --no-install-recommends {name}")
    assert page.startswith("JAEGER_UI is not set: ")


def test_a_folder_without_jaegers_page_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAEGER_UI", str(tmp_path))
    with pytest.raises(Missing, match="is not Jaeger's built page"):
        needs.jaeger_ui()

    (tmp_path / "index.html").touch()
    assert needs.jaeger_ui() == tmp_path


@pytest.mark.parametrize(("size", "is_kept"), [(files.MOST_BYTES, True), (files.MOST_BYTES + 1, False)])
def test_a_picture_that_is_too_large_is_not_kept(
    size: int, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pngquant"  # what it gives back is that large
    program.write_text(f"#!/bin/sh\nexec /usr/bin/head -c {size} /dev/zero\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(files, "FOLDER", tmp_path / "pictures")

    if is_kept:
        assert files.keep("outage", b"").stat().st_size == size
    else:
        with pytest.raises(files.TooLarge, match=r"outage\.png has"):
            files.keep("outage", b"")
        assert not (tmp_path / "pictures").exists()


def test_a_picture_that_nobody_makes_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["outages"]) == 2
    assert capsys.readouterr().err == "There is no outages: traces, dashboard, demo are.\n"
