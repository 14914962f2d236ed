"""Lessons: what a task has to offer so that a model made from nothing can learn it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Question:
    """A question about a picture and its one right answer."""

    text: str
    answer: str


class Picture(Protocol):
    """A picture that questions are asked about; all pictures of a task have one size."""

    @property
    def image(self) -> Image.Image:
        """Its pixels, RGB."""


class Lessons(Protocol):
    """Pictures, what there is to see in them, and questions about them.

    Every draw comes from the generator that is passed in, so a seed names one course of lessons.
    """

    @property
    def shown(self) -> Sequence[int]:
        """For each thing that an image token shows (its digit, its row, …) how many there are to tell apart."""

    def corpus(self) -> Iterable[str]:
        """Texts with every word of the task; always the same."""

    def draw(self, generator: np.random.Generator) -> Picture:
        """A training picture."""

    def seen(self, pictures: Sequence[Any]) -> list[NDArray[np.int64]]:
        """For each thing shown, [image tokens of all pictures] which one it is."""

    def ask(self, picture: Any, generator: np.random.Generator, *, reading: bool) -> list[Question]:
        """What is asked about one picture: only to read it, or everything. At least one question."""


def messages(question: Question) -> list[dict[str, Any]]:
    """The conversation of one sample: the picture and the question, then the answer."""
    return [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]},
        {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
    ]
