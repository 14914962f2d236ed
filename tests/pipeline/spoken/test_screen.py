"""What layers say, in terminals of any width."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline.spoken.saying import Saying, level, visible
from pipeline.spoken.screen import show_saying
from stages.contract.sayings import Said
from tests.pipeline.spoken.sayings import HOSTILE, saying_of


def shown(saying: Saying, width: int, *, colours: bool = False) -> str:
    file = io.StringIO()
    system = "standard" if colours else None
    show_saying(Console(file=file, width=width, force_terminal=colours, color_system=system), saying)
    return file.getvalue()


@pytest.mark.parametrize("width", [30, 80, 200])
@pytest.mark.parametrize("decoded", [False, True])
def test_it_fits_into_any_terminal(width: int, decoded: bool) -> None:
    words = [f" word{n}" for n in range(12)] + [" " + "very" * 10 + "long", "漢字" * 9]
    text = shown(saying_of(words, decoded=decoded), width)
    body = text.splitlines()[2:]
    assert max(map(cell_len, body)) <= width
    for word in words[:12]:
        assert word.strip() in text


def test_narrow_terminals_get_several_blocks() -> None:
    words = [f" word{n}" for n in range(12)]
    assert shown(saying_of(words), 200).count("block 3") == 1
    assert shown(saying_of(words), 40).count("block 3") == 3


def test_colours_say_how_sure_and_bold_says_what_is_right() -> None:
    saying = saying_of(["one", "two"])
    wrong = Said(0, ("one", "six"), (0.8, 0.8))
    text = shown(Saying(**{**vars(saying), "layers": (wrong,)}), 80, colours=True)
    row = next(line for line in text.splitlines() if "block 0" in line)
    assert re.search(r"\x1b\[1;32mone\s*\x1b\[0m", row)
    assert re.search(r"\x1b\[32msix\s*\x1b\[0m", row)


@pytest.mark.parametrize("decoded", [False, True])
def test_hostile_words_do_nothing(decoded: bool) -> None:
    text = shown(saying_of(HOSTILE, decoded=decoded, model="<b>[red]m"), 200)
    assert "\x1b" not in text
    assert "[bold]x[/]" in text
    assert "<b>[red]m" in text


@pytest.mark.parametrize(("word", "seen"), [(" one", "one"), ("\n", "⏎"), (" ", "␣"), ("", "∅"), ("a\nb", "a⏎b")])
def test_every_token_can_be_seen(word: str, seen: str) -> None:
    assert visible(word) == seen


def test_how_sure_is_one_of_three() -> None:
    assert [level(share) for share in (1.0, 0.75, 0.74, 0.4, 0.39, 0.0)] == ["sure"] * 2 + ["likely"] * 2 + [
        "unsure"
    ] * 2
