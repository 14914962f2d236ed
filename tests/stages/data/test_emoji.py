"""Emoji become conversations about their pictures; one without a picture is left out."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from stages.data import emoji
from stages.data.sample import read_samples


def test_every_emoji_with_a_picture_is_a_sample(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "img" / "twitter" / "64").mkdir(parents=True)
    Image.new("RGBA", (64, 64)).save(package / "img" / "twitter" / "64" / "1f34b.png")
    lemon = {"name": "LEMON", "short_name": "lemon", "category": "Food & Drink", "subcategory": "food-fruit"}
    entries = [lemon | {"image": "1f34b.png"}, lemon | {"short_name": "ghost", "image": "none.png"}]
    (package / "emoji.json").write_text(json.dumps(entries))
    assert emoji.write_samples(package, tmp_path / "out") == 1
    samples, bad = read_samples(tmp_path / "out" / "emoji.json")
    assert (bad, [sample.id for sample in samples]) == ([], ["lemon"])
    assert samples[0].responses == ["lemon", "food & drink, food fruit"]
    assert samples[0].load_images(10_000)[0].size == (64, 64)
