"""An artifact: a folder that is there whole, with a manifest, or not there at all.

A stage works in `<place>.partial`. When it is done, the manifest (every file with its size and
checksum) is written last into that folder, and the folder is renamed to `<place>`. A kill at any
line leaves either the artifact or a work folder that the next run takes up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.contract.files import JOB_FILE, JOURNAL_FILE

MANIFEST_FILE = "manifest.json"
WORK_SUFFIX = ".partial"
SCRATCH_FOLDER = "scratch"
"""Checkpoints and other things that serve only to resume; dropped when the artifact is committed."""
_OLD_SUFFIX = ".replaced"
_OWNER_FILE = "owner.txt"
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
    mlflow_run_id: str | None = None

    @classmethod
    def of_folder(
        cls,
        folder: Path,
        *,
        stage: str,
        fingerprint: str,
        identity: dict[str, Any],
        inputs: dict[str, str],
        summary: dict[str, Any],
        started: float,
    ) -> Manifest:
        """Describe everything in `folder` that belongs to the artifact."""
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        return cls(
            stage=stage,
            fingerprint=fingerprint,
            identity=identity,
            inputs=inputs,
            summary=summary,
            files=tuple(
                File(path=str(path.relative_to(folder)), bytes=path.stat().st_size, sha256=file_sha256(path))
                for path in _result_files(folder)
            ),
            versions=_versions(),
            started=started,
            duration_seconds=time.time() - started,
            mlflow_run_id=os.environ.get("MLFLOW_RUN_ID"),
        )

    def has_result_of(self, other: Manifest) -> bool:
        """Whether all files are those of another manifest, but for what tells of the run itself."""
        ours, theirs = ({file for file in m.files if file.path not in (JOB_FILE, JOURNAL_FILE)} for m in (self, other))
        return ours == theirs


@dataclass(frozen=True)
class Artifact:
    """A committed artifact."""

    path: Path
    manifest: Manifest

    def damage(self) -> list[str]:
        """Files that are missing or have another size than was committed; contents are not read."""
        return [file.path for file in self.manifest.files if _size(self.path / file.path) != file.bytes]

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            ArtifactError: a file is missing, truncated or altered; it is named.
        """
        for file in self.manifest.files:
            path = self.path / file.path
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; rebuild with `vlsi run --force {self.manifest.stage}`")
            if path.stat().st_size != file.bytes or file_sha256(path) != file.sha256:
                raise ArtifactError(
                    f"{path} is not what was committed; rebuild with `vlsi run --force {self.manifest.stage}`"
                )


def open_artifact(place: Path) -> Artifact | None:
    """The artifact committed at `place`, or None. An interrupted commit is completed first.

    Raises:
        ArtifactError: the manifest cannot be read.
    """
    _finish_commit(place)
    path = place / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        return Artifact(place, Manifest.model_validate_json(path.read_text()))
    except (ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); delete {place} to rebuild it") from error


def work_folder(place: Path) -> Path:
    """Where a stage works until its artifact is committed at `place`."""
    return place.with_name(place.name + WORK_SUFFIX)


def prepare_work(place: Path, *, fresh: bool, identity: str) -> Path:
    """Make or take up the work folder of `place`; a fresh attempt starts from nothing."""
    work = work_folder(place)
    owner = work / _OWNER_FILE
    attempt = _attempt(identity, fresh=fresh)
    if work.exists() and not (owner.is_file() and owner.read_text() == attempt):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    owner.write_text(attempt)
    return work


def reopen(artifact: Artifact, *, identity: str) -> None:
    """Make a damaged artifact the work folder again, so that its stage makes what is missing and no more."""
    work = work_folder(artifact.path)
    shutil.rmtree(work, ignore_errors=True)
    (artifact.path / _OWNER_FILE).write_text(_attempt(identity, fresh=False))
    artifact.path.rename(work)
    (work / MANIFEST_FILE).unlink()


def commit(work: Path, place: Path, manifest: Manifest) -> None:
    """Make `work` the artifact at `place`, replacing an earlier one only now."""
    for file in manifest.files:
        _sync(work / file.path)
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
    _sync(place.parent)
    shutil.rmtree(_old(place), ignore_errors=True)
    shutil.rmtree(place / SCRATCH_FOLDER, ignore_errors=True)
    (place / _OWNER_FILE).unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new, never a part."""
    temporary = _temporary(path)
    temporary.write_text(text)
    _sync(temporary)
    temporary.replace(path)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """One spelling for one value, in every process."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _attempt(identity: str, *, fresh: bool) -> str:
    return f"{identity} {'forced' if fresh else 'first'}"


def _result_files(folder: Path) -> list[Path]:
    """What belongs to the artifact; checkpoints and the owner's mark are dropped once it is committed."""
    scratch = folder / SCRATCH_FOLDER
    ours = (folder / _OWNER_FILE, _temporary(folder / MANIFEST_FILE))
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(scratch))
    return sorted(path for path in paths if path not in ours)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _old(place: Path) -> Path:
    return place.with_name(place.name + _OLD_SUFFIX)


def _finish_commit(place: Path) -> None:
    """Between the two renames of a replacement nothing stands at `place`; put one there."""
    if place.exists() or not _old(place).exists():
        return
    finished = work_folder(place)
    (finished if (finished / MANIFEST_FILE).is_file() else _old(place)).rename(place)
    shutil.rmtree(_old(place), ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    found = {}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
