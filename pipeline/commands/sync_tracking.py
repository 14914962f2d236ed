"""`vlsi sync-tracking`: bring MLflow to what is recorded."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.commands import err, out
from pipeline.config import load
from pipeline.history import History, RunRecord
from pipeline.screen import make_table
from pipeline.store import Store
from pipeline.tracking import tracking_uri
from pipeline.tracking.sync import sync

EPILOG = (
    "Try: [bold]vlsi sync-tracking[/] · [bold]vlsi sync-tracking digits~1[/]. "
    "Exit codes: 0 MLflow has everything · 1 it does not work · 2 there is no such run."
)
_SHOWN = {
    "brought": "[green]brought there",
    "whole": "[dim]was there",
    "running": "[yellow]goes on; its own process brings it",
    "failed": "[red]failed",
}


def sync_tracking(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [KEY=VALUE]",
            help="Runs by id or experiment, as `vlsi runs` shows them; else all that MLflow lacks.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also runs that had tracking turned off.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Bring MLflow to what is recorded of runs that it lacks, because it was away, slow or full."""
    names = [argument for argument in arguments or [] if "=" not in argument]
    store = Store(load([argument for argument in arguments or [] if "=" in argument]).main.store)
    results = list(sync(_chosen(History(store.artifacts), names, everything), store))
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], indent=2))
    else:
        table = make_table("run", "experiment", "", "")
        for result in results:
            table.add_row(result.run, escape(result.experiment), _SHOWN[result.result], escape(result.reason or ""))
        out.print(table if results else "There are no runs to bring.")
    if any(result.result == "failed" for result in results):
        err.print(f"MLflow at {tracking_uri(store)} does not work; everything is kept, try again later.", markup=False)
        raise typer.Exit(1)


def _chosen(history: History, names: list[str], everything: bool) -> list[RunRecord]:
    """Oldest first. Runs that were named are brought even if their configuration turned tracking off."""
    if names:
        return sorted((history.find(name) for name in names), key=lambda record: record.started)
    return [record for record in history.records() if everything or record.configuration["tracking"]["enabled"]]
