"""Runs of the whole graph with stages that only write."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.executors import StageFailed, StageStopped
from pipeline.runner import Outcome
from pipeline.session import Session
from stages.contract import Job
from stages.contract.place import Place
from tests.pipeline.conftest import FakeExecutor

ALONE = "~variants"
CHAIN = ["capture", "evaluation", "interaction", "precompute", "reinforcement", "verbalization"]

Run = Callable[..., Outcome]


def test_everything_runs_once_and_then_nothing(run: Run, executor: FakeExecutor) -> None:
    outcome = run()
    assert len(executor.jobs) == len(outcome.executed) == len(Session.open([]).graph.nodes)
    outcome = run()
    assert (executor.jobs, outcome.executed) == ([], set())


def test_changing_interaction_reruns_it_and_what_follows(run: Run, executor: FakeExecutor) -> None:
    run(ALONE)
    run(ALONE, "interaction.schedule.learning_rate=5e-4")
    assert executor.stages == ["evaluation", "interaction", "reinforcement"]


def test_variants_share_nodes(run: Run, executor: FakeExecutor) -> None:
    run()
    assert [executor.stages.count(stage) for stage in ("capture", "verbalization", "precompute")] == [1, 1, 2]
    assert [executor.stages.count(stage) for stage in ("interaction", "reinforcement", "evaluation")] == [2, 3, 5]


def test_a_failing_stage_leaves_nothing_and_the_next_run_picks_up(run: Run, executor: FakeExecutor) -> None:
    executor.failing = {"interaction"}
    outcome = run(ALONE, keep_going=True)
    assert list(outcome.failed) == ["interaction"]
    assert outcome.skipped == {"reinforcement": "interaction", "evaluation": "interaction"}
    assert {"evaluation@teacher", "evaluation@backbone"} <= set(outcome.artifacts)
    (node,) = Session.open([ALONE]).graph.named("interaction")
    assert not node.output.exists()
    executor.failing = set()
    run(ALONE)
    assert executor.stages == ["evaluation", "interaction", "reinforcement"]


def test_after_a_failure_nothing_new_begins(run: Run, executor: FakeExecutor) -> None:
    executor.failing = {"capture"}
    outcome = run("executor.parallel_stages=1")
    assert executor.stages == ["capture"]
    assert list(outcome.failed) == ["capture"]
    assert set(outcome.skipped.values()) == {"capture"}
    assert len(outcome.skipped) == len(Session.open([]).graph.nodes) - 1


def test_what_runs_beside_a_failure_may_end(run: Run, executor: FakeExecutor) -> None:
    both_run = threading.Barrier(2, timeout=30)
    plain = executor.run

    def together(job: Job, log: Path, environment: dict[str, str]) -> None:
        both_run.wait()
        plain(job, log, environment)

    executor.run = together  # type: ignore[method-assign]
    executor.failing = {"capture"}
    outcome = run("executor.parallel_stages=2")
    assert list(outcome.failed) == ["capture"]
    assert len(outcome.executed) == 1


def test_a_failure_after_a_change_still_explains_the_change(run: Run, executor: FakeExecutor) -> None:
    run(ALONE)
    executor.failing = {"interaction"}
    run(ALONE, "interaction.schedule.steps=5")
    decisions = Session.open([ALONE, "interaction.schedule.steps=5"]).decide()
    (decision,) = [decision for decision in decisions if decision.node.key == "interaction"]
    assert decision.reasons == ("interaction.schedule.steps 300 → 5",)


def test_a_forced_stage_replaces_its_artifact(run: Run, executor: FakeExecutor) -> None:
    before = run(ALONE).artifacts["interaction"]
    after = run(ALONE, force="interaction", only="interaction").artifacts["interaction"]
    assert [job.force for job in executor.jobs] == [True]
    assert after.path == before.path
    assert after.manifest.started > before.manifest.started


def test_a_forced_stage_that_fails_keeps_the_old_artifact(run: Run, executor: FakeExecutor) -> None:
    before = run(ALONE).artifacts["interaction"]
    executor.failing = {"interaction"}
    assert "interaction" in run(ALONE, force="interaction").failed
    assert run(ALONE).artifacts["interaction"].manifest == before.manifest


def test_a_stage_that_ends_well_without_artifact_has_failed(run: Run, executor: FakeExecutor) -> None:
    executor.run = lambda job, log, environment: None  # type: ignore[method-assign]
    outcome = run(ALONE, only="capture")
    assert "left no artifact" in str(outcome.failed["capture"])


def test_independent_stages_run_side_by_side_up_to_the_limit(run: Run, executor: FakeExecutor) -> None:
    running, most, lock = set(), [0], threading.Lock()
    plain = executor.run

    def slow(job: Job, log: Path, environment: dict[str, str]) -> None:
        with lock:
            running.add(job.output)
            most[0] = max(most[0], len(running))
        time.sleep(0.02)
        plain(job, log, environment)
        with lock:
            running.discard(job.output)

    executor.run = slow  # type: ignore[method-assign]
    run("executor.parallel_stages=3")
    assert most[0] == 3


def test_resources_reach_the_job_of_their_node(run: Run, executor: FakeExecutor) -> None:
    run(ALONE, "executor.resources={evaluation: {workers: 2}, evaluation@teacher: {workers: 5}}")
    workers = sorted(job.resources.workers for job in executor.jobs if job.stage == "evaluation")
    assert workers == [2, 2, 5]


def test_an_unexpected_error_is_not_taken_for_a_failed_stage(run: Run, executor: FakeExecutor) -> None:
    def broken(job: Job, log: Path, environment: dict[str, str]) -> None:
        raise RuntimeError("a mistake in this program")

    executor.run = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a mistake in this program"):
        run(ALONE)


def test_failures_carry_their_message(run: Run, executor: FakeExecutor) -> None:
    executor.failing = {"capture"}
    error = run(ALONE).failed["capture"]
    assert isinstance(error, StageFailed)
    assert str(error) == "capture: out of luck"


@pytest.mark.usefixtures("world")
def test_of_runs_that_start_at_once_each_ends_well_and_every_stage_runs_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four threads, with stages that do their work under the lease of their artifact."""
    monkeypatch.setattr("pipeline.session.render", lambda *_: "")
    made: list[str] = []
    begin = threading.Barrier(4)

    class CountingExecutor(FakeExecutor):
        def _stage(self, job: Job, work: Place) -> dict[str, Any]:
            made.append(job.output)
            return super()._stage(job, work)

    def execute(session: Session) -> Outcome:
        begin.wait(60)
        return session.execute(session.decide(), Console(quiet=True), CountingExecutor())

    sessions = [Session.open(["tracking.enabled=false", ALONE]) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(execute, sessions))
    assert [outcome.failed for outcome in outcomes] == [{}] * 4
    assert sorted(made) == sorted(str(node.output) for node in sessions[0].graph.nodes)
    # Who starts so late that everything is there has nothing to record.
    assert {record.status for record in sessions[0].history.records()} == {"finished"}


def test_a_stage_that_was_stopped_from_outside_has_not_failed(run: Run, executor: FakeExecutor) -> None:
    def stopped(job: Job, log: Path, environment: dict[str, str]) -> None:
        raise StageStopped(f"{job.stage} was stopped from outside")

    executor.run = stopped  # type: ignore[method-assign]
    assert run(ALONE, only="capture").status == "stopped"
    record = Session.open([ALONE]).last
    assert record is not None
    assert (record.status, record.stages["capture"].status) == ("stopped", "stopped")
