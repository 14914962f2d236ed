"""`vlsi explain`: why a stage would run or be reused."""

from __future__ import annotations

from pipeline import screen
from pipeline.commands import EXIT_CODES, AsJson, Overrides, StageName, out, print_json
from pipeline.documents import explanation_document
from pipeline.session import Session

EPILOG = "Try: [bold]vlsi explain interaction interaction.schedule.learning_rate=5e-4[/]. " + EXIT_CODES


def explain(stage: StageName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say why a stage would run or be reused, and what its fingerprint is made of."""
    session = Session.open(overrides or [])
    keys = {node.key for node in session.graph.named(stage)}
    decisions = [decision for decision in session.decide() if decision.node.key in keys]
    if as_json:
        print_json([explanation_document(decision) for decision in decisions])
        return
    for decision in decisions:
        screen.show_explanation(out, decision)
