"""`vlsi explain`: why a stage would run or be reused."""

from __future__ import annotations

from pipeline import screen
from pipeline.commands import EXIT_CODES, Overrides, StageName, out
from pipeline.session import Session

EPILOG = "Try: [bold]vlsi explain interaction interaction.schedule.learning_rate=5e-4[/]. " + EXIT_CODES


def explain(stage: StageName, overrides: Overrides = None) -> None:
    """Say why a stage would run or be reused, and what its fingerprint is made of."""
    session = Session.open(overrides or [])
    keys = {node.key for node in session.graph.named(stage)}
    for decision in session.decide():
        if decision.node.key in keys:
            screen.show_explanation(out, decision)
