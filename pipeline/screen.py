"""What `vlsi` prints: decisions, scores, times, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.decisions import Decision
from pipeline.experiment import MAIN
from pipeline.graph import Node
from pipeline.identity import flatten, spell
from pipeline.results import Scores, tasks_of
from pipeline.runner import Outcome
from stages.contract.place import Place

SHOWN_REASONS = 3


def show_decisions(console: Console, decisions: Sequence[Decision]) -> None:
    """One line a node: reused, or run and why."""
    table = make_table("stage", "", "why")
    for decision in decisions:
        node = decision.node
        if decision.reused:
            table.add_row(escape(node.key), "[green]reused", f"[dim]{node.fingerprint}")
        else:
            table.add_row(escape(node.key), "[yellow]run", escape(_shortened(decision.reasons)))
    console.print(table)


def show_explanation(console: Console, decision: Decision) -> None:
    """Everything about one node: why it runs or is reused, and what its fingerprint is made of."""
    node = decision.node
    console.print(f"[bold]{escape(node.key)}[/]  {node.fingerprint}  [dim]{escape(str(node.output))}", soft_wrap=True)
    if decision.reused and decision.artifact is not None:
        seconds = decision.artifact.manifest.duration_seconds
        console.print(f"  [green]up to date[/]: made in {seconds:.1f} s, nothing it depends on has changed")
    for reason in decision.reasons:
        link = "" if reason.startswith("because ") else ":"
        console.print(f"  {escape(node.key)} is [yellow]stale[/]{link} {escape(reason)}", soft_wrap=True)
    table = make_table("made of", "")
    for name, source in node.inputs.items():
        digest = f"{source.key} {source.fingerprint}" if isinstance(source, Node) else f"{source.place} {source.digest}"
        table.add_row(name, escape(digest))
    for key, value in flatten(node.identity).items():
        table.add_row(escape(key), escape(spell(value)))
    console.print(table)


def show_scores(console: Console, scores: Sequence[Scores]) -> None:
    """The headline: a row for each model, a column for each kind of question."""
    if not scores:
        return
    tasks = tasks_of(scores)
    questions = max(row.samples for row in scores)
    table = make_table("", *(_wrappable(task) for task in tasks), "overall")
    table.title = f"Held-out questions answered exactly right, % of {questions:,}"
    for column in table.columns[1:]:
        column.justify = "right"
        column.vertical = "bottom"
        column.width = max(len(word) for word in ["100.0", *str(column.header).split()])
    for row in scores:
        values = [*(row.by_task.get(task) for task in tasks), row.overall]
        best = row.name == MAIN
        cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
        table.add_row(escape(row.label), *cells, style="bold" if best else "")
    console.print(table)


def show_times(console: Console, nodes: Sequence[Node], outcome: Outcome) -> None:
    """Wall time of every node, made now or before."""
    table = make_table("stage", "seconds", "")
    table.columns[1].justify = "right"
    for node in nodes:
        artifact = outcome.artifacts.get(node.key)
        if artifact is not None:
            note = "" if node.key in outcome.executed else "[green]reused"
            table.add_row(escape(node.key), f"{artifact.manifest.duration_seconds:.1f}", note)
        elif node.key in outcome.failed:
            table.add_row(escape(node.key), "", "[red]failed")
        elif node.key in outcome.skipped:
            table.add_row(escape(node.key), "", f"[yellow]not tried: {escape(outcome.skipped[node.key])} failed")
    console.print(table)


def show_failures(console: Console, outcome: Outcome) -> None:
    """The whole message of everything that failed."""
    for key, error in outcome.failed.items():
        console.print(f"[red]{escape(key)} failed[/]: {escape(str(error))}", soft_wrap=True, highlight=False)


def show_files(console: Console, files: Mapping[str, Place]) -> None:
    """Where things are, if they are there."""
    existing = {what: path for what, path in files.items() if path.exists()}
    width = max((len(what) for what in existing), default=0)
    for what, path in existing.items():
        console.print(f"{what:{width}}  {escape(str(path))}", soft_wrap=True, highlight=False)


def show_next(console: Console, commands: Mapping[str, str]) -> None:
    """Commands to try, each with what it does."""
    console.print("\nTry next:")
    for command, purpose in commands.items():
        console.print(f"  [bold]{escape(command)}[/]\n      [dim]{escape(purpose)}", soft_wrap=True, highlight=False)


def make_table(*headers: str) -> Table:
    """An empty table in the style of all of them; the first column is never broken."""
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False, collapse_padding=True)
    for header in headers:
        table.add_column(header, overflow="fold")
    table.columns[0].no_wrap = True
    return table


def printable(text: str) -> str:
    """What a model or a stranger wrote, with nothing in it that moves a terminal's cursor or changes its colours."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


def _wrappable(task: str) -> str:
    """A name that can be broken over the lines of a narrow column."""
    return escape(task.replace("_", " ").replace("-", " "))


def _shortened(reasons: Sequence[str]) -> str:
    more = len(reasons) - SHOWN_REASONS
    return "; ".join([*reasons[:SHOWN_REASONS], *([f"{more} more, see `vlsi explain`"] if more > 0 else [])])
