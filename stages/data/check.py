"""A look at a data set without any weights: what is there, what of it cannot be used, what a model would see."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.contract.settings import Preprocessing
from stages.data import BadSample
from stages.data.sample import BadLine, Sample, read_samples

if TYPE_CHECKING:
    from stages.data.encoding import Encoded, Encoder

SHOWN_SAMPLES = 3
SHOWN_LINES = 3
_DETAILS = re.compile(r"'[^']*'|(?<=\bimage )\S+(?= (?:cannot|has|lies))|(?<![\w-])\d+")
"""What differs between two samples that are bad for one reason."""
_REPEATED_TOKEN = re.compile(r"(<[^<>\s]+>)\1+")


@dataclass(frozen=True)
class Spread:
    """How large something is over all samples."""

    total: int
    median: float
    longest: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Spread | None:
        """None if there is nothing to measure."""
        return cls(sum(values), float(np.median(values)), max(values)) if values else None


@dataclass(frozen=True)
class Reason:
    """Samples that cannot be used for one reason.

    Attributes:
        what: the reason, with `…` for what differs.
        count: how many there are.
        first: the first of them, each with its id, line and own reason.
    """

    what: str
    count: int
    first: tuple[BadLine, ...]


@dataclass(frozen=True)
class Look:
    """One sample as the model will see it: pieces of text, and whether each is a response."""

    id: str
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Findings:
    """What is in a data set.

    Attributes:
        place: the data set.
        samples, unreadable: records that are samples, and that are none.
        looked_at, unusable: samples whose pictures and tokens were looked at, and how many of those failed.
        formats, tasks: how many samples there are of each.
        pictures, turns: how many samples have so many pictures, and so many answers.
        characters, tokens: of the responses of a sample; tokens if there was a processor.
        reasons: why samples cannot be used, the most frequent first.
        looks: some samples as a model will see them.
    """

    place: str
    samples: int
    unreadable: int
    looked_at: int
    unusable: int
    formats: dict[str, int]
    tasks: dict[str, int]
    pictures: dict[int, int]
    turns: dict[int, int]
    characters: Spread | None
    tokens: Spread | None
    reasons: tuple[Reason, ...]
    looks: tuple[Look, ...] = field(default=())

    @property
    def bad_fraction(self) -> float:
        """Share of the records that cannot be used; what was not looked at counts like what was."""
        usable = 1 - self.unusable / self.looked_at if self.looked_at else 1.0
        return 1 - usable * self.samples / max(1, self.samples + self.unreadable)


def check(
    place: Path,
    preprocessing: Preprocessing,
    encoder: Encoder | None,
    *,
    limit: int | None = None,
    progress: Callable[[Sequence[Sample]], Iterable[Sample]] = iter,
) -> Findings:
    """Read a data set and look at its samples one by one.

    Args:
        encoder: of a checkpoint; without one, pictures are only decoded.
        limit: look at so many samples, evenly drawn; None looks at all.
        progress: wraps the samples that are looked at.

    Raises:
        StageError: a file is missing or damaged as a whole.
    """
    samples, bad = read_samples(place)
    chosen = _evenly(samples, len(samples) if limit is None else limit)
    shown = {sample.id for sample in _evenly(chosen, SHOWN_SAMPLES)}
    unusable, tokens, looks = [], [], []
    for sample in progress(chosen):
        try:
            encoded = _look_at(sample, preprocessing, encoder)
        except BadSample as error:
            unusable.append(BadLine(sample.id, sample.line, str(error)))
            continue
        if encoded is not None and encoder is not None:
            tokens.append(int(encoded.response_mask.sum()))
            looks += [_look(encoded, encoder)] if sample.id in shown else []
    return Findings(
        place=str(place),
        samples=len(samples),
        unreadable=len(bad),
        looked_at=len(chosen),
        unusable=len(unusable),
        formats=_counted(sample.format for sample in samples),
        tasks=_counted(sample.task for sample in samples),
        pictures=dict(sorted(Counter(len(sample.images) for sample in samples).items())),
        turns=dict(sorted(Counter(len(sample.responses) for sample in samples).items())),
        characters=Spread.of([sum(map(len, sample.responses)) for sample in samples]),
        tokens=Spread.of(tokens),
        reasons=_reasons([*bad, *unusable]),
        looks=tuple(looks),
    )


def _look_at(sample: Sample, preprocessing: Preprocessing, encoder: Encoder | None) -> Encoded | None:
    if encoder is not None:
        return encoder.encode(sample)
    sample.load_images(preprocessing.max_image_pixels)
    return None


def _look(encoded: Encoded, encoder: Encoder) -> Look:
    """The decoded tokens, cut where responses begin and end; repeated image tokens are counted."""
    mask = encoded.response_mask
    borders = (mask[1:] != mask[:-1]).nonzero()[:, 0] + 1
    pieces = zip(encoded.input_ids.tensor_split(borders.tolist()), mask.tensor_split(borders.tolist()), strict=True)
    return Look(
        encoded.sample.id, tuple((_readable(encoder.processor.tokenizer.decode(i)), bool(m[0])) for i, m in pieces)
    )


def _readable(text: str) -> str:
    return _REPEATED_TOKEN.sub(lambda run: f"{run[1]} × {len(run[0]) // len(run[1])} ", text)


def _evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    count = min(count, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _reasons(bad: Sequence[BadLine]) -> tuple[Reason, ...]:
    groups: dict[str, list[BadLine]] = defaultdict(list)
    for line in bad:
        groups[_DETAILS.sub("…", line.reason)].append(line)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return tuple(Reason(what, len(lines), tuple(lines[:SHOWN_LINES])) for what, lines in ordered)
