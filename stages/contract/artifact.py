"""An artifact: a folder that is there whole, with a manifest, or not there at all.

On this machine a stage works in `<place>.partial`. When it is done, the manifest (every file with its
size and checksum) is written last into that folder, and the folder is renamed to `<place>`. An object
store renames nothing: there a stage works at `<place>` itself, or in `<place>/again` while an earlier
result stands at `<place>`, and the manifest, put last with one request, says which of the two is the
artifact. A kill at any line leaves either the artifact or a work folder that the next run takes up.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.contract.files import JOB_FILE, JOURNAL_FILE, SHARDS_FILE
from stages.contract.lease import LEASE_FILE
from stages.contract.place import (
    TEMPORARY_PREFIX,
    Place,
    Remote,
    files_below,
    place_of,
    remove,
    sha256_of,
    size_of,
    sync,
    write_whole,
)

MANIFEST_FILE = "manifest.json"
WORK_SUFFIX = ".partial"
SCRATCH_FOLDER = "scratch"
"""Checkpoints and other things that serve only to resume; dropped when the artifact is committed."""
REPLACED_SUFFIX = ".replaced"
_SECOND_FOLDER = "again"
_OWNER_FILE = "owner.txt"
RUN_VARIABLE = "VLSI_RUN"
"""Names the run of the chain that a stage works for."""
_RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "peft", "ray", "pyarrow", "pydantic")


class ArtifactError(Exception):
    """An artifact is damaged or cannot be written."""


class File(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The record beside the data; written last."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    stage: str
    fingerprint: str
    identity: dict[str, Any]
    inputs: dict[str, str]
    summary: dict[str, Any]
    """What the stage says of its result: row counts, scores, final losses."""
    files: tuple[File, ...]
    versions: dict[str, str]
    started: float
    """Seconds since the epoch."""
    duration_seconds: float
    run: str | None = None
    """Id of the run that made it; its record says under which MLflow run."""
    root: str = ""
    """Where below its place an artifact in an object store has its files."""

    @classmethod
    def of_folder(
        cls,
        folder: Place,
        *,
        stage: str,
        fingerprint: str,
        identity: dict[str, Any],
        inputs: dict[str, str],
        summary: dict[str, Any],
        started: float,
    ) -> Manifest:
        """Describe everything in `folder` that belongs to the artifact; shards are not read again."""
        checksums = _shard_checksums(folder)
        if isinstance(folder, Path):
            (folder / MANIFEST_FILE).unlink(missing_ok=True)
        return cls(
            stage=stage,
            fingerprint=fingerprint,
            identity=identity,
            inputs=inputs,
            summary=summary,
            files=tuple(
                File(path=name, bytes=size, sha256=checksums.get(name) or sha256_of(folder / name))
                for name, size in _result_files(folder).items()
            ),
            versions=_versions(),
            started=started,
            duration_seconds=time.time() - started,
            run=os.environ.get(RUN_VARIABLE) or None,
            root=_root_of(folder),
        )

    def of_copy(self, folder: Place) -> Manifest:
        """The record of the same files in another work folder."""
        return self.model_copy(update={"root": _root_of(folder)})

    def has_result_of(self, other: Manifest) -> bool:
        """Whether all files are those of another manifest, but for what tells of the run itself."""
        ours, theirs = ({file for file in m.files if file.path not in (JOB_FILE, JOURNAL_FILE)} for m in (self, other))
        return ours == theirs


@dataclass(frozen=True)
class Artifact:
    """A committed artifact.

    Attributes:
        place: where it is asked for.
        manifest: its record.
    """

    place: Place
    manifest: Manifest

    @property
    def path(self) -> Place:
        """The folder of its files."""
        return self.place / self.manifest.root

    def damage(self) -> list[str]:
        """Files that are missing or have another size than was committed; contents are not read."""
        sizes = files_below(self.path)
        return [file.path for file in self.manifest.files if sizes.get(file.path) != file.bytes]

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            ArtifactError: a file is missing, truncated or altered; it is named.
        """
        for file in self.manifest.files:
            path = self.path / file.path
            size = size_of(path)
            if size is None or size != file.bytes or sha256_of(path) != file.sha256:
                raise self.complaint(file.path)

    def complaint(self, name: str) -> ArtifactError:
        """What to say of a file that is missing, truncated or altered."""
        wrong = "is not what was committed" if size_of(self.path / name) is not None else "is missing"
        stage = self.manifest.stage
        command = "vlsi prepare" if stage == "prepare" else f"vlsi run --force {stage}"
        return ArtifactError(f"{self.path / name} {wrong}; rebuild with `{command}`")


def open_artifact(place: Place) -> Artifact | None:
    """The artifact committed at `place`, or None. An interrupted commit is completed first.

    Raises:
        ArtifactError: the manifest cannot be read.
    """
    if not isinstance(place, Remote):
        _finish_commit(place)
    path = place / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        return Artifact(place, Manifest.model_validate_json(path.read_text()))
    except (ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); delete {place} to rebuild it") from error


def folder_of(where: str | Place) -> Place:
    """The files of what a job names as its input: an artifact, or any other folder or file."""
    place = place_of(where)
    artifact = open_artifact(place) if isinstance(place, Remote) else None
    return artifact.path if artifact else place


def work_folder(place: Place) -> Place:
    """Where a stage works until its artifact is committed at `place`."""
    if not isinstance(place, Remote):
        return place.with_name(place.name + WORK_SUFFIX)
    committed = open_artifact(place)
    if committed is not None:
        return place / ("" if committed.manifest.root else _SECOND_FOLDER)
    reopened = place / _SECOND_FOLDER
    return reopened if (reopened / _OWNER_FILE).is_file() else place


