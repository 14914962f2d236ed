"""`vlsi report`: one page of pictures about what is up to date, about a run, or about what differs between several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import screen
from pipeline.commands import EXIT_CODES, out, split
from pipeline.config import load
from pipeline.history import History
from pipeline.reports.runs import write_runs_report
from pipeline.results import collect_scores
from pipeline.session import Session
from pipeline.store import Store

EPILOG = (
    "Try: [bold]vlsi report --output report.html[/] · [bold]vlsi report 3f2a[/] (one run) · "
    "[bold]vlsi report digits~1 digits[/] (two runs, differences first). " + EXIT_CODES
)


def report(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]... [KEY=VALUE]...",
            help="Runs: an id or the beginning of one, an experiment (its last run), or either with ~N: the N-th "
            "before. None at all is what is up to date. KEY=VALUE changes the configuration.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write, instead of one in the store.")] = None,
) -> None:
    """Write one HTML file with scores, what layers say, how they were matched, curves and costs."""
    names, overrides = split(arguments)
    path = output and output.absolute()
    if names:
        store = Store(load(overrides).main.store)
        screen.show_files(out, {"report": write_runs_report(store, History(store.artifacts), names, path)})
        return
    session = Session.open(overrides)
    written = session.write_report(path)
    screen.show_scores(out, collect_scores(session.graph, session.artifacts()))
    screen.show_files(out, {"report": written})
