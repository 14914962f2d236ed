"""A sweep that runs: what is shared, what fails, what is recorded, what is reused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import cli
from pipeline.executors import StageFailed
from pipeline.history import History, RunRecord
from pipeline.runner import Outcome
from pipeline.sweeps.study import Study
from stages.contract import Job
from tests.pipeline.conftest import Command, FakeExecutor

QUIET = Console(quiet=True)
SEEDS = [0, 1]
UNTRACKED = "tracking.enabled=false"
RunSweep = Callable[..., Outcome]


class UnluckyExecutor(FakeExecutor):
    """Its interactions with one seed fail."""

    unlucky: int | None = None
    error: BaseException = StageFailed("out of luck")

    def run(self, job: Job, log: Path, environment: dict[str, str]) -> None:
        if job.stage == "interaction" and job.identity["settings"]["schedule"]["seed"] == self.unlucky:
            raise self.error
        super().run(job, log, environment)


@pytest.fixture
def executor() -> UnluckyExecutor:
    return UnluckyExecutor()


@pytest.fixture
def sweep(world: Path, executor: UnluckyExecutor) -> RunSweep:
    """Run the experiment and its variants over seeds; everything is read afresh each time."""

    def sweep(*overrides: str) -> Outcome:
        executor.jobs.clear()
        study = Study.open(["sweep=seeds", UNTRACKED, *overrides], SEEDS)
        return study.execute(study.decide(), QUIET, executor)

    return sweep


def records() -> dict[str, RunRecord]:
    """By name; the newest of each."""
    found = History(Path("store")).records()
    assert len({record.id for record in found}) == len({record.experiment for record in found})
    return {record.experiment.removeprefix("digits@seeds."): record for record in found}


def test_what_points_and_seeds_share_runs_once(sweep: RunSweep, executor: UnluckyExecutor) -> None:
    sweep()
    ran = Counter(executor.stages)
    assert ran == {
        "capture": 1,
        "verbalization": 1,
        "precompute": 2,
        "interaction": 4,
        "reinforcement": 6,
        "evaluation": 6,
    }


def test_a_second_time_nothing_runs_and_no_record_is_added(sweep: RunSweep, executor: UnluckyExecutor) -> None:
    sweep()
    before = records()
    sweep()
    assert executor.stages == []
    assert records() == before


def test_every_trial_is_a_run_of_its_own(sweep: RunSweep, fresh_database: bytes) -> None:
    Path("store/mlflow.db").write_bytes(fresh_database)
    sweep("tracking.enabled=true")
    found = records()
    assert set(found) == {f"{point}.{seed}" for point in ("sft", "last-layer-kd", "vlsi") for seed in SEEDS}
    assert {record.status for record in found.values()} == {"finished"}
    assert {record.sweep for record in found.values()} == {"seeds"}
    assert [score.name for score in found["vlsi.1"].scores] == ["vlsi"]
    assert set(found["vlsi.1"].stages) == set(found["vlsi.1"].wanted) == set(found["vlsi.1"].committed)
    assert set(found["sft.1"].stages) == {"reinforcement", "evaluation"}
    assert found["sft.1"].overrides[-1] == "reinforcement.schedule.seed=1"
    assert len({record.mlflow_run_id for record in found.values()} - {None}) == len(found)


def test_an_experiment_that_was_run_is_a_trial_that_is_done(
    sweep: RunSweep, run: Callable[..., Outcome], executor: UnluckyExecutor
) -> None:
    run()
    sweep()
    assert Counter(executor.stages) == {"interaction": 2, "reinforcement": 3, "evaluation": 3}
    assert {stage.status for stage in records()["vlsi.0"].stages.values()} == {"reused"}


def test_failures_leave_gaps_and_the_rest_goes_on(sweep: RunSweep, executor: UnluckyExecutor) -> None:
    executor.unlucky = 1
    outcome = sweep()
    assert set(outcome.failed) == {"interaction@vlsi.1", "interaction@last-layer-kd.1"}
    found = records()
    assert {name for name, record in found.items() if record.status == "finished"} == {
        "sft.0", "sft.1", "last-layer-kd.0", "vlsi.0",
    }  # fmt: skip
    failed = {key: stage.status for key, stage in found["vlsi.1"].stages.items()}
    assert found["vlsi.1"].status == "failed"
    assert (failed["interaction"], failed["reinforcement"], failed["evaluation"]) == ("failed", "skipped", "skipped")
    executor.unlucky = None
    sweep()
    assert Counter(executor.stages) == {"interaction": 2, "reinforcement": 2, "evaluation": 2}
    again = records()
    assert again["vlsi.1"].id == found["vlsi.1"].id
    assert {record.status for record in again.values()} == {"finished"}


def test_a_sweep_that_was_stopped_goes_on_under_its_records(sweep: RunSweep, executor: UnluckyExecutor) -> None:
    executor.unlucky, executor.error = 1, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweep()
    found = records()
    assert found["vlsi.1"].status == "stopped"
    executor.unlucky = None
    sweep()
    again = records()
    assert {name: record.id for name, record in again.items()} == {name: record.id for name, record in found.items()}
    assert {record.status for record in again.values()} == {"finished"}


@pytest.mark.usefixtures("world")
def test_the_command_ends_with_table_files_and_exit_code(
    call_vlsi: Command, executor: UnluckyExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipeline.sweeps.study.make_executor", lambda _: executor)
    arguments = ("sweep", "sweep=seeds", UNTRACKED, "--seeds", "2")
    code, text = call_vlsi(*arguments, "--dry-run")
    assert (code, executor.jobs) == (0, [])
    assert ["reinforcement", "0", "6"] in [line.split() for line in text.splitlines()]
    executor.unlucky = 1
    code, text = call_vlsi(*arguments)
    assert code == 1
    assert "missing  last-layer-kd.1, vlsi.1" in text
    assert f"Go on with: vlsi sweep sweep=seeds {UNTRACKED} --seeds 0,1," in text
    executor.unlucky = None
    code, text = call_vlsi(*arguments, "--tasks", "--output", "values.csv")
    assert code == 0
    assert ["vlsi", "65.0", "±", "0.0", "2"] in [line.split() for line in text.splitlines()]
    assert "which" in text
    assert len((tmp_path / "values.csv").read_text().splitlines()) == 7
    written = {path.name for path in (tmp_path / "store" / "reports").iterdir()}
    assert written == {"digits-seeds.csv", "digits-seeds.png", "digits-seeds.svg"}


@pytest.mark.usefixtures("world")
def test_a_stopped_command_says_how_to_go_on(
    call_vlsi: Command, executor: UnluckyExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sweeps.study.make_executor", lambda _: executor)
    executor.unlucky, executor.error = 4, KeyboardInterrupt()
    code, text = call_vlsi("sweep", "sweep=seeds", UNTRACKED, "--seeds", "4,", width=200)
    assert code == 3
    assert f"go on with: vlsi sweep sweep=seeds {UNTRACKED} --seeds 4," in text


def test_json_is_all_that_goes_to_the_output(
    sweep: RunSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep()
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["vlsi", "sweep", "sweep=seeds", UNTRACKED, "--seeds", "0,1", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    document = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert [point["point"] for point in document["points"]] == ["sft", "last-layer-kd", "vlsi"]
    assert [value["seed"] for value in document["points"][0]["values"]] == [0, 1]


@pytest.mark.parametrize("seeds", ["x", "0", "1,b", "-1", "1.5"])
def test_seeds_are_a_number_or_a_list(call_vlsi: Command, world: Path, seeds: str) -> None:
    code, text = call_vlsi("sweep", "sweep=seeds", f"--seeds={seeds}", width=200)
    assert code == 2
    assert "neither a number of seeds nor a list" in text
