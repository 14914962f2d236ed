"""`vlsi report`: the report on what is up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import screen
from pipeline.commands import EXIT_CODES, Overrides, out
from pipeline.results import collect_scores
from pipeline.session import Session

EPILOG = "Try: [bold]vlsi report --output report.html[/]. " + EXIT_CODES


def report(
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="The file to write, instead of one in the store.")] = None,
) -> None:
    """Write one HTML file with scores, curves and layers of what is up to date."""
    session = Session.open(overrides or [])
    path = session.write_report(output and output.absolute())
    screen.show_scores(out, collect_scores(session.graph, session.artifacts()))
    screen.show_files(out, {"report": path})
