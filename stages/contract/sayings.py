"""The sayings: what layers would say at each response token of a few samples, for people to look at (paper Fig. 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stages.contract.files import SAYINGS_FILE
from stages.contract.place import Place


@dataclass(frozen=True)
class Said:
    """What one layer says under teacher forcing.

    Attributes:
        block: the decoder block, 0-based.
        words: the most probable word in the place of each response token.
        confidence: its probability.
    """

    block: int
    words: tuple[str, ...]
    confidence: tuple[float, ...]


@dataclass(frozen=True)
class Speaker:
    """One model and what its target layers say.

    Attributes:
        name: `teacher`, `backbone` (before) or `student` (after).
        layers: in the order of depth.
    """

    name: str
    layers: tuple[Said, ...]


@dataclass(frozen=True)
class Shown:
    """One sample and what models say of it.

    Attributes:
        id: of the sample.
        question: the last one.
        answer: the last response.
        tokens: the text of every response token, of all turns.
        pictures: thumbnails as data URIs.
        models: who speaks.
    """

    id: str
    question: str
    answer: str
    tokens: tuple[str, ...]
    pictures: tuple[str, ...]
    models: tuple[Speaker, ...]


def write_sayings(folder: Place, samples: Sequence[Shown]) -> None:
    """Write the file."""
    document = {"samples": [asdict(sample) for sample in samples]}
    (folder / SAYINGS_FILE).write_text(json.dumps(document, ensure_ascii=False, indent=1))


def read_sayings(folder: Place) -> list[Shown]:
    """What an artifact's layers say; of a stage without verbalizers nothing."""
    file = folder / SAYINGS_FILE
    return [_shown(sample) for sample in json.loads(file.read_text())["samples"]] if file.is_file() else []


def _shown(sample: dict) -> Shown:
    models = tuple(Speaker(model["name"], tuple(map(_said, model["layers"]))) for model in sample["models"])
    lists = {name: tuple(sample[name]) for name in ("tokens", "pictures")}
    return Shown(sample["id"], sample["question"], sample["answer"], **lists, models=models)


def _said(layer: dict) -> Said:
    return Said(layer["block"], tuple(layer["words"]), tuple(layer["confidence"]))
