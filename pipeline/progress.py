"""What a person sees while stages run: a bar for each in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.executors import StageFailed
from pipeline.graph import Node
from stages.contract import Artifact

PLAIN_SECONDS = 15
"""Between two lines about one stage when the output is no terminal."""


class Bars:
    """One bar for each running stage: loss, samples a second, time left."""

    def __init__(self, console: Console) -> None:
        """Draw on `console` between entering and leaving."""
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("[dim]left"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]spent"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Bars:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bars away."""
        self._progress.stop()

    def reused(self, node: Node, artifact: Artifact) -> None:
        """Not shown: the decisions were printed before."""

    def started(self, node: Node) -> dict[str, str]:
        """Show a bar that pulses until the first number comes."""
        self._tasks[node.key] = self._progress.add_task(escape(node.key), total=None, numbers="starting")
        return {}

    def line(self, node: Node, line: Mapping[str, Any]) -> None:
        """Move the bar."""
        self._progress.update(
            self._tasks[node.key],
            completed=line.get("step", 0),
            total=line.get("total"),
            numbers=escape(describe(line)),
        )

    def finished(self, node: Node, artifact: Artifact) -> None:
        """Replace the bar by a line."""
        self._progress.remove_task(self._tasks.pop(node.key))
        self._console.print(f"[green]done[/]    {escape(node.key)}  {artifact.manifest.duration_seconds:.1f} s")

    def failed(self, node: Node, error: StageFailed) -> None:
        """Replace the bar by a line; the message comes at the end of the run."""
        self._progress.remove_task(self._tasks.pop(node.key))
        self._console.print(f"[red]failed[/]  {escape(node.key)}")


class Lines:
    """The same as text, slowly, for log files and continuous integration."""

    def __init__(self, console: Console, seconds: float = PLAIN_SECONDS) -> None:
        """Print at most one line per stage in `seconds`."""
        self._console = console
        self._seconds = seconds
        self._last: dict[str, float] = {}

    def __enter__(self) -> Lines:
        """Nothing to prepare."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to give back."""

    def reused(self, node: Node, artifact: Artifact) -> None:
        """Not shown: the decisions were printed before."""

    def started(self, node: Node) -> dict[str, str]:
        """Say so."""
        self._last[node.key] = time.monotonic()
        self._print("start", node)
        return {}

    def line(self, node: Node, line: Mapping[str, Any]) -> None:
        """Say how far it is, if it is time again."""
        if time.monotonic() - self._last[node.key] >= self._seconds:
            self._last[node.key] = time.monotonic()
            self._print("at", node, describe(line))

    def finished(self, node: Node, artifact: Artifact) -> None:
        """Say so, with the time it took."""
        self._print("done", node, f"{artifact.manifest.duration_seconds:.1f} s")

    def failed(self, node: Node, error: StageFailed) -> None:
        """Say so; the message comes at the end of the run."""
        self._print("failed", node)

    def _print(self, event: str, node: Node, text: str = "") -> None:
        line = f"{event:7} {node.key}  {text}".rstrip()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def make_display(console: Console) -> Bars | Lines:
    """Bars if somebody can see them move."""
    return Bars(console) if console.is_terminal else Lines(console)


def warner(console: Console) -> Callable[[str], None]:
    """How a warning is shown."""
    return partial(console.print, style="yellow", markup=False, soft_wrap=True)


def describe(line: Mapping[str, Any]) -> str:
    """The numbers of a journal line that people watch."""
    parts = [f"{line.get('step', 0)}/{line.get('total', '?')} {line.get('unit', 'steps')}"]
    if isinstance(line.get("loss"), int | float):
        parts.append(f"loss {line['loss']:.3f}")
    if isinstance(line.get("samples_per_second"), int | float):
        parts.append(f"{line['samples_per_second']:.0f} samples/s")
    return " · ".join(parts)
