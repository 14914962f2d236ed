"""The digits task: real handwritten digits laid out as 2 x 3 pictures, and seven kinds of question about them.

The 1,797 digits are scikit-learn's (8 x 8 pixels, 17 grey levels). They are split once, by digit image: no
handwriting that is asked about in the test set occurs in any training picture. Every draw comes from the
generator that is passed in, so a seed names one set of samples. Needs neither torch nor a network.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.data.lessons import Question, messages

ROWS = ("top", "bottom")
COLUMNS = ("left", "middle", "right")
CELL_PIXELS = 28
"""Width and height of one digit's place: one image token with patches of 14 pixels merged 2 x 2."""
DIGIT_PIXELS = 20
"""Width and height of the digit itself; it lies anywhere within its place, clear of the frame."""
FRAME_PIXELS = 2
"""Thickness of the frame round the whole sheet."""
IMAGE_FOLDER = "images"

_SPLIT_SEED = 0
_CORPUS_SEED = 0
_CORPUS_PICTURES = 200
_MAX_TILT_DEGREES = 15
_MAX_STRETCH = 0.12
_WORDS = tuple(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen".split()
)


@dataclass(frozen=True)
class Digits:
    """Some handwritten digits.

    Attributes:
        indices: [N] int64, each image's place in scikit-learn's data set.
        pixels: [N, 8, 8] uint8, 0 (paper) to 255 (ink).
        labels: [N] int64, 0 to 9.
    """

    indices: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def of_label(self) -> tuple[NDArray[np.int64], ...]:
        """For each label, where in this object its images are."""
        return tuple(np.flatnonzero(self.labels == label) for label in range(10))


@dataclass(frozen=True)
class Picture:
    """Six digits on one sheet.

    Attributes:
        image: 84 x 56 pixels, RGB, dark ink on white paper.
        grid: the labels, two rows of three.
        indices: the six images' places in scikit-learn's data set, row by row.
    """

    image: Image.Image
    grid: tuple[tuple[int, ...], ...]
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of question.

    Attributes:
        phrasings: templates of the question; a field is what is asked about.
        draw: picks what is asked about: the fields of the phrasing and the answer.
    """

    phrasings: tuple[str, ...]
    draw: Callable[[NDArray[np.int64], np.random.Generator], tuple[dict[str, str], str]]


def load_digits(num_train: int) -> tuple[Digits, Digits]:
    """The digits of the training split (`num_train` images) and of the test split (the rest).

    Raises:
        ValueError: nothing would be left to test on, or nothing to train on.
    """
    from sklearn.datasets import load_digits as load

    data = load()
    if not 0 < num_train < len(data.target):
        raise ValueError(f"train_digits: {num_train} leaves a split empty; allowed: 1 to {len(data.target) - 1} images")
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(data.target))
    train, test = (Digits(part, pixels[part], data.target[part]) for part in np.split(order, [num_train]))
    return train, test


def draw_picture(digits: Digits, generator: np.random.Generator, *, varied: bool = False) -> Picture:
    """Lay out six digits, each label equally likely, each somewhere within its place.

    Args:
        varied: tilt and stretch each digit a little, so that few images stand for many handwritings.
    """
    labels = generator.integers(0, 10, size=len(ROWS) * len(COLUMNS))
    chosen = [int(generator.choice(digits.of_label[label])) for label in labels]
    offsets = generator.integers(FRAME_PIXELS, CELL_PIXELS - DIGIT_PIXELS - FRAME_PIXELS + 1, size=(len(chosen), 2))
    sheet = _empty_sheet()
    for place, digit in enumerate(chosen):
        row, column = divmod(place, len(COLUMNS))
        top, left = np.array([row, column]) * CELL_PIXELS + offsets[place]
        ink = _ink(digits.pixels[digit], generator if varied else None)
        sheet[top : top + DIGIT_PIXELS, left : left + DIGIT_PIXELS] -= ink
    grid = labels.reshape(len(ROWS), len(COLUMNS)).tolist()
    return Picture(
        image=Image.fromarray(sheet).convert("RGB"),
        grid=tuple(tuple(row) for row in grid),
        indices=tuple(int(digits.indices[digit]) for digit in chosen),
    )


def blank_picture() -> Image.Image:
    """A picture without digits, of the size that all have."""
    return Image.fromarray(_empty_sheet()).convert("RGB")


def ask(kind: str, picture: Picture, generator: np.random.Generator) -> Question:
    """Draw a question of one kind about a picture, in one of the kind's phrasings."""
    fields, answer = KINDS[kind].draw(np.array(picture.grid), generator)
    phrasings = KINDS[kind].phrasings
    return Question(phrasings[generator.integers(len(phrasings))].format(**fields), answer)


