"""`vlsi push` and `vlsi pull`: copy runs between stores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipeline.commands import EXIT_CODES, err, out
from pipeline.config import ConfigError, load
from pipeline.experiment import Experiment
from pipeline.history import RunRecord
from pipeline.screen import make_table
from pipeline.transfer import Depot, Told, Transfer, plan_transfer, send, send_record
from stages.contract.place import absolute, place_of

PUSH_EPILOG = (
    "Try: [bold]vlsi push s3://bucket/vlsi --dry-run[/] · [bold]vlsi push /mnt/vlsi digits~1[/]. " + EXIT_CODES
)
PULL_EPILOG = "Try: [bold]vlsi pull s3://bucket/vlsi experiment=digits[/]. Then: [bold]vlsi status[/]. " + EXIT_CODES

OtherStore = Annotated[str, typer.Argument(metavar="STORE", help="Another store: a folder, s3://… or gs://…")]
Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN|KEY=VALUE",
        help="Runs, else the last one of the experiment, which experiment=NAME chooses; store=PLACE is this store.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be copied, and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was copied as JSON.")]


def push(store: OtherStore, runs: Runs = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Copy runs to another store: records, artifacts, and the models and data that `vlsi prepare` made for them.

    What is there is not copied again; a copy that was interrupted goes on.
    """
    experiment, names = _parse(runs or [])
    _copy(_own(experiment), _other(store), experiment, names, dry_run=dry_run, as_json=as_json)


def pull(store: OtherStore, runs: Runs = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Copy runs from another store: records, artifacts, and the models and data that `vlsi prepare` made for them.

    What is there is not copied again; a copy that was interrupted goes on.
    """
    experiment, names = _parse(runs or [])
    _copy(_other(store), _own(experiment), experiment, names, dry_run=dry_run, as_json=as_json)


def _parse(arguments: Sequence[str]) -> tuple[Experiment, list[str]]:
    """The experiment, and the names of runs."""
    overrides = [argument for argument in arguments if "=" in argument or argument.startswith("~")]
    return load(overrides).main, [argument for argument in arguments if argument not in overrides]


def _own(experiment: Experiment) -> Depot:
    return Depot(place_of(experiment.store), {experiment.name: Path(experiment.prepared)})


def _other(store: str) -> Depot:
    try:
        return Depot(place_of(absolute(store)))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _copy(
    source: Depot, target: Depot, experiment: Experiment, names: Sequence[str], *, dry_run: bool, as_json: bool
) -> None:
    if source.store == target.store:
        raise ConfigError(f"{source.store} is this store; name another one")
    transfer = plan_transfer(source, target, _records(source, experiment.name, names))
    if not as_json:
        _show(transfer, target)
    if not dry_run:
        with _progress(transfer) as told:
            for parcel in transfer.waiting:
                send(parcel, told)
        for record in transfer.records:
            send_record(record, target.history)
    if as_json:
        out.print_json(json.dumps(_to_json(transfer, source, target, dry_run=dry_run)))
    elif not dry_run:
        runs = ", ".join(record.id for record in transfer.records)
        out.print(f"{runs}: all is at {escape(str(target.store))}", soft_wrap=True, highlight=False)


def _records(source: Depot, experiment: str, names: Sequence[str]) -> list[RunRecord]:
    """The runs asked for, each once."""
    if names:
        return list({record.id: record for record in map(source.history.find, names)}.values())
    last = source.history.last(experiment)
    if last is None:
        known = ", ".join(source.history.experiments()) or "none"
        raise ConfigError(f"{source.store} has no run of {experiment}; experiments that have runs there: {known}")
    return [last]


@contextmanager
def _progress(transfer: Transfer) -> Iterator[Told]:
    """A bar for all bytes, where somebody sees it move."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("copying", total=sum(parcel.bytes for parcel in transfer.waiting))
        yield lambda count: progress.advance(task, count)


def _show(transfer: Transfer, target: Depot) -> None:
    table = make_table("artifact", "size", "")
    table.columns[1].justify = "right"
    for parcel in transfer.parcels:
        state = "[green]there" if parcel.name in transfer.there else "[yellow]copy"
        table.add_row(escape(parcel.name), decimal(parcel.bytes), state)
    for name in transfer.missing:
        table.add_row(escape(name), "", "[red]not made")
    out.print(table)
    size = decimal(sum(parcel.bytes for parcel in transfer.waiting))
    to = escape(str(target.store))
    out.print(f"{len(transfer.waiting)} to copy to {to}, {size} in all", soft_wrap=True, highlight=False)


def _to_json(transfer: Transfer, source: Depot, target: Depot, *, dry_run: bool) -> dict[str, object]:
    artifacts = [
        {
            "name": parcel.name,
            "place": str(parcel.place),
            "bytes": parcel.bytes,
            "status": "there" if parcel.name in transfer.there else "to copy" if dry_run else "copied",
        }
        for parcel in transfer.parcels
    ]
    return {
        "from": str(source.store),
        "to": str(target.store),
        "dry_run": dry_run,
        "bytes": sum(parcel.bytes for parcel in transfer.waiting),
        "runs": [record.id for record in transfer.records],
        "artifacts": artifacts,
        "missing": list(transfer.missing),
    }
