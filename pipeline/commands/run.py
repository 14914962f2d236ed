"""`vlsi run`: run what is missing or outdated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline import screen
from pipeline.commands import EXIT_CODES, AsJson, Exit, Overrides, end_stopped, err, out, print_json
from pipeline.decisions import Decision, Selection
from pipeline.documents import run_document, status_document
from pipeline.experiment import MAIN
from pipeline.graph import Node
from pipeline.results import collect_scores
from pipeline.runner import Outcome
from pipeline.session import Session
from pipeline.tracking import tracking_uri
from stages.contract.place import Place, place_of

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
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="After a failure, go on with what does not depend on it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and why, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run every stage whose result is missing or outdated, and show the scores."""
    session = Session.open(overrides or [])
    selection = Selection(only, start, until, force)
    decisions = session.decide(selection)
    if not as_json:
        screen.show_decisions(out, decisions)
    elif dry_run:
        print_json(status_document(session.experiment.name, decisions))
    if dry_run:
        return
    go_on = session.command("run", *_options(selection, keep_going))
    try:
        outcome = session.execute(decisions, err, keep_going=keep_going)
    except KeyboardInterrupt:
        if as_json:
            _print_run(session, decisions, Outcome())
        end_stopped(go_on)
    if as_json:
        _print_run(session, decisions, outcome)
    else:
        screen.show_scores(out, collect_scores(session.graph, outcome.artifacts))
        screen.show_times(out, [decision.node for decision in decisions], outcome)
    if outcome.failed:
        screen.show_failures(err, outcome)
        err.print(f"Everything else is kept. Go on with: {go_on}", markup=False, soft_wrap=True)
        raise typer.Exit(Exit.FAILED)
    if not as_json:
        screen.show_files(out, _places(session))
        screen.show_next(out, _ideas(session))


def _print_run(session: Session, decisions: Sequence[Decision], outcome: Outcome) -> None:
    record = session.history.last(session.experiment.name)
    assert record is not None, "a run with something to do is recorded, and one with nothing to do was before"
    scores = collect_scores(session.graph, outcome.artifacts)
    places = {name: place for name, place in _places(session).items() if place.exists()}
    print_json(run_document(record, decisions, scores, places))


def _options(selection: Selection, keep_going: bool) -> list[str]:
    """What of the options has to be said again to go on; what was forced is there, or was not begun."""
    parts = {"--only": selection.only, "--from": selection.start, "--until": selection.until}
    options = [f"{option}={stage}" for option, stage in parts.items() if stage]
    return [*options, "--keep-going"] if keep_going else options


def _places(session: Session) -> dict[str, Place]:
    student = session.graph.targets[MAIN].inputs["model"]
    return {
        "student": student.output if isinstance(student, Node) else place_of(student.place),
        "report": session.store.report_file(session.experiment.name),
        "artifacts": session.store.artifacts,
        "runs": session.store.root / "mlflow.db",
    }


def _ideas(session: Session) -> dict[str, str]:
    name = f"experiment={session.experiment.name}"
    return {
        f"vlsi run {name} interaction.matching.strategy=bottom-1": "always learn from the nearest teacher layer; "
        "reruns interaction and what follows it",
        f"vlsi diff {session.experiment.name}": "then: what that changed",
        f"mlflow ui --backend-store-uri {tracking_uri(session.store)}": "compare runs, curves and figures",
    }