def write_samples(
    path: Path, digits: Digits, *, prefix: str, count: int, kinds: Sequence[str], generator: np.random.Generator
) -> None:
    """Write `count` samples as JSON lines, kinds in turn, and their pictures beside them.

    Args:
        path: the JSONL file; pictures go to `images/` in the same folder.
        prefix: of the ids, `<prefix>-000012`, and of the picture files.
    """
    (path.parent / IMAGE_FOLDER).mkdir(exist_ok=True)
    with path.open("w") as handle:
        for number in range(count):
            kind = kinds[number % len(kinds)]
            picture = draw_picture(digits, generator)
            sample_id = f"{prefix}-{number:06d}"
            image = f"{IMAGE_FOLDER}/{sample_id}.png"
            picture.image.save(path.parent / image)
            sample = {"id": sample_id, "images": [image], "messages": messages(ask(kind, picture, generator))}
            handle.write(json.dumps(sample | {"task": kind}) + "\n")


def corpus() -> Iterator[str]:
    """Questions and answers with every word of the task: what its tokenizer is made from. Always the same."""
    generator = np.random.default_rng(_CORPUS_SEED)
    for _ in range(_CORPUS_PICTURES):
        grid = generator.integers(0, 10, size=(len(ROWS), len(COLUMNS)))
        picture = Picture(blank_picture(), tuple(map(tuple, grid)), ())
        for kind in KINDS:
            question = ask(kind, picture, generator)
            yield question.text
            yield question.answer


def spell(numbers: Sequence[int] | NDArray[np.int64]) -> str:
    """Numbers from 0 to 18 as words: `three one four`."""
    return " ".join(_WORDS[number] for number in numbers)


def _empty_sheet() -> NDArray[np.uint8]:
    """[56, 84] white paper in a dark frame, by which the six places look different from each other."""
    sheet = np.zeros((len(ROWS) * CELL_PIXELS, len(COLUMNS) * CELL_PIXELS), dtype=np.uint8)
    sheet[FRAME_PIXELS:-FRAME_PIXELS, FRAME_PIXELS:-FRAME_PIXELS] = 255
    return sheet


