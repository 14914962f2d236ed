"""A mixture takes from each source what its file says, and the same whenever it is read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.contract import StageError
from stages.data.mixture import Source, open_sources
from stages.data.sample import read_samples


def turns(text: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": text}, {"from": "gpt", "value": text}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("a", 10), ("b", 4)):
        (tmp_path / name).mkdir()
        records = [{"id": str(i), "conversations": turns(f"{name}{i}")} for i in range(count)]
        (tmp_path / name / "data.json").write_text(json.dumps(records))
    return tmp_path


def mixture(folder: Path, a: dict[str, Any], b: dict[str, Any], **more: Any) -> Path:
    sources = [{"name": name, "path": f"{name}/data.json", **options} for name, options in (("a", a), ("b", b))]
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"sources": sources, **more}))
    return path


def ids(path: Path) -> list[str]:
    samples, bad = read_samples(path)
    assert bad == []
    return [sample.id for sample in samples]


def test_all_of_every_source_unless_it_says_otherwise(folder: Path) -> None:
    samples, _ = read_samples(mixture(folder, {}, {}))
    assert [sample.id for sample in samples] == [f"a/{i}" for i in range(10)] + [f"b/{i}" for i in range(4)]
    assert Counter(sample.task for sample in samples) == {"a": 10, "b": 4}
    assert samples[11].question == "b1"


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        (({"weight": 0.5}, {}), (5, 4)),
        (({"cap": 3}, {"cap": 100}), (3, 4)),
        (({"weight": 0.5, "cap": 2}, {"weight": 2}), (2, 8)),
        (({"weight": 0}, {"weight": 1.5}), (0, 6)),
    ],
)
def test_weights_and_caps_say_how_many(folder: Path, options: tuple[dict, dict], counts: tuple[int, int]) -> None:
    found = ids(mixture(folder, *options))
    assert Counter(found) == Counter(dict.fromkeys(found, 1)), "an id stands for one sample"
    assert tuple(sum(name.startswith(source) for name in found) for source in "ab") == counts


def test_a_weight_of_two_takes_every_sample_twice(folder: Path) -> None:
    assert ids(mixture(folder, {"cap": 0}, {"weight": 2}))[:4] == ["b/0", "b/0#2", "b/1", "b/1#2"]


def test_the_same_file_takes_the_same_and_another_seed_others(folder: Path) -> None:
    half = {"weight": 0.5}
    first, again = (ids(mixture(folder, half, half)) for _ in range(2))
    assert first == again
    assert first != ids(mixture(folder, half, half, seed=1))
    assert [name for name in first if name[0] == "a"] == [
        name for name in ids(mixture(folder, half, {})) if name[0] == "a"
    ]


def test_a_draw_is_the_same_on_every_machine() -> None:
    """Red if the draw comes to depend on Python's hash seed or version."""
    assert Source(name="a", path=Path("a"), weight=0.3).take(10, seed=0) == [0, 3, 6]


def test_bad_records_are_drawn_like_others(folder: Path) -> None:
    (folder / "b" / "data.json").write_text(json.dumps([7] * 4))
    samples, bad = read_samples(mixture(folder, {}, {"weight": 0.5}))
    assert (len(samples), len(bad)) == (10, 2)
    assert bad[0].id.startswith("b/entry ")


def test_pictures_lie_below_the_folder_that_the_source_names(folder: Path) -> None:
    record = {"id": 1, "image": "1.png", "conversations": turns("<image>\nx")}
    record["conversations"][1]["value"] = "x"
    (folder / "a" / "data.json").write_text(json.dumps([record]))
    samples, _ = read_samples(mixture(folder, {"images": "pictures"}, {}))
    assert samples[0].images == (folder / "pictures" / "1.png",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("sources: []", "at least 1 item"),
        ("sources: [{path: a, name: x}, {path: b, name: x}]", "repeated: 'x'"),
        ("sources: [{path: a, wieght: 1}]", r"sources.0.wieght: extra inputs .* sources with name, path, format"),
        ("sources: [{path: a, format: csv}]", "sources.0.format: input should be 'auto', 'messages'"),
        ("sources: [", "is no YAML"),
        ("sources: [{path: nowhere.json}]", "nowhere.json does not exist"),
        (None, "mixture.yaml does not exist"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "mixture.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StageError, match=reason):
        read_samples(path)


def test_the_paper_s_ten_sources_make_2_9_million_samples() -> None:
    mixture = open_sources(Path(__file__).parents[3] / "conf" / "mixture.yaml")
    assert len(mixture.sources) == 10
    assert sum(source.cap for source in mixture.sources) == 2_848_000
