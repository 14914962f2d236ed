"""What people see while stages run, in a terminal and in a log file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.executors import StageFailed
from pipeline.graph import Node
from pipeline.progress import Bars, Lines, describe, make_display
from stages.contract.settings import CaptureSettings

LINE = {"step": 3, "total": 40, "unit": "steps", "loss": 1.25, "samples_per_second": 99.6}


@pytest.fixture
def node() -> Node:
    """A node that nothing is known of but its name."""
    return Node("capture@[bold]", "capture", CaptureSettings(), {}, Path("/store"))


def test_a_line_says_where_the_stage_is() -> None:
    assert describe(LINE) == "3/40 steps · loss 1.250 · 100 samples/s"
    assert describe({"step": 3, "total": 9, "unit": "samples", "loss": "nan"}) == "3/9 samples"


@pytest.mark.parametrize(("terminal", "display"), [(True, Bars), (False, Lines)])
def test_bars_are_for_terminals(terminal: bool, display: type) -> None:
    assert isinstance(make_display(Console(file=io.StringIO(), force_terminal=terminal)), display)


def test_bars_come_and_go(node: Node) -> None:
    file = io.StringIO()
    with Bars(Console(file=file, force_terminal=True, width=160)) as bars:
        bars.started(node)
        bars.line(node, LINE)
        bars._progress.refresh()
        bars.failed(node, StageFailed("no"))
    assert "capture@[bold]" in file.getvalue()
    assert "loss 1.250" in file.getvalue()


def test_a_log_file_gets_few_lines(node: Node) -> None:
    file = io.StringIO()
    with Lines(Console(file=file, width=40), seconds=1000) as lines:
        lines.started(node)
        for _ in range(100):
            lines.line(node, LINE)
        lines.failed(node, StageFailed("no"))
    assert file.getvalue().splitlines() == ["start   capture@[bold]", "failed  capture@[bold]"]


def test_a_log_file_hears_of_slow_stages(node: Node) -> None:
    file = io.StringIO()
    with Lines(Console(file=file, width=40), seconds=0) as lines:
        lines.started(node)
        lines.line(node, LINE)
    assert file.getvalue().splitlines()[1] == "at      capture@[bold]  3/40 steps · loss 1.250 · 100 samples/s"