def _ink(pixels: NDArray[np.uint8], generator: np.random.Generator | None) -> NDArray[np.uint8]:
    """[8, 8] to [20, 20] ink, tilted and stretched if there is a generator to draw by how much."""
    image = Image.fromarray(pixels).resize((DIGIT_PIXELS, DIGIT_PIXELS), Image.Resampling.BICUBIC)
    if generator is not None:
        tilt, wide, high, slant = generator.uniform(-1, 1, size=4) * (
            np.deg2rad(_MAX_TILT_DEGREES),
            *[_MAX_STRETCH] * 3,
        )
        turn = np.array([[np.cos(tilt), slant - np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
        matrix = turn * np.exp([wide, high])
        shift = (np.eye(2) - matrix) @ [DIGIT_PIXELS / 2, DIGIT_PIXELS / 2]
        rows = np.column_stack([matrix, shift]).ravel().tolist()
        image = image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC)
    return np.asarray(image)


def _place(grid: NDArray[np.int64], generator: np.random.Generator) -> tuple[dict[str, str], str]:
    row, column = generator.integers(len(ROWS)), generator.integers(len(COLUMNS))
    return {"place": f"{ROWS[row]} {COLUMNS[column]}"}, spell([grid[row, column]])


def _row(grid: NDArray[np.int64], generator: np.random.Generator) -> tuple[dict[str, str], str]:
    row = generator.integers(len(ROWS))
    return {"row": ROWS[row]}, spell(grid[row])


def _largest(grid: NDArray[np.int64], generator: np.random.Generator) -> tuple[dict[str, str], str]:
    return {}, spell([grid.max()])


def _count(grid: NDArray[np.int64], generator: np.random.Generator) -> tuple[dict[str, str], str]:
    """Draws how often first, then a digit that occurs so often, so that no answer is right by default."""
    occurrences = Counter(dict.fromkeys(range(10), 0))
    occurrences.update(grid.ravel().tolist())
    count = generator.choice(sorted(set(occurrences.values())))
    digit = generator.choice([digit for digit, times in occurrences.items() if times == count])
    return {"digit": spell([digit])}, spell([count])


def _add(grid: NDArray[np.int64], generator: np.random.Generator) -> tuple[dict[str, str], str]:
    column = generator.integers(len(COLUMNS))
    above, below = grid[:, column]
    return {"column": COLUMNS[column]}, f"{spell([above])} plus {spell([below])} is {spell([above + below])}"


def _sort(grid: NDArray[np.int64], generator: np.random.Generator) -> tuple[dict[str, str], str]:
    row = generator.integers(len(ROWS))
    return {"row": ROWS[row]}, spell(np.sort(grid[row]))


def _parity(grid: NDArray[np.int64], generator: np.random.Generator) -> tuple[dict[str, str], str]:
    odd = int((grid % 2).sum())
    even = grid.size - odd
    verdict = "neither has more" if even == odd else f"more are {'even' if even > odd else 'odd'}"
    return {}, f"{spell([even])} even and {spell([odd])} odd so {verdict}"


KINDS: dict[str, Kind] = {
    "find a digit": Kind(
        ("Which digit is at the {place}?", "Name the {place} digit.", "What is written at the {place}?"), _place
    ),
    "read a row": Kind(
        ("Read the {row} row.", "Which digits are in the {row} row?", "Name the digits of the {row} row."), _row
    ),
    "largest digit": Kind(
        ("Which digit is the largest?", "Name the largest digit.", "What is the largest digit here?"), _largest
    ),
    "count a digit": Kind(
        ("How many times is {digit} written?", "Count the digit {digit}.", "How often is {digit} here?"), _count
    ),
    "add a column": Kind(
        ("Add the {column} column.", "What is the sum of the {column} column?", "Sum the {column} column."), _add
    ),
    "sort a row": Kind(
        ("Sort the {row} row.", "Put the {row} row in order.", "Name the digits of the {row} row in order."), _sort
    ),
    "even or odd": Kind(
        ("Are there more even or odd digits?", "Which are more, even or odd digits?", "Compare even and odd digits."),
        _parity,
    ),
}
"""Every kind of question by its name, which is the `task` of a sample."""

READING_KINDS = ("find a digit", "read a row")
"""What the small backbone is pretrained on."""


@dataclass(frozen=True)
class DigitLessons:
    """Pictures composed of some digits, and questions about them."""

    digits: Digits
    shown = (10, len(ROWS), len(COLUMNS))

    def corpus(self) -> Iterator[str]:
        """Every word of the task."""
        return corpus()

    def draw(self, generator: np.random.Generator) -> Picture:
        """A new picture, its digits tilted and stretched a little."""
        return draw_picture(self.digits, generator, varied=True)

    def seen(self, pictures: Sequence[Picture]) -> list[NDArray[np.int64]]:
        """Every token shows one digit, in its row and column."""
        rows, columns = np.divmod(np.arange(len(ROWS) * len(COLUMNS)), len(COLUMNS))
        grids = np.array([picture.grid for picture in pictures])
        return [grids.ravel(), *(np.tile(place, len(pictures)) for place in (rows, columns))]

    def ask(self, picture: Picture, generator: np.random.Generator, *, reading: bool) -> list[Question]:
        """Both reading questions twice, or one question of every kind."""
        kinds = READING_KINDS * 2 if reading else tuple(KINDS)
        return [ask(kind, picture, generator) for kind in kinds]
