"""`vlsi runs`: the history of a store."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.commands import EXIT_CODES, AsJson, err, out, print_json, split
from pipeline.config import ConfigError, load
from pipeline.documents import record_document
from pipeline.history import History, RunRecord
from pipeline.screen import make_table
from pipeline.store import Store

EPILOG = "Try: [bold]vlsi runs digits --limit 5[/] · [bold]vlsi diff digits[/]. " + EXIT_CODES
_COLOURS = {"finished": "green", "failed": "red", "interrupted": "red", "running": "cyan", "stopped": "yellow"}
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def runs(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT] [KEY=VALUE]...",
            help="One experiment's runs alone; store=PLACE looks into another store.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The newest N.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the runs of the store, newest first: what ran, what was reused, and how it ended."""
    names, overrides = split(arguments)
    history = History(Store(load(overrides).main.store).artifacts)
    for name in names:
        _refuse_unknown(history, name)
    records = [record for name in names or history.experiments() for record in history.records(name)]
    newest = sorted(records, key=lambda record: record.started, reverse=True)[:limit]
    for place in history.unreadable():
        err.print(f"{place} cannot be read and is left out", style="yellow", markup=False, soft_wrap=True)
    if as_json:
        print_json([record_document(record) for record in newest])
        return
    out.print(_table(newest) if newest else "No runs yet. Begin with: vlsi run")
    if len(records) > limit:
        out.print(f"[dim]{len(records) - limit} older ones: --limit {len(records)}")


def ago(seconds: float) -> str:
    """An age in one unit, as people say it: `3 h ago`."""
    unit, length = next(((unit, length) for unit, length in _UNITS if seconds >= length), _UNITS[-1])
    return f"{max(int(seconds // length), 0)} {unit} ago"


def _refuse_unknown(history: History, name: str) -> None:
    known = history.experiments()
    if name not in known:
        raise ConfigError(f"there are no runs of {name!r}; there are runs of: {', '.join(known) or 'nothing yet'}")


def _table(records: list[RunRecord]) -> Table:
    table = make_table("run", "experiment", "begun", "status", "made", "reused", "%", "overrides")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for column in table.columns[4:7]:
        column.justify = "right"
    for record in records:
        counts = Counter(stage.status for stage in record.stages.values())
        table.add_row(
            record.id,
            escape(record.experiment),
            ago(time.time() - record.started),
            f"[{_COLOURS[record.state]}]{record.state}",
            str(counts["made"]),
            str(counts["reused"]),
            "–" if record.accuracy is None else f"{100 * record.accuracy:.1f}",
            escape("\n".join(record.overrides)),
        )
    return table
