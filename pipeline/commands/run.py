"""`vlsi run`: run what is missing or outdated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import screen
from pipeline.commands import EXIT_CODES, Overrides, err, out
from pipeline.decisions import Selection
from pipeline.experiment import MAIN
from pipeline.graph import Node
from pipeline.results import collect_scores
from pipeline.session import Session
from pipeline.tracking import tracking_uri

EPILOG = (
    "Try: [bold]vlsi run --dry-run[/] · [bold]vlsi run interaction.schedule.learning_rate=5e-4[/] · "
    "[bold]vlsi run --force interaction[/]. " + EXIT_CODES
)


def run(
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Run this stage alone.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Run this stage and what follows.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Run up to this stage.")] = None,
    force: Annotated[
        str | None, typer.Option(metavar="[STAGE]", help="Run again although nothing changed; alone: everything.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and why, and stop.")] = False,
) -> None:
    """Run every stage whose result is missing or outdated, and show the scores."""
    session = Session.open(overrides or [])
    decisions = session.decide(Selection(only, start, until, force))
    screen.show_decisions(out, decisions)
    if dry_run:
        return
    outcome = session.execute(decisions, err)
    screen.show_scores(out, collect_scores(session.graph, outcome.artifacts))
    screen.show_times(out, [decision.node for decision in decisions], outcome)
    if outcome.failed:
        screen.show_failures(err, outcome)
        err.print(f"Everything else is kept. Go on with: {session.command('run')}", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    _show_files(session)
    name = f"experiment={session.experiment.name}"
    screen.show_next(
        out,
        {
            f"vlsi run {name} interaction.matching.strategy=bottom-1": "always learn from the nearest teacher layer; "
            "reruns interaction and what follows it",
            f"mlflow ui --backend-store-uri {tracking_uri(session.store)}": "compare runs, curves and figures",
        },
    )


def _show_files(session: Session) -> None:
    student = session.graph.targets[MAIN].inputs["model"]
    files = {
        "student": student.output if isinstance(student, Node) else Path(student.place),
        "report": session.store.report_file(session.experiment.name),
        "artifacts": session.store.artifacts,
        "runs": session.store.root / "mlflow.db",
    }
    screen.show_files(out, files)
