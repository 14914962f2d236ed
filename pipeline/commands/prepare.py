"""`vlsi prepare`: make the models and data of an experiment that brings its own."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline import screen
from pipeline.commands import EXIT_CODES, Exit, Overrides, end_stopped, err, out
from pipeline.session import Session

EPILOG = "Then: [bold]vlsi run[/]. " + EXIT_CODES


def prepare(overrides: Overrides = None) -> None:
    """Make the models and data of an experiment that brings its own (digits and easy-vqa do)."""
    session = Session.open_preparation(overrides or [])
    decisions = session.decide()
    screen.show_decisions(out, decisions)
    try:
        outcome = session.execute(decisions, err)
    except KeyboardInterrupt:
        end_stopped(session.command("prepare"))
    screen.show_failures(err, outcome)
    if outcome.failed:
        raise typer.Exit(Exit.FAILED)
    screen.show_files(out, {"models and data": Path(session.experiment.prepared)})
    screen.show_next(out, {session.command("run"): "distil the teacher into the small backbone"})
