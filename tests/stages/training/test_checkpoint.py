"""Checkpoints: written beside the training, kept by count, and trusted only when they are whole."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.contract.place import Place, Remote, files_below
from stages.training import checkpoint
from stages.training.checkpoint import Checkpoints

FLIPPED_BYTE = 200


def state(step: int) -> dict[str, Any]:
    return {"step": step, "trained": {"weight": torch.full((64,), float(step))}}


def write(work: Place, *steps: int) -> Path | Remote:
    with Checkpoints(work) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step))
    return work / "scratch" / "checkpoints"


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[FLIPPED_BYTE] ^= 4
    file.write_bytes(bytes(data))


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:FLIPPED_BYTE])


def test_the_newest_two_are_kept_and_the_newest_is_taken(tmp_path: Path) -> None:
    folder = write(tmp_path, 2, 4, 6)
    assert set(files_below(folder)) == {"00000004.json", "00000004.pt", "00000006.json", "00000006.pt"}
    step, found, notice = Checkpoints(tmp_path).newest()
    assert (step, notice) == (6, "")
    assert found is not None
    assert torch.equal(found["trained"]["weight"], state(6)["trained"]["weight"])


def test_without_one_the_training_starts_from_the_beginning(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).newest() == (0, None, "")


@pytest.mark.parametrize("damage", [flip_a_bit, tear, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = write(tmp_path, 2, 4)
    damage(folder / "00000004.pt")
    step, found, notice = Checkpoints(tmp_path).newest()
    assert step == 2
    assert found is not None
    assert found["step"] == 2
    expected = f"the checkpoint of step 4, {folder}/00000004.pt, is not what was written; going on after step 2"
    assert notice == expected
    assert set(files_below(folder)) == {"00000002.json", "00000002.pt"}


@pytest.mark.parametrize("content", ["", "{", "{}", '{"bytes": 1, "sha256": ""}'])
def test_a_damaged_record_is_a_damaged_checkpoint(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path, 2, 4)
    (folder / "00000004.json").write_text(content)
    assert Checkpoints(tmp_path).newest()[0] == 2


def test_if_none_is_whole_that_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path, 2, 4)
    for file in folder.glob("*.pt"):
        tear(file)
    step, found, notice = Checkpoints(tmp_path).newest()
    assert (step, found) == (0, None)
    assert "of step 4" in notice
    assert "of step 2" in notice
    assert notice.endswith("no checkpoint is whole, so starting from the beginning")


def test_a_checkpoint_without_its_record_is_none(tmp_path: Path) -> None:
    """What a kill between the two leaves. The record is written last."""
    folder = write(tmp_path, 2, 4)
    (folder / "00000004.json").unlink()
    assert Checkpoints(tmp_path).newest()[0] == 2


def test_the_training_goes_on_while_a_checkpoint_is_written_and_waits_only_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, events = threading.Event(), []
    write_it = Checkpoints._write

    def slow(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        assert may_write.wait(60)
        write_it(self, step, state)
        events.append(f"{step} is written")

    monkeypatch.setattr(Checkpoints, "_write", slow)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state(2))
        events.append("the training goes on")
        may_write.set()
        checkpoints.save(4, state(4))
        events.append("the second one has begun")
    assert events[0] == "the training goes on"
    assert events.index("2 is written") < events.index("the second one has begun")
    assert events.index("4 is written") == len(events) - 1 or events[-1] == "the second one has begun"
    assert Checkpoints(tmp_path).newest()[0] == 4


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", fail)


def test_a_checkpoint_that_cannot_be_written_stops_the_training_and_leaves_the_one_before(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    write(tmp_path, 2)
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 4, 6)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 4)
    assert Checkpoints(tmp_path).newest()[0] == 2


@pytest.mark.usefixtures("full_disk")
def test_what_the_training_died_of_comes_before_what_its_checkpoint_died_of(tmp_path: Path) -> None:
    def train() -> None:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(4, state(4))
            raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        train()


def test_in_an_object_store_they_are_the_same(bucket: Remote, tmp_path: Path) -> None:
    work = bucket / tmp_path.name
    folder = write(work, 2, 4, 6)
    assert len(files_below(folder)) == 4
    step, found, _ = Checkpoints(work).newest()
    assert found is not None
    assert (step, found["step"]) == (6, 6)
    (folder / "00000006.pt").write_text("torn")
    step, _, notice = Checkpoints(work).newest()
    assert step == 4
    assert notice.startswith(f"the checkpoint of step 6, {folder}/00000006.pt, is not what was written")
