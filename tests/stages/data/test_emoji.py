"""Emoji become conversations about their pictures; one without a picture is left out, and a tenth is held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from stages.data import emoji
from stages.data.sample import read_samples

LEMON = {"name": "LEMON", "short_name": "lemon", "category": "Food & Drink", "subcategory": "food-fruit"}
PICTURES = [f"1f3{number:02x}.png" for number in range(60)]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Sixty lemons with a picture, and a ghost without."""
    package = tmp_path / "package"
    (package / "img" / "twitter" / "64").mkdir(parents=True)
    for picture in PICTURES:
        Image.new("RGBA", (64, 64)).save(package / "img" / "twitter" / "64" / picture)
    entries = [LEMON | {"short_name": picture, "image": picture} for picture in PICTURES]
    write_entries(package, [*entries, LEMON | {"short_name": "ghost", "image": "none.png"}])
    return package


def write_entries(package: Path, entries: list[dict[str, str]]) -> None:
    (package / "emoji.json").write_text(json.dumps(entries))


def splits_of(folder: Path) -> dict[str, list[str]]:
    return {
        name: [one["id"] for one in json.loads((folder / f"{name}.json").read_text())] for name in ("train", "test")
    }


def test_every_emoji_with_a_picture_is_a_sample_of_one_split(package: Path, tmp_path: Path) -> None:
    counts = emoji.write_samples(package, tmp_path / "out")
    splits = splits_of(tmp_path / "out")
    assert counts == {name: len(ids) for name, ids in splits.items()}
    assert sorted(splits["train"] + splits["test"]) == PICTURES
    assert 0 < counts["test"] < counts["train"]


@pytest.mark.parametrize("name", ["train", "test"])
def test_samples_are_read_with_their_captions_and_pictures(name: str, package: Path, tmp_path: Path) -> None:
    emoji.write_samples(package, tmp_path / "out")
    samples, bad = read_samples(tmp_path / "out" / f"{name}.json")
    assert bad == []
    assert samples[0].responses == ["lemon", "food & drink, food fruit"]
    assert samples[0].load_images(10_000)[0].size == (64, 64)


def test_the_split_depends_on_the_picture_alone(package: Path, tmp_path: Path) -> None:
    emoji.write_samples(package, tmp_path / "all")
    entries = json.loads((package / "emoji.json").read_text())
    write_entries(package, entries[::-2])
    emoji.write_samples(package, tmp_path / "some")
    everything, some = splits_of(tmp_path / "all"), splits_of(tmp_path / "some")
    for name in ("train", "test"):
        assert some[name]
        assert set(some[name]) <= set(everything[name])
