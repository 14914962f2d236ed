"""Artifacts: there whole or not at all, whenever the process dies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.contract import artifact as module
from stages.contract.artifact import (
    MANIFEST_FILE,
    SCRATCH_FOLDER,
    Artifact,
    ArtifactError,
    Manifest,
    canonical_json,
    commit,
    open_artifact,
    prepare_work,
    reopen,
    work_folder,
)
from stages.contract.place import write_whole


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` on the way may catch it."""


def fill(place: Path, content: str, *, fresh: bool = False) -> Path:
    """What a stage does before its commit."""
    work = prepare_work(place, fresh=fresh, identity="f")
    (work / "weights.bin").write_text(content)
    (work / "shards").mkdir(exist_ok=True)
    (work / "shards" / "0.parquet").write_text(content * 2)
    (work / SCRATCH_FOLDER).mkdir(exist_ok=True)
    (work / SCRATCH_FOLDER / "checkpoint").write_text("large")
    return work


def describe(work: Path, content: str) -> Manifest:
    return Manifest.of_folder(
        work,
        stage="capture",
        fingerprint="f",
        identity={"stage": "capture"},
        inputs={"samples": "/data"},
        summary={"content": content},
        started=0.0,
    )


def make(place: Path, content: str, *, fresh: bool = False) -> None:
    work = fill(place, content, fresh=fresh)
    commit(work, place, describe(work, content))


def content_of(place: Path) -> str | None:
    """Of the artifact that stands at a place; every file is compared with the manifest first."""
    if (found := open_artifact(place)) is None:
        return None
    found.verify()
    assert (found.path / "weights.bin").read_text() == found.manifest.summary["content"]
    return found.manifest.summary["content"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store" / "capture" / "0123"


def test_what_is_committed_is_what_is_opened(place: Path) -> None:
    """The files, with sizes and checksums, and the record. Red if scratch or the owner's mark is part of it."""
    assert open_artifact(place) is None
    make(place, "new")
    found = open_artifact(place)
    assert isinstance(found, Artifact)
    assert {file.path: file.bytes for file in found.manifest.files} == {"weights.bin": 3, "shards/0.parquet": 6}
    there = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert there == {"weights.bin", "shards/0.parquet", MANIFEST_FILE}
    assert found.manifest.inputs == {"samples": "/data"}
    assert found.manifest.identity == {"stage": "capture"}
    assert found.manifest.versions["torch"]
    assert content_of(place) == "new"
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_folder_without_a_manifest_is_no_artifact(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "weights.bin").write_text("half")
    assert open_artifact(place) is None


@pytest.mark.parametrize("text", ["", '{"stage": "capture"', '{"stage": "capture"}', "\xff\xfe"])
def test_an_unreadable_manifest_is_an_error_not_a_missing_artifact(place: Path, text: str) -> None:
    """Red if it counted as missing: a rerun would silently replace what someone may want to look at."""
    make(place, "new")
    (place / MANIFEST_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        ArtifactError, match=rf"(?s){MANIFEST_FILE} cannot be read.*delete .*{place.name} to rebuild it"
    ):
        open_artifact(place)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"0\.parquet is missing"),
        (lambda path: path.write_text("newne"), r"0\.parquet is not what was committed"),
        (lambda path: path.write_text("newneW"), r"0\.parquet is not what was committed"),
    ],
    ids=["missing", "truncated", "altered"],
)
def test_verify_names_the_damaged_file_and_the_way_out(
    place: Path, damage: Callable[[Path], Any], message: str
) -> None:
    """Red if only sizes are compared (the altered file has its old size) or subfolders are left out."""
    make(place, "new")
    damage(place / "shards" / "0.parquet")
    found = open_artifact(place)
    with pytest.raises(ArtifactError, match=message) as error:
        found.verify()
    assert "vlsi run --force capture" in str(error.value)


