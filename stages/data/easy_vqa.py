"""easy-VQA: 5,000 pictures of one coloured shape, 48,248 questions, 13 answers, with its own split (MIT licence).

    pip install easy-vqa
    python -m stages.data.easy_vqa FOLDER

writes `train.json` (LLaVA conversations: one picture, all its questions in turn), `test.json` (every
question by itself, as it is scored) and the pictures. "yes" is 37.3 % of the test answers; whoever
knows the most frequent answer to each question without looking at the picture gets 67.0 %.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.contract import StageError
from stages.data.lessons import Question

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SPLITS = ("train", "test")
IMAGE_FOLDER = "images"
_CONTRAST = 60
"""Between a shape and its background, summed over red, green and blue."""
_IMAGE_TOKENS = 4
"""A picture of 64 x 64 pixels is resized to 56 x 56: 2 x 2 tokens."""


@dataclass(frozen=True)
class Shape:
    """A picture and everything that is asked about it."""

    path: Path
    questions: tuple[Question, ...]

    @cached_property
    def image(self) -> Image.Image:
        """64 x 64 pixels, RGB."""
        return Image.open(self.path).convert("RGB")

    def told(self, names: Sequence[str]) -> int | None:
        """Which of `names` is the answer to one of the questions."""
        return next((names.index(q.answer) for q in self.questions if q.answer in names), None)


@dataclass(frozen=True)
class MovedShape(Shape):
    """The same questions about a picture that was made from the one in the file."""

    image: Image.Image


def moved(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The shape somewhere else within the frame, mirrored or not."""
    pixels = np.asarray(image)
    background = np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
    is_shape = np.abs(pixels - background).sum(axis=2) > _CONTRAST
    shifts = []
    for axis, size in enumerate(is_shape.shape):
        covered = np.flatnonzero(is_shape.any(axis=1 - axis))
        shifts.append(int(generator.integers(-covered[0], size - covered[-1])))
    pixels = np.roll(pixels, shifts, axis=(0, 1))
    return Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if generator.integers(2) else pixels))


def load(split: str) -> list[Shape]:
    """The pictures of `train` or `test`, by number.

    Raises:
        StageError: the package is not installed.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise StageError("the package easy-vqa is not installed; run `pip install easy-vqa`") from error
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    asked: dict[int, list[Question]] = defaultdict(list)
    for text, answer, number in zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True):
        asked[number].append(Question(text, answer))
    return [Shape(Path(paths[number]), tuple(asked[number])) for number in sorted(asked)]


def task_of(question: Question) -> str:
    """What kind of question it is, by its answer."""
    return "shape" if question.answer in SHAPES else "color" if question.answer in COLORS else "yes or no"


def write_samples(folder: Path) -> dict[str, int]:
    """Write both splits in LLaVA's format, and say how many samples each has."""
    counts = {}
    for split in SPLITS:
        (folder / IMAGE_FOLDER / split).mkdir(parents=True, exist_ok=True)
        shapes = load(split)
        for shape in shapes:
            shutil.copyfile(shape.path, folder / _image(split, shape))
        samples = [sample for shape in shapes for sample in _samples(split, shape)]
        (folder / f"{split}.json").write_text(json.dumps(samples, indent=1))
        counts[split] = len(samples)
    return counts


def _samples(split: str, shape: Shape) -> list[dict[str, Any]]:
    """One conversation about everything to train on; one for each question to be scored."""
    name = f"{split}-{shape.path.stem}"
    image = {"image": _image(split, shape)}
    if split == "train":
        return [{"id": name, **image, "conversations": _turns(shape.questions)}]
    return [
        {"id": f"{name}-{number}", **image, "task": task_of(question), "conversations": _turns([question])}
        for number, question in enumerate(shape.questions)
    ]


def _turns(questions: Sequence[Question]) -> list[dict[str, str]]:
    turns = []
    for number, question in enumerate(questions):
        turns.append({"from": "human", "value": "" if number else "<image>\n"})
        turns[-1]["value"] += question.text
        turns.append({"from": "gpt", "value": question.answer})
    return turns


def _image(split: str, shape: Shape) -> str:
    return f"{IMAGE_FOLDER}/{split}/{shape.path.name}"


class ShapeLessons:
    """From training pictures of which both shape and color are asked: there, all there is to see is known."""

    shown = (len(SHAPES), len(COLORS))

    @cached_property
    def _shapes(self) -> list[Shape]:
        known = [(shape, shape.told(SHAPES), shape.told(COLORS)) for shape in load("train")]
        return [shape for shape, form, color in known if form is not None and color is not None]

    def corpus(self) -> list[str]:
        """Every question and answer once."""
        questions = [question for shape in load("train") for question in shape.questions]
        return sorted({text for question in questions for text in (question.text, question.answer)})

    def draw(self, generator: np.random.Generator) -> Shape:
        """One of the pictures, its shape moved and perhaps mirrored: no question asks where something is."""
        shape = self._shapes[generator.integers(len(self._shapes))]
        return MovedShape(shape.path, shape.questions, moved(shape.image, generator))

    def seen(self, pictures: Sequence[Shape]) -> list[NDArray[np.int64]]:
        """Every token of a picture shows its one shape and color."""
        told = ([shape.told(names) for shape in pictures] for names in (SHAPES, COLORS))
        return [np.repeat(np.array(labels, dtype=np.int64), _IMAGE_TOKENS) for labels in told]

    def ask(self, picture: Shape, generator: np.random.Generator, *, reading: bool) -> list[Question]:
        """All its questions; to read, those that name a shape or a color."""
        return [question for question in picture.questions if not reading or task_of(question) != "yes or no"]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m stages.data.easy_vqa FOLDER")
    for split, count in write_samples(Path(sys.argv[1])).items():
        print(f"{sys.argv[1]}/{split}.json: {count} samples")
