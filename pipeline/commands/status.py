"""`vlsi status`: what is up to date and what would run."""

from __future__ import annotations

from pipeline import screen
from pipeline.commands import EXIT_CODES, Overrides, out
from pipeline.session import Session

EPILOG = "Then: [bold]vlsi run[/], or [bold]vlsi explain STAGE[/]. " + EXIT_CODES


def status(overrides: Overrides = None) -> None:
    """Say what is up to date and what would run; runs nothing."""
    session = Session.open(overrides or [])
    decisions = session.decide()
    screen.show_decisions(out, decisions)
    stale = sum(not decision.reused for decision in decisions)
    out.print(
        f"{stale} of {len(decisions)} would run: {session.command('run')}" if stale else "Everything is up to date."
    )
