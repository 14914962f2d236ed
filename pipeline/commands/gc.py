"""`vlsi gc`: delete what no run refers to."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import track

from pipeline.commands import EXIT_CODES, Overrides, err, out
from pipeline.config import load
from pipeline.garbage import Garbage, Waste, delete, find_garbage
from pipeline.history import History
from pipeline.screen import make_table
from stages.contract.place import place_of

EPILOG = (
    "Try: [bold]vlsi gc[/] · [bold]vlsi gc --keep-last 3[/] · "
    "[bold]vlsi gc --keep-runs digits --keep-runs 1f3a --delete[/]. " + EXIT_CODES
)
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def gc(
    overrides: Overrides = None,
    keep_runs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN", help="Keep this run and forget the others; may be given again.", show_default=False
        ),
    ] = None,
    keep_last: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Keep the last N runs of each experiment.", show_default=False),
    ] = None,
    do_delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed; without it nothing is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what goes as JSON.")] = False,
) -> None:
    """List the artifacts and unfinished work that no run refers to, and with --delete delete them.

    All runs are kept, unless you say which are. What is being made stays, and so do prepared models and data.
    """
    store = place_of(load(overrides or []).main.store)
    history = History(store)
    garbage = find_garbage(store, history, keep_runs or [], keep_last)
    if not as_json:
        _show(garbage)
    gone = _delete(garbage, history) if do_delete else []
    if as_json:
        out.print_json(json.dumps(_to_json(str(store), garbage, gone, deleted=do_delete)))
    elif do_delete:
        _show_deleted(garbage, gone)
    elif garbage.waste or garbage.dropped:
        out.print("Nothing was deleted; the same command with --delete deletes what is listed.", highlight=False)


def _delete(garbage: Garbage, history: History) -> list[Waste]:
    steps, total = delete(garbage, history), len(garbage.waste)
    return list(track(steps, "Deleting", total, console=err, transient=True, disable=not err.is_terminal))


def _show(garbage: Garbage) -> None:
    for run in garbage.dropped:
        out.print(f"forget run {run.id} of {escape(run.experiment)}", highlight=False)
    if garbage.held:
        out.print(f"{len(garbage.held)} that no run refers to are being made and stay", highlight=False)
    if not garbage.waste:
        out.print("Kept runs refer to every artifact there is." if garbage.kept else "There is nothing to delete.")
        return
    table = make_table("artifact", "", "size", "age", "why")
    table.columns[2].justify = table.columns[3].justify = "right"
    for waste in garbage.waste:
        name = f"{waste.place.parent.name}/{waste.place.name}"
        state = "" if waste.committed else "[yellow]unfinished"
        table.add_row(name, state, decimal(waste.bytes), _age(waste.modified), f"[dim]{escape(waste.why)}")
    out.print(table)
    out.print(f"{len(garbage.waste)} may go, {decimal(garbage.bytes)} in all.", highlight=False)


def _show_deleted(garbage: Garbage, gone: list[Waste]) -> None:
    freed = decimal(sum(waste.bytes for waste in gone))
    stays = len(garbage.waste) - len(gone)
    changed = f"; {stays} changed meanwhile and stay" if stays else ""
    out.print(f"Deleted {len(gone)}, {freed} are free again{changed}.", highlight=False)


def _age(modified: float | None) -> str:
    if modified is None:
        return ""
    seconds = max(time.time() - modified, 0)
    return next((f"{seconds / size:.0f} {unit}" for size, unit in _UNITS if seconds >= size), "now")


def _to_json(store: str, garbage: Garbage, gone: list[Waste], *, deleted: bool) -> dict[str, object]:
    places = {waste.place for waste in gone}
    return {
        "store": store,
        "deleted": deleted,
        "bytes": sum(waste.bytes for waste in gone) if deleted else garbage.bytes,
        "artifacts": [waste.to_json() for waste in garbage.waste if not deleted or waste.place in places],
        "runs": [run.id for run in garbage.dropped],
        "held": [str(place) for place in garbage.held],
    }