class Kills:
    """Ends the process at the n-th call of one function, before or after it has done its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def at(self, owner: object, name: str, *, call: int = 1, after: bool = False, where: str = "") -> None:
        original, calls = getattr(owner, name), []

        def dying(*args: Any, **kwargs: Any) -> Any:
            if where in str(args[0]):
                calls.append(args)
            if where in str(args[0]) and len(calls) == call:
                if after:
                    original(*args, **kwargs)
                raise Killed
            return original(*args, **kwargs)

        self._monkeypatch.setattr(owner, name, dying)

    def restart(self) -> None:
        """A new process: everything works again."""
        self._monkeypatch.undo()


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Kills:
    return Kills(monkeypatch)


MANIFEST_NAMED: dict[str, Any] = {"owner": Path, "name": "replace", "where": MANIFEST_FILE}
REPLACING: list[tuple[str, dict[str, Any], str]] = [
    ("while checksums are computed", {"owner": module, "name": "sha256_of"}, "old"),
    ("before the manifest has its name", MANIFEST_NAMED, "old"),
    (
        "after the manifest has its name",
        {**MANIFEST_NAMED, "after": True},
        "old",
    ),
    ("before the first rename", {"owner": Path, "name": "rename"}, "old"),
    ("between the renames", {"owner": Path, "name": "rename", "after": True}, "new"),
    ("before the second rename", {"owner": Path, "name": "rename", "call": 2}, "new"),
    ("after the second rename", {"owner": Path, "name": "rename", "call": 2, "after": True}, "new"),
    ("before the old one is deleted", {"owner": shutil, "name": "rmtree", "where": ".replaced"}, "new"),
    ("after the old one is deleted", {"owner": shutil, "name": "rmtree", "where": ".replaced", "after": True}, "new"),
]
"""Where a commit that replaces an artifact is killed, and what the next process finds."""


@pytest.mark.parametrize(("kill", "expected"), [(k, e) for _, k, e in REPLACING], ids=[n for n, _, _ in REPLACING])
def test_a_kill_in_a_replacing_commit_leaves_the_old_or_the_new_artifact(
    place: Path, kills: Kills, kill: dict[str, Any], expected: str
) -> None:
    """Whole either way. Red if at any line nothing, or a mixture, stands there."""
    make(place, "old")
    kills.at(**kill)
    with pytest.raises(Killed):
        make(place, "new", fresh=True)
    kills.restart()
    assert content_of(place) == expected
    assert content_of(place) == expected, "opening it changed what is there"


NEXT = [pytest.param(kill, id=name) for name, kill, _ in REPLACING]


@pytest.mark.parametrize("kill", NEXT)
def test_after_any_kill_the_next_attempt_can_commit(place: Path, kills: Kills, kill: dict[str, Any]) -> None:
    """Red if something that was left stands in the way: hours of work would end in an error."""
    make(place, "old")
    kills.at(**kill)
    with pytest.raises(Killed):
        make(place, "new", fresh=True)
    kills.restart()
    open_artifact(place)
    make(place, "newer", fresh=True)
    assert content_of(place) == "newer"
    assert [path.name for path in place.parent.iterdir()] == [place.name]


FIRST: list[tuple[str, dict[str, Any]]] = [
    ("while checksums are computed", {"owner": module, "name": "sha256_of"}),
    ("before the manifest has its name", MANIFEST_NAMED),
    ("before the rename", {"owner": Path, "name": "rename"}),
]
"""Where a commit to an empty place is killed."""


@pytest.mark.parametrize("kill", [kill for _, kill in FIRST], ids=[name for name, _ in FIRST])
def test_a_kill_in_a_first_commit_leaves_no_artifact_that_is_not_whole(
    place: Path, kills: Kills, kill: dict[str, Any]
) -> None:
    kills.at(**kill)
    with pytest.raises(Killed):
        make(place, "new")
    kills.restart()
    assert not (place / MANIFEST_FILE).exists()
    assert content_of(place) in (None, "new")
    make(place, "newer")
    assert content_of(place) in ("new", "newer")


@pytest.mark.parametrize("kill", [kill for _, kill in FIRST], ids=[name for name, _ in FIRST])
def test_a_kill_in_a_first_commit_loses_no_work(place: Path, kills: Kills, kill: dict[str, Any]) -> None:
    """The module says: either the artifact, or a work folder that the next run takes up."""
    kills.at(**kill)
    with pytest.raises(Killed):
        make(place, "new")
    kills.restart()
    if open_artifact(place) is None:
        assert (prepare_work(place, fresh=False, identity="f") / "weights.bin").exists()


def test_a_reader_between_the_renames_does_not_break_the_commit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`vlsi status` in another terminal looks just then. Red if the stage fails although its artifact is there."""
    make(place, "old")
    rename = Path.rename

    def looked_at(path: Path, target: Path) -> Path:
        done = rename(path, target)
        if path == place:
            open_artifact(place)
        return done

    monkeypatch.setattr(Path, "rename", looked_at)
    make(place, "new", fresh=True)
    monkeypatch.undo()
    assert content_of(place) == "new"


