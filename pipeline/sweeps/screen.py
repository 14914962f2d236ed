"""What `vlsi sweep` prints: what has to run, and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.decisions import Decision
from pipeline.screen import make_table
from pipeline.sweeps.results import Results
from pipeline.sweeps.statistics import Difference, Mean
from stages.contract import STAGES


def show_work(console: Console, decisions: Sequence[Decision]) -> None:
    """How many nodes of every stage are reused and how many run."""
    table = make_table("stage", "reused", "run")
    for stage in STAGES:
        of_stage = [decision.reused for decision in decisions if decision.node.stage == stage]
        if of_stage:
            table.add_row(stage, f"[green]{sum(of_stage)}", f"[yellow]{len(of_stage) - sum(of_stage)}")
    _align_numbers(table)
    console.print(table)


def show_results(console: Console, results: Results, *, tasks: bool = False) -> None:
    """A row for each point: mean and standard error, and the difference to the baseline."""
    kinds = results.tasks if tasks else []
    table = make_table("", *(escape(task) for task in kinds), "overall", "difference", "95 %", "p", "n")
    table.title = f"{escape(results.sweep.title)}: answered exactly right, %"
    for row in results.rows():
        cells = [_spell_mean(row.by_task.get(kind)) for kind in kinds]
        table.add_row(
            escape(row.point),
            *cells,
            _spell_mean(row.mean),
            *_spell_difference(row.difference),
            str(row.mean.count if row.mean else 0),
            style="bold" if row.point == results.sweep.baseline else "",
        )
    _align_numbers(table)
    console.print(table)


def _align_numbers(table: Table) -> None:
    for column in table.columns[1:]:
        column.justify = "right"


def _spell_mean(mean: Mean | None) -> str:
    if mean is None:
        return "–"
    error = "" if mean.error is None else f" ± {100 * mean.error:.1f}"
    return f"{100 * mean.value:.1f}{error}"


def _spell_difference(difference: Difference | None) -> tuple[str, str, str]:
    if difference is None:
        return "", "", ""
    value = f"{100 * difference.value:+.1f}"
    if difference.low is None or difference.high is None or difference.p is None:
        return value, "", ""
    return value, f"{100 * difference.low:+.1f} … {100 * difference.high:+.1f}", f"{difference.p:.3f}"
