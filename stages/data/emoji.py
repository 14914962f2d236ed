"""Captioned pictures that install as a package: 1,911 emoji, each with its name and kind.

    npm pack emoji-datasource-twitter && tar xzf emoji-datasource-twitter-*.tgz
    python -m stages.data.emoji package FOLDER

writes `train.json` and `test.json` (LLaVA conversations of two turns) and the pictures (64 x 64 pixels).
A picture is in one split alone, always the same: a tenth of them, by a hash of the picture's name, is for
the test.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

_PICTURES = Path("img/twitter/64")
_TEST_SHARE = 10
"""One picture of so many is held out."""


def write_samples(package: Path, folder: Path) -> dict[str, int]:
    """Write every emoji that has a picture, and say how many there are in each split."""
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    entries = json.loads((package / "emoji.json").read_text())
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for entry in entries:
        if (package / _PICTURES / entry["image"]).is_file():
            shutil.copyfile(package / _PICTURES / entry["image"], pictures / entry["image"])
            splits[_split_of(entry["image"])].append(_sample(entry))
    for name, samples in splits.items():
        (folder / f"{name}.json").write_text(json.dumps(samples, indent=1))
    return {name: len(samples) for name, samples in splits.items()}


def _split_of(picture: str) -> str:
    """By its name alone, so that emoji of a later version of the package move none."""
    return "train" if zlib.crc32(picture.encode()) % _TEST_SHARE else "test"


def _sample(entry: dict[str, Any]) -> dict[str, Any]:
    name, kind = entry["name"].lower(), f"{entry['category']}, {entry['subcategory'].replace('-', ' ')}".lower()
    values = ["<image>\nWhat does it show?", name, "What kind of emoji is it?", kind]
    turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return {"id": entry["short_name"], "image": f"images/{entry['image']}", "conversations": turns}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m stages.data.emoji PACKAGE FOLDER")
    for name, count in write_samples(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{sys.argv[2]}/{name}.json: {count} samples")
