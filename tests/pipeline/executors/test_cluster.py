"""Following what runs on a cluster, through every way in which it can end. The cluster is a script."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.execution import RayJobs
from pipeline.executors import StageFailed, StageStopped
from pipeline.executors.cluster import RUNNING, SUCCEEDED, ClusterExecutor, Phase, State, Unreachable, as_variable
from stages.contract import Job

LOST = State(Phase.FAILED, "was lost", again=True)
FAILED = State(Phase.FAILED, "ended with exit code 2")
SILENT = Unreachable("the cluster does not answer")


class Scripted:
    """Answers with the next state of a script, for ever with the last; an exception is raised."""

    def __init__(self, *states: State | Exception) -> None:
        self.script = list(states)
        self.submitted: list[dict[str, str]] = []
        self.cancelled: list[str] = []
        self.printed = ""

    def connect(self) -> None:
        """Always there."""

    def submit(self, job: Job, environment: dict[str, str]) -> str:
        self.submitted.append(environment)
        self.printed = ""
        return f"vlsi-{job.stage}-{len(self.submitted)}"

    def state(self, name: str) -> State:
        if self.cancelled:
            return State(Phase.STOPPED, "was stopped on the cluster")
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        self.printed += f"line {len(self.printed.splitlines()) + 1} of {name}\n"
        return answer

    def log(self, name: str) -> str:
        return self.printed

    def cancel(self, name: str) -> None:
        self.cancelled.append(name)


Carry = Callable[..., Path]


@pytest.fixture
def carry_out(job: Job, tmp_path: Path) -> Carry:
    def carry_out(cluster: Scripted, **settings: float) -> Path:
        log = tmp_path / "logs" / "capture.log"
        with ClusterExecutor(cluster, RayJobs(**settings), poll_seconds=0.001) as executor:
            executor.run(job, log, {"A": "1"})
        return log

    return carry_out


def test_a_stage_that_ends_well_leaves_its_whole_log(carry_out: Carry) -> None:
    cluster = Scripted(RUNNING, RUNNING, SUCCEEDED)
    log = carry_out(cluster)
    assert log.read_text().splitlines() == [f"line {number} of vlsi-capture-1" for number in (1, 2, 3)]
    assert cluster.submitted == [{"A": "1"}]


def test_a_lost_stage_is_submitted_again(carry_out: Carry) -> None:
    cluster = Scripted(RUNNING, LOST, RUNNING, SUCCEEDED)
    log = carry_out(cluster, retries=1).read_text()
    assert len(cluster.submitted) == 2
    assert "capture was lost; it is started again" in log
    assert "line 2 of vlsi-capture-2" in log


def test_a_stage_is_not_submitted_more_often_than_allowed(carry_out: Carry) -> None:
    cluster = Scripted(LOST)
    with pytest.raises(StageFailed, match=r"^capture was lost; the end of .*capture\.log:") as caught:
        carry_out(cluster, retries=2)
    assert len(cluster.submitted) == 3
    assert "line 1 of vlsi-capture-3" in str(caught.value)


def test_a_failure_that_would_repeat_is_final(carry_out: Carry) -> None:
    cluster = Scripted(RUNNING, FAILED)
    with pytest.raises(StageFailed, match="capture ended with exit code 2") as caught:
        carry_out(cluster, retries=5)
    assert not isinstance(caught.value, StageStopped)
    assert len(cluster.submitted) == 1


def test_stopped_is_told_apart_from_failed(carry_out: Carry) -> None:
    with pytest.raises(StageStopped, match="capture was stopped on the cluster"):
        carry_out(Scripted(RUNNING, State(Phase.STOPPED, "was stopped on the cluster")))


def test_a_silent_cluster_is_asked_again(carry_out: Carry) -> None:
    cluster = Scripted(RUNNING, SILENT, SILENT, RUNNING, SILENT, SUCCEEDED)
    carry_out(cluster)
    assert len(cluster.submitted) == 1


def test_a_cluster_that_stays_silent_is_named(carry_out: Carry) -> None:
    with pytest.raises(StageFailed, match="the cluster does not answer, for 0.05 seconds"):
        carry_out(Scripted(RUNNING, SILENT), patience_seconds=0.05)


def test_a_log_that_starts_anew_is_kept_whole(carry_out: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Scripted(RUNNING, RUNNING, SUCCEEDED)
    texts = iter(["first try\n", "2nd\n", "2nd\ntry\n"])
    monkeypatch.setattr(cluster, "log", lambda _: next(texts))
    assert carry_out(cluster).read_text() == "first try\n2nd\ntry\n"


def test_a_log_that_cannot_be_had_stops_nothing(carry_out: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Scripted(RUNNING, SUCCEEDED)

    def refuse(_: str) -> str:
        raise StageFailed("forbidden")

    monkeypatch.setattr(cluster, "log", refuse)
    assert carry_out(cluster).read_text() == ""


@pytest.mark.parametrize("detach", [False, True])
def test_leaving_stops_what_runs_unless_told_otherwise(job: Job, tmp_path: Path, detach: bool) -> None:
    cluster = Scripted(RUNNING)
    caught: list[BaseException] = []

    def run() -> None:
        try:
            executor.run(job, tmp_path / "log", {})
        except StageStopped as stopped:
            caught.append(stopped)

    thread = threading.Thread(target=run)
    with ClusterExecutor(cluster, RayJobs(detach=detach), poll_seconds=0.001) as executor:
        thread.start()
        while not cluster.submitted:
            time.sleep(0.001)
    thread.join(timeout=30)
    assert cluster.cancelled == ([] if detach else ["vlsi-capture-1"])
    assert ("was left to run as vlsi-capture-1" if detach else "was stopped with the run") in str(caught[0])


def test_a_job_in_a_variable_holds_nothing_that_looks_like_one(job: Job) -> None:
    odd = job.model_copy(update={"inputs": {"teacher": "/$HOME/${HOME}/$(HOME)", "samples": "/x"}})
    text = as_variable(odd)
    assert "$" not in text
    assert Job.model_validate_json(text) == odd


def test_nothing_starts_after_leaving(job: Job, tmp_path: Path) -> None:
    cluster = Scripted(SUCCEEDED)
    with ClusterExecutor(cluster, RayJobs()) as executor:
        pass
    with pytest.raises(StageStopped, match="was not started"):
        executor.run(job, tmp_path / "log", {})
    assert cluster.submitted == []
