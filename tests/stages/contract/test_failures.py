"""Disks and object stores that fail: one sentence, nothing half committed, and the next start goes on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.contract import Journal, open_artifact
from stages.contract import place as places
from stages.contract.failures import explain
from stages.contract.job import Job, main
from stages.contract.place import Place, Remote, place_of, staged, write_whole
from tests.object_store import Server

KEPT = "start again after that: what is finished is kept"
Wrap = Callable[[Exception], Exception]


def in_a_ray_task(error: Exception) -> Exception:
    return RuntimeError(
        f"\x1b[36mray::MapBatches()\x1b[39m (pid=1)\n  File 'x', line 3\n{type(error).__name__}: {error}"
    )


def caused(error: Exception) -> Exception:
    wrapped = RuntimeError("something else")
    wrapped.__cause__ = error
    return wrapped


def as_rust_says_it(error: Exception) -> Exception:
    return RuntimeError(f"I/O error: No space left on device (os error {error.errno})")  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrap", [lambda error: error, in_a_ray_task, caused, as_rust_says_it])
def test_a_full_disk_is_told_however_it_is_wrapped(wrap: Wrap) -> None:
    error = wrap(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert explain(error, "/store/x") == f"/store/x: no space left on device; free some space, and {KEPT}"


def test_the_file_that_the_error_names_is_the_place() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/models/teacher/config.json")
    sentence = f"/models/teacher/config.json: permission denied; give this user the right to it, and {KEPT}"
    assert explain(error, "/store/x") == sentence


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (
            "AWS Error UNKNOWN (HTTP status 500) during PutObject operation: Internal",
            "whether the object store answers",
        ),
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout", "object store answers"),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body", "the credentials in the environment"),
        ("AWS Error NO_SUCH_BUCKET during PutObject operation", "the bucket's name"),
    ],
)
def test_an_object_store_that_fails_is_told_from_one_that_refuses(said: str, remedy: str) -> None:
    sentence = explain(OSError(f"When doing something for key 'x' in bucket 'y': {said}."), "s3://y/x")
    assert sentence is not None
    assert sentence.startswith(f"s3://y/x: {said}; look ")
    assert remedy in sentence
    assert sentence.endswith(KEPT)


@pytest.mark.parametrize("error", [ValueError("no space"), FileNotFoundError(errno.ENOENT, "No such file", "x")])
def test_other_errors_are_not_explained(error: Exception) -> None:
    assert explain(error, "/store/x") is None


def test_a_device_that_is_really_full_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught:
        Path("/dev/full").write_text("x")
    assert "no space left on device" in str(explain(caught.value, tmp_path))


def write_twice(job: Job, work: Place) -> dict[str, Any]:
    """A stage: a journal, a file that stays if it is there, and another file."""
    journal = Journal(work, total=2, unit="steps")
    journal.write(1)
    if not (work / "first").exists():
        with staged(work / "first") as path:
            path.write_text("1")
    journal.write(2)
    write_whole(work / "second", "2")
    return {}


@pytest.fixture
def call_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Place], int]:
    monkeypatch.setitem(sys.modules, "stages.evaluation", SimpleNamespace(run=write_twice))

    def call_stage(output: Place) -> int:
        inputs = {"model": "/model", "samples": "/samples.jsonl"}
        job = Job(stage="evaluation", settings={}, inputs=inputs, output=str(output), fingerprint="f")
        (tmp_path / "job.json").write_text(job.model_dump_json())
        return main("evaluation", ["--job", str(tmp_path / "job.json")])

    return call_stage


def fail_from(count: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every renaming of a file fail from the `count`-th on: files that are written whole end with one."""
    renamed, rename = [0], Path.replace

    def replace(self: Path, target: Path) -> Path:
        renamed[0] += 1
        if renamed[0] >= count:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)


RENAMINGS = 6
"""Of the stage above: the owner's mark, the job, the journal, its two files, the manifest."""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("count", range(1, RENAMINGS + 1))
def test_a_disk_that_fails_at_any_file_leaves_nothing_half_and_the_next_start_goes_on(
    call_stage: Callable[[Place], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    count: int,
    code: int,
) -> None:
    output = tmp_path / "store" / "0123"
    with pytest.MonkeyPatch.context() as disk:
        fail_from(count, OSError(code, os.strerror(code)), disk)
        assert call_stage(output) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluation: ")]
    assert line.startswith(f"evaluation: {output}: {os.strerror(code).lower()}; ")
    assert line.endswith(KEPT)
    assert open_artifact(output) is None
    assert not list(tmp_path.rglob(".writing-*"))
    assert call_stage(output) == 0
    artifact = open_artifact(output)
    assert artifact is not None
    artifact.verify()
    assert {file.path for file in artifact.manifest.files} == {"first", "second", "job.json", "metrics.jsonl"}


@pytest.fixture
def impatient(store: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Requests to the object store are not repeated."""
    places._filesystem.cache_clear()
    monkeypatch.setattr(places, "ATTEMPTS", 1)
    yield
    store.faults(errors=0.0)
    places._filesystem.cache_clear()


@pytest.mark.usefixtures("impatient")
def test_an_object_store_that_does_not_answer_is_told_and_the_next_start_goes_on(
    call_stage: Callable[[Place], int],
    bucket: Remote,
    store: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = bucket / tmp_path.name

    def broken(job: Job, work: Place) -> dict[str, Any]:
        write_whole(work / "first", "1")
        store.faults(errors=1.0)
        return write_twice(job, work)

    monkeypatch.setitem(sys.modules, "stages.evaluation", SimpleNamespace(run=broken))
    assert call_stage(output) == 1
    assert f"evaluation: {output}: AWS Error" in capsys.readouterr().err
    store.faults(errors=0.0)
    assert open_artifact(output) is None
    monkeypatch.setitem(sys.modules, "stages.evaluation", SimpleNamespace(run=write_twice))
    assert call_stage(output) == 0
    artifact = open_artifact(place_of(str(output)))
    assert artifact is not None
    artifact.verify()
