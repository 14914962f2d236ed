"""Records of runs: how they are named, begun and continued."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.config import ConfigError
from pipeline.history import History, RunRecord
from pipeline.runner import Outcome
from pipeline.session import Session
from tests.pipeline.conftest import FakeExecutor

ALONE = "~variants"
FASTER = "interaction.schedule.steps=5"

Run = Callable[..., Outcome]


def history() -> History:
    return Session.open([]).history


def records() -> list[RunRecord]:
    return history().records()


def test_a_run_with_nothing_to_do_leaves_no_record(run: Run) -> None:
    run(ALONE)
    run(ALONE)
    assert [record.status for record in records()] == ["finished"]


def test_going_back_to_what_was_made_is_a_run_of_its_own(run: Run) -> None:
    for overrides in ([ALONE], [ALONE, FASTER], [ALONE]):
        run(*overrides)
    first, second, third = records()
    assert first.wanted == third.wanted != second.wanted
    assert {stage.status for stage in third.stages.values()} == {"reused"}
    assert third.scores == first.scores


def test_a_failed_run_goes_on_under_its_record(run: Run, executor: FakeExecutor) -> None:
    executor.failing = {"interaction"}
    run(ALONE)
    (record,) = records()
    statuses = {key: stage.status for key, stage in record.stages.items()}
    assert record.status == "failed"
    assert (statuses["capture"], statuses["interaction"], statuses["reinforcement"]) == ("made", "failed", "skipped")
    assert record.stages["interaction"].error == "interaction: out of luck"
    executor.failing = set()
    run(ALONE)
    (again,) = records()
    assert (again.id, again.status) == (record.id, "finished")
    assert {stage.status for stage in again.stages.values()} == {"made", "reused"}


def test_another_experiment_begins_another_record(run: Run, executor: FakeExecutor) -> None:
    executor.failing = {"interaction"}
    run(ALONE)
    run(ALONE, FASTER)
    assert [record.status for record in records()] == ["failed", "failed"]


def test_runs_are_found_by_id_its_beginning_experiment_and_count(run: Run) -> None:
    run(ALONE)
    run(ALONE, FASTER)
    first, second = records()
    find = history().find
    assert find(second.id) == find(second.id[:6]) == find("digits") == find("digits~0") == second
    assert find("digits~1") == find("digits~") == find(f"{second.id}~1") == first


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "there is no run 'nowhere'"), ("digits~7", "has 1 runs, none is 7 before")]
)
def test_what_is_no_run_is_refused(run: Run, name: str, message: str) -> None:
    run(ALONE)
    with pytest.raises(ConfigError, match=message):
        history().find(name)


def test_an_interrupted_run_is_told_from_one_that_runs(run: Run) -> None:
    run(ALONE)
    (record,) = records()
    record.status = "running"
    assert not record.is_interrupted
    record.pid = 2**22 + 1
    assert record.is_interrupted


def test_a_run_that_goes_on_is_not_continued_by_another(run: Run) -> None:
    run(ALONE)
    (record,) = records()
    record.status = "running"
    history().write(record)
    run(ALONE)
    assert len(records()) == 2


def test_a_run_whose_process_is_gone_is_continued(run: Run) -> None:
    run(ALONE)
    (record,) = records()
    record.status, record.pid = "running", 2**22 + 1
    history().write(record)
    run(ALONE)
    assert [(again.id, again.status) for again in records()] == [(record.id, "finished")]
