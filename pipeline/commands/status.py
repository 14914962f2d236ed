"""`vlsi status`: what is up to date and what would run."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline import screen
from pipeline.commands import EXIT_CODES, AsJson, Exit, Overrides, out, print_json
from pipeline.documents import status_document
from pipeline.session import Session

EPILOG = "Then: [bold]vlsi run[/], or [bold]vlsi explain STAGE[/]. " + EXIT_CODES


def status(
    overrides: Overrides = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with 1 if anything would run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is up to date and what would run; runs nothing."""
    session = Session.open(overrides or [])
    decisions = session.decide()
    stale = sum(not decision.reused for decision in decisions)
    if as_json:
        print_json(status_document(session.experiment.name, decisions))
    else:
        screen.show_decisions(out, decisions)
        then = f"{stale} of {len(decisions)} would run: {session.command('run')}"
        out.print(then if stale else "Everything is up to date.", markup=False, highlight=False, soft_wrap=True)
    if exit_code and stale:
        raise typer.Exit(Exit.FAILED)
