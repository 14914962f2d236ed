"""`vlsi job`: the job of one stage, to run it elsewhere."""

from __future__ import annotations

import typer

from pipeline.commands import EXIT_CODES, Overrides, StageName
from pipeline.session import Session

EPILOG = (
    "Then: [bold]vlsi job interaction > job.json[/] and "
    "[bold]python -m stages.interaction --job job.json[/]. " + EXIT_CODES
)


def job(stage: StageName, overrides: Overrides = None) -> None:
    """Print the job of one stage, to run it by hand or to submit it elsewhere."""
    session = Session.open(overrides or [])
    node = next((node for node in session.graph.nodes if node.key == stage), session.graph.named(stage)[0])
    resources = session.experiment.executor.resources_of(node.key)
    typer.echo(node.job(resources).model_dump_json(indent=2))
