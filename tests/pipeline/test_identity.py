"""What is in a fingerprint, what is not, and when files are read again."""

from __future__ import annotations

import shutil
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.identity
from pipeline.identity import Digests, MissingInput, changed_fields, fingerprint, spell
from stages.contract import STAGES
from stages.contract.settings import Incidental, Settings


def leaves(settings: type[Settings], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field that holds a plain value, with the path to it; optional sections are entered too."""
    for name, field in settings.model_fields.items():
        inner = [part for part in typing.get_args(field.annotation) or (field.annotation,) if is_settings(part)]
        if inner:
            yield from leaves(inner[0], (*prefix, name))
        else:
            yield (*prefix, name), field


def is_settings(kind: Any) -> bool:
    """Whether a type is a class of settings."""
    return isinstance(kind, type) and issubclass(kind, Settings)


def with_value(settings: Settings, path: tuple[str, ...], value: str) -> Settings:
    """The same settings with another value at `path`; validation is left out on purpose."""
    name, *rest = path
    inner = getattr(settings, name)
    if inner is None and rest:
        (inner,) = (
            kind() for kind in typing.get_args(type(settings).model_fields[name].annotation) if is_settings(kind)
        )
    return settings.model_copy(update={name: with_value(inner, tuple(rest), value) if rest else value})


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_is_in_the_fingerprint_or_incidental(stage: str) -> None:
    settings = STAGES[stage].settings()
    for path, field in leaves(STAGES[stage].settings):
        incidental = any(isinstance(mark, Incidental) for mark in field.metadata)
        one, other = (fingerprint(with_value(settings, path, value).identity()) for value in ("one", "other"))
        changed = one != other
        assert changed is not incidental, f"{stage}: {'.'.join(path)}"


def test_a_value_of_an_unknown_type_raises() -> None:
    class Odd(Settings):
        thing: Any = types.SimpleNamespace()

    with pytest.raises(TypeError, match="SimpleNamespace has no identity"):
        Odd().identity()
    with pytest.raises(TypeError):
        fingerprint({"thing": Path("weights")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"thing": float("nan")})


def test_the_order_of_keys_does_not_matter() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_changed_fields_are_named_with_both_values() -> None:
    before = {"stage": "interaction", "version": 1, "settings": {"schedule": {"learning_rate": 1e-4}, "lora": None}}
    after = {"stage": "interaction", "version": 2, "settings": {"schedule": {"learning_rate": 5e-5}, "lora": {"r": 1}}}
    assert changed_fields(before, after) == [
        "interaction.lora null → absent",
        "interaction.lora.r absent → 1",
        "interaction.schedule.learning_rate 1e-4 → 5e-5",
        "interaction.version 1 → 2",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-4"), (2.5e-6, "2.5e-6"), (0.03, "0.03"), (0.0, "0.0"), (1.0, "1.0"), (None, "null"), ("kl", "kl")],
)
def test_numbers_are_spelled_as_people_write_them(value: Any, text: str) -> None:
    assert spell(value) == text


def test_a_checkpoint_is_its_content_not_its_place(world: Path) -> None:
    teacher = world / "store" / "prepared" / "digits" / "teacher"
    before = Digests(world).checkpoint(str(teacher))
    moved = teacher.rename(world / "moved")
    (moved / "training.log").write_text("not part of the model")
    assert Digests(world).checkpoint(str(moved)) == before
    (moved / "model.safetensors").write_bytes(b"teachex")
    assert Digests(world).checkpoint(str(moved)) != before


def test_a_hub_id_is_itself_and_its_revision() -> None:
    digests = Digests(Path("/nowhere"))
    assert digests.checkpoint("Qwen/Some-2B") == "Qwen/Some-2B@main"
    assert digests.checkpoint("Qwen/Some-2B@abc123") == "Qwen/Some-2B@abc123"


def test_samples_are_their_content_and_that_of_their_images(world: Path) -> None:
    prepared = world / "store" / "prepared" / "digits"
    samples = prepared / "train.jsonl"
    seen = {Digests(world).samples(str(samples))}
    for change in (
        lambda: (prepared / "images" / "train.png").write_bytes(b"other"),
        lambda: (prepared / "images" / "train.png").unlink(),
        lambda: samples.write_text(samples.read_text() + 'torn {"images": [\n'),
    ):
        change()
        digest = Digests(world).samples(str(samples))
        assert digest not in seen
        seen.add(digest)


def test_unchanged_files_are_not_read_again(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = str(world / "store" / "prepared" / "digits" / "teacher")
    first = Digests(world)
    digest = first.checkpoint(teacher)
    first.save()
    monkeypatch.setattr(pipeline.identity, "sha256_of", lambda path: pytest.fail(f"{path} was read again"))
    assert Digests(world).checkpoint(teacher) == digest


def test_samples_are_read_only_when_their_files_change(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = world / "store" / "prepared" / "digits"
    train = str(prepared / "train.jsonl")
    first = Digests(world)
    digest = first.samples(train)
    first.save()
    with monkeypatch.context() as patches:
        patches.setattr(pipeline.identity, "_named_pictures", lambda place: pytest.fail(f"{place} was read again"))
        assert Digests(world).samples(train) == digest
        (prepared / "images" / "train.png").write_bytes(b"other")
        assert Digests(world).samples(train) != digest
    (prepared / "train.jsonl").write_text((prepared / "test.jsonl").read_text())
    assert Digests(world).samples(train) == Digests(world).samples(str(prepared / "test.jsonl"))


def test_a_damaged_memory_is_forgotten(world: Path) -> None:
    train = str(world / "store" / "prepared" / "digits" / "train.jsonl")
    digest = Digests(world).samples(train)
    for memory in ("{torn", "[]", "{}", '{"files": {}}', '{"files": 3, "pictures": 4}'):
        (world / ".digests.json").write_text(memory)
        assert Digests(world).samples(train) == digest


def test_what_is_missing_is_named(world: Path) -> None:
    with pytest.raises(MissingInput, match="no config.json"):
        Digests(world).checkpoint(str(world))
    with pytest.raises(MissingInput, match=r"nothing.jsonl does not exist"):
        Digests(world).samples(str(world / "nothing.jsonl"))


class TestDataSets:
    """Every form of data has an identity; what is not read again has one too."""

    def digest(self, world: Path, place: Path, **options: Any) -> str:
        return Digests(world).samples(str(place), **options)

    def mixture(self, world: Path, text: str) -> Path:
        path = world / "mixture.yaml"
        path.write_text(text)
        return path

    def test_a_mixture_is_what_it_takes_of_which_content(self, world: Path) -> None:
        shutil.copytree(world / "store" / "prepared" / "digits", world / "data")
        same = "sources: [{name: a, path: data/train.jsonl}]"
        first = self.digest(world, self.mixture(world, same))
        assert first == self.digest(world, self.mixture(world, f"# the same\n{same}"))
        assert first != self.digest(world, self.mixture(world, "sources: [{name: a, path: data/train.jsonl, cap: 0}]"))
        assert first != self.digest(world, self.mixture(world, "sources: [{name: a, path: data/test.jsonl}]"))
        (world / "data").rename(world / "moved")
        assert first == self.digest(world, self.mixture(world, "sources: [{name: a, path: moved/train.jsonl}]"))
        (world / "moved" / "images" / "train.png").write_bytes(b"other")
        assert first != self.digest(world, self.mixture(world, "sources: [{name: a, path: moved/train.jsonl}]"))

    def test_a_folder_is_the_content_of_its_files(self, world: Path) -> None:
        folder = world / "shards"
        folder.mkdir()
        turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
        seen = set()
        for shard in range(3):
            pq.write_table(pa.Table.from_pylist([{"conversations": turns}]), folder / f"{shard}.parquet")
            seen.add(self.digest(world, folder))
        assert len(seen) == 3

    def test_pictures_need_not_be_read(self, world: Path) -> None:
        prepared = world / "store" / "prepared" / "digits"
        first = self.digest(world, prepared / "train.jsonl", pictures=False)
        (prepared / "images" / "train.png").write_bytes(b"other")
        assert first == self.digest(world, prepared / "train.jsonl", pictures=False)

    def test_a_stated_format_is_part_of_it(self, world: Path) -> None:
        train = world / "store" / "prepared" / "digits" / "train.jsonl"
        assert self.digest(world, Path(f"{train}#messages")) != self.digest(world, train)