def folders_of(place: Place) -> tuple[Place, ...]:
    """Every folder that belongs to the artifact at `place`: what a commit replaced, what is worked on, its own."""
    return (place,) if isinstance(place, Remote) else (_old(place), work_folder(place), place)


def has_work(place: Place) -> bool:
    """Whether an attempt to make the artifact at `place` has begun and is not committed."""
    return (work_folder(place) / _OWNER_FILE).is_file()


def prepare_work(place: Place, *, fresh: bool, identity: str) -> Place:
    """Make or take up the work folder of `place`; a fresh attempt starts from nothing."""
    work = work_folder(place)
    owner = work / _OWNER_FILE
    attempt = _attempt(identity, fresh=fresh)
    if not (owner.is_file() and owner.read_text() == attempt):
        _clear(work)
    work.mkdir(parents=True, exist_ok=True)
    if isinstance(work, Path):
        _remove_temporary(work)
    write_whole(owner, attempt)
    return work


def reopen(artifact: Artifact, *, identity: str) -> None:
    """Make a damaged artifact the work folder again, so that its stage makes what is missing and no more."""
    place = artifact.place
    write_whole(artifact.path / _OWNER_FILE, _attempt(identity, fresh=False))
    if isinstance(place, Remote):
        (place / MANIFEST_FILE).unlink()
        return
    work = work_folder(place)
    remove(work)
    place.rename(work)  # type: ignore[arg-type]
    (work / MANIFEST_FILE).unlink()


def discard(place: Place) -> None:
    """Delete the artifact at `place` and what attempts to make it have left.

    A kill on the way leaves nothing that looks made or begun: what says so goes first.
    """
    for folder in folders_of(place):
        for mark in (MANIFEST_FILE, _OWNER_FILE, f"{_SECOND_FOLDER}/{_OWNER_FILE}"):
            (folder / mark).unlink(missing_ok=True)
    for folder in folders_of(place):
        remove(folder)
        if folder.exists():
            raise ArtifactError(f"{folder} cannot be deleted whole; look at its permissions, then do it again")


def commit(work: Place, place: Place, manifest: Manifest) -> None:
    """Make `work` the artifact at `place`, replacing an earlier one only now."""
    if isinstance(work, Remote) and isinstance(place, Remote):
        _commit_remote(work, place, manifest)
    elif isinstance(work, Path) and isinstance(place, Path):
        _commit_here(work, place, manifest)
    else:
        raise ValueError(f"{work} cannot become {place}: they are in different kinds of store")


def _commit_here(work: Path, place: Path, manifest: Manifest) -> None:
    """The manifest last, then the rename."""
    for file in manifest.files:
        sync(work / file.path)
    write_whole(work / MANIFEST_FILE, manifest.model_dump_json(indent=2))
    if place.exists():
        if _old(place).exists():
            shutil.rmtree(_old(place))
        place.rename(_old(place))
    try:
        work.rename(place)
    except FileNotFoundError:
        # Whoever opened the artifact between the two renames has finished the commit.
        if not (place / MANIFEST_FILE).is_file():
            raise
    sync(place.parent)
    shutil.rmtree(_old(place), ignore_errors=True)
    shutil.rmtree(place / SCRATCH_FOLDER, ignore_errors=True)
    _remove_temporary(place)
    (place / _OWNER_FILE).unlink(missing_ok=True)


def _commit_remote(work: Remote, place: Remote, manifest: Manifest) -> None:
    """One put of the manifest; then what it replaced and what served to resume is deleted."""
    replaced = open_artifact(place)
    write_whole(place / MANIFEST_FILE, manifest.model_dump_json(indent=2))
    if replaced is not None:
        for file in replaced.manifest.files:
            (replaced.path / file.path).unlink(missing_ok=True)
    remove(work / SCRATCH_FOLDER)
    (work / _OWNER_FILE).unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """One spelling for one value, in every process."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _attempt(identity: str, *, fresh: bool) -> str:
    return f"{identity} {'forced' if fresh else 'first'}"


def _result_files(folder: Place) -> dict[str, int]:
    """What belongs to the artifact; checkpoints and the owner's mark are dropped once it is committed."""
    others = (f"{SCRATCH_FOLDER}/", f"{_SECOND_FOLDER}/")
    ours = (_OWNER_FILE, MANIFEST_FILE, LEASE_FILE)
    return {n: size for n, size in files_below(folder).items() if n not in ours and not n.startswith(others)}


def _shard_checksums(folder: Place) -> dict[str, str]:
    """What those who wrote the shards know of them."""
    index = folder / SHARDS_FILE
    lines = [json.loads(line) for line in index.read_text().splitlines()] if index.is_file() else []
    return {line["path"]: line["sha256"] for line in lines}


def _clear(work: Place) -> None:
    """Empty a work folder, but for what stands beside it in an object store."""
    if not isinstance(work, Remote):
        remove(work)
        return
    for name in _result_files(work):
        (work / name).unlink()
    remove(work / SCRATCH_FOLDER)


def _remove_temporary(folder: Path) -> None:
    """What kills left of files that were being written."""
    for left in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _root_of(folder: Place) -> str:
    return _SECOND_FOLDER if isinstance(folder, Remote) and folder.name == _SECOND_FOLDER else ""


def _old(place: Path) -> Path:
    return place.with_name(place.name + REPLACED_SUFFIX)


def _finish_commit(place: Path) -> None:
    """Between the two renames of a replacement nothing stands at `place`; put one there."""
    if place.exists() or not _old(place).exists():
        return
    finished = place.with_name(place.name + WORK_SUFFIX)
    (finished if (finished / MANIFEST_FILE).is_file() else _old(place)).rename(place)
    shutil.rmtree(_old(place), ignore_errors=True)


def _versions() -> dict[str, str]:
    found = {}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
