"""What layers say, in a terminal: a table that wraps into blocks where it is narrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from pipeline.screen import make_table, printable
from pipeline.spoken.saying import Saying, level, visible
from stages.contract.sayings import Said

STYLES = {"sure": "green", "likely": "yellow", "unsure": "dim"}
WIDEST = 16
"""Columns of a terminal for one token."""
GAP = 2
"""Columns between two."""


def show_saying(console: Console, saying: Saying) -> None:
    """The heading, then a row for each layer: a column for each token, or its whole text."""
    heading = f"[bold]{escape(printable(saying.model))}[/] [dim]through {saying.through}[/]"
    console.print(f"\n{heading}  {escape(printable(saying.answer))}", soft_wrap=True, highlight=False)
    if saying.tokens:
        _show_tokens(console, saying)
    else:
        _show_texts(console, saying)


def show_legend(console: Console, *, forced: bool) -> None:
    """What the colours mean, and, where an answer was forced, bold type."""
    bold = " · [bold]bold: as the answer has it[/]" if forced else ""
    console.print(f"[green]from 75 % sure[/] · [yellow]from 40 %[/] · [dim]less[/]{bold}", highlight=False)


def _show_tokens(console: Console, saying: Saying) -> None:
    first = max(len(name) for name, _ in saying.rows)
    widths = [_width(saying, place) for place in range(len(saying.tokens))]
    for places in _blocks(widths, console.width - first - GAP):
        table = make_table("", *(_cell(saying.tokens[place], widths[place]) for place in places))
        for column in table.columns:
            column.no_wrap = True
        for name, said in saying.rows:
            table.add_row(name, *(_word(said, place, saying.tokens[place], widths[place]) for place in places))
        console.print(table)


def _show_texts(console: Console, saying: Saying) -> None:
    table = make_table("", "decoded from it")
    for name, said in saying.rows:
        pieces = [
            (printable(word), STYLES[level(sure)]) for word, sure in zip(said.words, said.confidence, strict=True)
        ]
        table.add_row(name, Text.assemble(*pieces) if pieces else Text("nothing", "dim italic"))
    console.print(table)


def _blocks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Places of the columns that stand side by side; each block has one at least."""
    block: list[int] = []
    used = 0
    for place, width in enumerate(widths):
        if block and used + width + GAP > room:
            yield block
            block, used = [], 0
        block.append(place)
        used += width + GAP
    yield block


def _width(saying: Saying, place: int) -> int:
    words = [saying.tokens[place], *(said.words[place] for _, said in saying.rows)]
    return min(WIDEST, max(cell_len(_shown(word)) for word in words))


def _cell(word: str, width: int) -> str:
    """What of a token has room."""
    shown = _shown(word)
    return shown if cell_len(shown) <= width else set_cell_size(shown, width - 1) + "…"


def _shown(word: str) -> str:
    return printable(visible(word))


def _word(said: Said, place: int, token: str, width: int) -> Text:
    """One cell, in bold where it is what the answer has."""
    word = said.words[place]
    return Text(_cell(word, width), STYLES[level(said.confidence[place])] + (" bold" if word == token else ""))
