"""What `vlsi sweep` prints: what has to run, and the tables at the end."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.decisions import Decision
from pipeline.screen import make_table
from pipeline.sweeps.results import Results
from pipeline.sweeps.statistics import CONFIDENCE, Difference, Mean
from stages.contract import STAGES

_GAP = "–"


def show_work(console: Console, decisions: Sequence[Decision]) -> None:
    """How many nodes of every stage are reused and how many run."""
    table = make_table("stage", "reused", "run")
    for stage in STAGES:
        of_stage = [decision.reused for decision in decisions if decision.node.stage == stage]
        if of_stage:
            table.add_row(stage, f"[green]{sum(of_stage)}", f"[yellow]{len(of_stage) - sum(of_stage)}")
    _print(console, table)


def show_results(console: Console, results: Results, *, by_task: bool = False) -> None:
    """Mean and standard error of every point, and the difference to the baseline; gaps are named."""
    if results.grid():
        _print(console, _grid(results))
    _print(console, _differences(results))
    console.print(
        f"[dim]Answered exactly right, %; differences to {escape(results.sweep.baseline)}, paired by seed.[/]\n",
        highlight=False,
    )
    if by_task:
        _print(console, _by_task(results))
    if results.missing:
        named = ", ".join(f"{point}.{seed}" for point, seed in results.missing)
        console.print(f"[yellow]missing[/]  {escape(named)}", highlight=False)


def _differences(results: Results) -> Table:
    table = make_table("", "overall", "n", "difference", f"{CONFIDENCE:.0%}", "p", "pairs")
    table.title = escape(results.sweep.title)
    for row in results.rows():
        count = str(row.overall.count) if row.overall else "0"
        is_baseline = row.point == results.sweep.baseline
        cells = [_spell_mean(row.overall), count, *_spell_difference(row.difference)]
        table.add_row(escape(row.point), *cells, style="bold" if is_baseline else "")
    return table


def _by_task(results: Results) -> Table:
    """Standard errors stand below their means."""
    kinds = results.kinds
    table = make_table("", *(escape(kind.replace("_", " ").replace("-", " ")) for kind in kinds))
    table.title = "By kind of question"
    for column in table.columns[1:]:
        column.vertical = "bottom"
        column.width = max(len("±10.0"), *(len(word) for word in str(column.header).split()))
    for row in results.rows():
        table.add_row(escape(row.point), *(_spell_mean(row.means.get(kind), "\n[dim]±") for kind in kinds))
    return table


def _grid(results: Results) -> Table:
    row_axis, column_axis = results.sweep.axes
    grid = results.grid()
    table = make_table(escape(f"{row_axis} \\ {column_axis}"), *map(escape, results.sweep.axes[column_axis]))
    table.title = escape(results.sweep.title)
    for name, cells in grid.items():
        table.add_row(escape(name), *map(_spell_mean, cells.values()))
    return table


def _print(console: Console, table: Table) -> None:
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)


def _spell_mean(mean: Mean | None, between: str = " ± ") -> str:
    if mean is None:
        return _GAP
    error = "" if mean.error is None else f"{between}{100 * mean.error:.1f}"
    return f"{100 * mean.value:.1f}{error}"


def _spell_difference(difference: Difference | None) -> tuple[str, str, str, str]:
    """Value, interval, p and the number of pairs."""
    if difference is None:
        return "", "", "", ""
    interval = p = ""
    if difference.low is not None and difference.high is not None:
        interval = f"{100 * difference.low:+.1f} … {100 * difference.high:+.1f}"
    if difference.p is not None:
        p = "<.001" if difference.p < 0.001 else f"{difference.p:.3f}".removeprefix("0")
    return f"{100 * difference.value:+.1f}", interval, p, str(difference.count)
