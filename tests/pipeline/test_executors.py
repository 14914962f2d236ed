"""Stages as processes on this machine. The commands are tiny programs in the place of stages."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipeline.execution import KubeRay, Local, RayJobs
from pipeline.executors import StageFailed, StageStopped, make_executor
from pipeline.executors.cluster import ClusterExecutor
from pipeline.executors.local import LocalExecutor
from stages.contract import Job
from stages.contract.settings import CaptureSettings


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> LocalExecutor:
    """A local executor that takes a Ray for given."""
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:1")
    return LocalExecutor(Local())


def job(stage: str, tmp_path: Path) -> Job:
    """A job for a module `stages.<stage>` that need not exist."""
    inputs = {"teacher": "/nowhere", "samples": "/nowhere"}
    valid = Job(stage="capture", settings=CaptureSettings(), inputs=inputs, output=str(tmp_path / "out"))
    return valid.model_copy(update={"stage": stage})


def test_a_failing_stage_shows_its_last_lines_and_its_log(executor: LocalExecutor, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "capture.log"
    with executor, pytest.raises(StageFailed) as caught:
        executor.run(job("no_such_stage", tmp_path), log, {})
    assert str(caught.value).startswith(f"no_such_stage ended with exit code 1; the end of {log}:")
    assert "No module named" in str(caught.value)
    assert log.with_suffix(".job.json").is_file()


def test_a_stage_that_ends_well_is_done(executor: LocalExecutor, tmp_path: Path) -> None:
    with executor:
        assert executor._wait(["true"], (tmp_path / "log").open("wb").fileno(), {}) == 0


def test_leaving_ends_what_still_runs(executor: LocalExecutor, tmp_path: Path) -> None:
    ended = []
    script = "trap '' INT; sleep 60 & wait"
    output = (tmp_path / "log").open("wb")
    with executor:
        wait = executor._wait
        thread = threading.Thread(target=lambda: ended.append(wait(["sh", "-c", script], output.fileno(), {})))
        thread.start()
        while not executor._running:
            time.sleep(0.01)
    thread.join(timeout=5)
    assert ended == [-15]


def test_nothing_starts_after_leaving(executor: LocalExecutor, tmp_path: Path) -> None:
    with executor:
        pass
    with pytest.raises(StageFailed, match="the run was stopped"):
        executor.run(job("capture", tmp_path), tmp_path / "log", {})


def test_each_kind_has_an_executor() -> None:
    made = [make_executor(settings) for settings in (Local(), RayJobs(), KubeRay())]
    assert [type(executor) for executor in made] == [LocalExecutor, ClusterExecutor, ClusterExecutor]


@pytest.mark.parametrize("code", [3, -15])
def test_a_stage_that_was_stopped_is_told_from_one_that_failed(
    executor: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(executor, "_wait", lambda *_: code)
    with executor, pytest.raises(StageStopped, match="capture was stopped from outside"):
        executor.run(job("capture", tmp_path), tmp_path / "log", {})
