"""`vlsi diff`: what differs between two runs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commands import EXIT_CODES, AsJson, out, print_json, split
from pipeline.comparison import Comparison, NodeComparison, ScoreComparison, compare
from pipeline.config import ConfigError, load
from pipeline.documents import comparison_document
from pipeline.history import History, RunRecord
from pipeline.identity import spell
from pipeline.results import LABELS, Scores
from pipeline.screen import make_table
from pipeline.store import Store

EPILOG = (
    "Try: [bold]vlsi diff digits[/] (the last run and the one before) · [bold]vlsi diff 3f2a 9c01[/] · "
    "[bold]vlsi diff digits~3 digits[/]. " + EXIT_CODES
)


def diff(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [RUN] [KEY=VALUE]...",
            help="A run's id or the beginning of it, an experiment (its last run), or either with ~N: the N-th before. "
            "One alone is compared with the one before. store=PLACE looks into another store.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Compare two runs: configuration, the artifacts they used, scores."""
    names, overrides = split(arguments)
    if not 1 <= len(names) <= 2:
        raise ConfigError(f"name one run or two, not {len(names)}; `vlsi runs` lists them")
    store = Store(load(overrides).main.store)
    history = History(store.artifacts)
    before, after = (history.find(name) for name in (names if len(names) == 2 else (f"{names[0]}~1", names[0])))
    comparison = compare(before, after, history.records(), store.identity)
    if as_json:
        print_json(comparison_document(comparison))
    else:
        show_comparison(out, comparison)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Settings, artifacts and scores, each as a table if there is anything to say."""
    for side, record in (("before", comparison.before), ("after", comparison.after)):
        console.print(f"{side:6}  {_named(record)}", soft_wrap=True, highlight=False)
    if comparison.configuration:
        console.print(_settings(comparison))
    else:
        console.print("\nThe configuration is the same.")
    console.print(_nodes(comparison))
    if comparison.scores:
        console.print(_scores(comparison.scores))


def _named(record: RunRecord) -> str:
    return f"[bold]{record.id}[/] {escape(record.experiment)} [dim]{escape(' '.join(record.overrides))}[/]".rstrip()


def _settings(comparison: Comparison) -> Table:
    table = make_table("setting", "before → after")
    for change in comparison.configuration:
        table.add_row(escape(change.key), escape(f"{spell(change.before)} → {spell(change.after)}"))
    return table


def _nodes(comparison: Comparison) -> Table:
    table = make_table("stage", "", "made by", "why")
    for node in comparison.nodes:
        table.add_row(escape(node.key), _verdict(node), _makers(node), escape("; ".join(node.reasons)))
    return table


def _verdict(node: NodeComparison) -> str:
    if node.is_same:
        return "[green]same"
    if node.before is None:
        return "[yellow]new"
    return "[yellow]gone" if node.after is None else "[yellow]differs"


def _makers(node: NodeComparison) -> str:
    makers = [node.made_before or "–", node.made_after or "–"]
    return makers[0] if node.is_same else " → ".join(makers)


def _scores(scores: list[ScoreComparison]) -> Table:
    """Accuracies in percent, and what became of each kind of question in points."""
    table = make_table("model", "before", "after", "points", "by kind of question")
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in scores:
        table.add_row(
            escape(LABELS.get(row.name, row.name)),
            _percent(row.before),
            _percent(row.after),
            _points(row.overall),
            escape(", ".join(f"{task} {_points(change)}" for task, change in row.by_task.items() if change)),
        )
    return table


def _percent(scores: Scores | None) -> str:
    return "–" if scores is None else f"{100 * scores.overall:.1f}"


def _points(difference: float | None) -> str:
    return "–" if difference is None else f"{100 * difference:+.1f}"
