"""A question of a benchmark: a sample, together with what judging its answer needs."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages.data import BadSample
from stages.data.pictures import Picture
from stages.data.sample import Sample

LETTERS = string.ascii_uppercase
UNPUBLISHED = "?"
"""Stands where the response would, if a benchmark keeps its labels to itself; the model never sees it."""
_PLACEHOLDER = re.compile(r"<image (\d+)>")


@dataclass(frozen=True, slots=True)
class Question(Sample):
    """What a model is asked, and what is right.

    Attributes:
        labels: the answers that are right; none where the benchmark keeps them to itself.
        options: texts of the choices, A first; none for an open question.
        item: what is asked for; an item that is asked in several forms has to be right in all of them.
        reads: how an open answer is to be read, in the benchmark's own words.
    """

    labels: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    item: str = ""
    reads: str = ""

    @property
    def letters(self) -> str:
        """Of the options."""
        return LETTERS[: len(self.options)]


@dataclass(frozen=True)
class Verdict:
    """What became of an answer.

    Attributes:
        extracted: what of it counts; empty if nothing could be found.
        correct: 1 if it is right, 0 if it is wrong, between for a part; None as long as nobody has judged it.
    """

    extracted: str
    correct: float | None


def pose(
    name: str,
    text: str,
    pictures: Sequence[Picture | None],
    labels: Sequence[str],
    *,
    options: Sequence[str] = (),
    task: str = "",
    item: str = "",
    reads: str = "",
    line: int = 0,
) -> Question:
    """One question in one turn; pictures stand where `<image 1>` names them, else before the text.

    Raises:
        BadSample: nothing is asked, or a picture that the text names is missing.
    """
    if not text.strip():
        raise BadSample("the question is empty")
    shown, content = _placed(text, pictures)
    answer = {"type": "text", "text": labels[0] if labels else UNPUBLISHED}
    messages = ({"role": "user", "content": content}, {"role": "assistant", "content": [answer]})
    return Question(name, shown, messages, task, line, "benchmark", tuple(labels), tuple(options), item or name, reads)


def _placed(text: str, pictures: Sequence[Picture | None]) -> tuple[tuple[Picture, ...], list[dict[str, Any]]]:
    """The pictures in order of their parts, and the parts."""
    first, *rest = _PLACEHOLDER.split(text)
    numbers, texts = [int(number) for number in rest[::2]], rest[1::2]
    if not numbers:
        there = tuple(picture for picture in pictures if picture is not None)
        return there, [{"type": "image"}] * len(there) + [{"type": "text", "text": text}]
    content: list[dict[str, Any]] = [{"type": "text", "text": first}]
    shown = []
    for number, following in zip(numbers, texts, strict=True):
        picture = pictures[number - 1] if 0 < number <= len(pictures) else None
        if picture is None:
            raise BadSample(f"<image {number}> stands in the question, but there is no such picture")
        shown.append(picture)
        content += [{"type": "image"}, {"type": "text", "text": following}]
    return tuple(shown), [part for part in content if part.get("text") != ""]