def test_a_first_commit_is_there_after_its_rename(place: Path, kills: Kills) -> None:
    kills.at(Path, "rename", after=True)
    with pytest.raises(Killed):
        make(place, "new")
    kills.restart()
    assert content_of(place) == "new"


def test_work_of_the_same_identity_is_taken_up(place: Path) -> None:
    fill(place, "half")
    work = prepare_work(place, fresh=False, identity="f")
    assert work == work_folder(place)
    assert (work / "weights.bin").read_text() == "half"
    assert (work / SCRATCH_FOLDER / "checkpoint").exists()


@pytest.mark.parametrize(("fresh", "identity"), [(False, "g"), (True, "f")], ids=["another identity", "forced"])
def test_other_work_is_not_taken_up(place: Path, fresh: bool, identity: str) -> None:
    """Red if a changed recipe, or a forced attempt, continued from what another one left."""
    fill(place, "half")
    work = prepare_work(place, fresh=fresh, identity=identity)
    assert not (work / "weights.bin").exists()
    assert not (work / SCRATCH_FOLDER).exists()


def test_an_interrupted_forced_attempt_is_taken_up_by_the_next_forced_one_only(place: Path) -> None:
    """Forcing again after a crash resumes; running without force starts from the beginning."""
    fill(place, "forced", fresh=True)
    assert (prepare_work(place, fresh=True, identity="f") / "weights.bin").read_text() == "forced"
    assert not (prepare_work(place, fresh=False, identity="f") / "weights.bin").exists()


def test_work_of_nobody_is_not_taken_up(place: Path) -> None:
    work = work_folder(place)
    work.mkdir(parents=True)
    (work / "weights.bin").write_text("?")
    assert not (prepare_work(place, fresh=False, identity="f") / "weights.bin").exists()


def test_an_old_manifest_in_the_work_folder_is_described_anew(place: Path) -> None:
    """Red if the manifest lists itself, or the one of an earlier commit survives."""
    work = fill(place, "new")
    (work / MANIFEST_FILE).write_text("{}")
    assert {file.path for file in describe(work, "new").files} == {"weights.bin", "shards/0.parquet"}
    assert not (work / MANIFEST_FILE).exists()


def test_a_small_file_is_written_whole_or_not(tmp_path: Path, kills: Kills) -> None:
    path = tmp_path / "record.json"
    write_whole(path, "old")
    kills.at(Path, "replace")
    with pytest.raises(Killed):
        write_whole(path, "new")
    kills.restart()
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert [child.name for child in tmp_path.iterdir()] == ["record.json"]


def test_one_value_has_one_spelling() -> None:
    """Whatever order its keys came in; NaN has none."""
    assert canonical_json({"b": [1, 2.5, None], "a": {"y": True, "x": "é"}}) == canonical_json(
        json.loads('{"a": {"x": "é", "y": true}, "b": [1, 2.5, null]}')
    )
    with pytest.raises(ValueError, match="nan|JSON"):
        canonical_json({"a": float("nan")})


def test_damage_names_files_that_are_gone_or_of_another_size(place: Path) -> None:
    make(place, "new")
    artifact = open_artifact(place)
    assert artifact is not None
    assert artifact.damage() == []
    first, second = (artifact.path / file.path for file in artifact.manifest.files[:2])
    first.unlink()
    second.write_bytes(second.read_bytes() + b"x")
    assert artifact.damage() == [file.path for file in artifact.manifest.files[:2]]


def test_a_reopened_artifact_is_taken_up_by_its_own_stage_only(place: Path) -> None:
    """Red if the next attempt starts from nothing, or another recipe takes the files for its own."""
    make(place, "new")
    artifact = open_artifact(place)
    assert artifact is not None
    kept = artifact.manifest.files[1].path
    (place / artifact.manifest.files[0].path).unlink()
    reopen(artifact, identity="this")
    assert open_artifact(place) is None
    assert (prepare_work(place, fresh=False, identity="this") / kept).is_file()
    assert not (prepare_work(place, fresh=False, identity="other") / kept).exists()
