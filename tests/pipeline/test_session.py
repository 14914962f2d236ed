"""Preparation, records and reports, as the commands use them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config import ConfigError
from pipeline.results import collect_scores
from pipeline.runner import Outcome
from pipeline.session import Session
from stages.contract.place import Remote
from tests.pipeline.conftest import FakeExecutor

QUIET = Console(quiet=True)


class PreparingExecutor(FakeExecutor):
    """Its prepare stage leaves checkpoints and samples."""

    def _stage(self, job, work):  # type: ignore[no-untyped-def]
        summary = super()._stage(job, work)
        for name in ("teacher", "backbone"):
            (work / name).mkdir()
            (work / name / "config.json").write_text("{}")
        for name in ("train", "test"):
            (work / f"{name}.jsonl").write_text("{}\n")
        return summary


@pytest.fixture
def unprepared(world: Path) -> Path:
    """A machine on which nothing was prepared."""
    shutil.rmtree(world / "store" / "prepared")
    return world


def prepare(*overrides: str) -> list[str]:
    """Prepare the digits experiment; the stages that ran."""
    executor = PreparingExecutor()
    session = Session.open_preparation(["tracking.enabled=false", *overrides])
    session.execute(session.decide(), QUIET, executor)
    return executor.stages


def test_preparation_makes_what_the_experiment_names(unprepared: Path) -> None:
    with pytest.raises(ConfigError, match=r"run `vlsi prepare experiment=digits` to make it"):
        Session.open([])
    assert prepare() == ["prepare"]
    assert prepare() == []
    assert (unprepared / "store" / "prepared" / "digits" / "manifest.json").is_file()
    assert len(Session.open([]).graph.nodes) > 0


@pytest.mark.usefixtures("unprepared")
def test_other_settings_ask_for_another_preparation() -> None:
    prepare()
    with pytest.raises(ConfigError, match=r"made with other settings \(prepare.seed 0 → 5\); run `vlsi prepare pre"):
        Session.open(["prepare.seed=5"])
    assert prepare("prepare.seed=5") == ["prepare"]
    assert len(Session.open(["prepare.seed=5"]).graph.nodes) > 0


@pytest.mark.usefixtures("unprepared")
def test_preparation_does_not_matter_to_other_models(tmp_path: Path) -> None:
    prepare()
    elsewhere = [f"data.{split}={tmp_path}/{split}.jsonl" for split in ("train", "test")]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("{}\n")
    session = Session.open(["prepare.seed=5", "teacher.path=a/teacher", "student.path=a/student", *elsewhere])
    assert session.graph.targets["teacher"].inputs["model"].digest == "a/teacher@main"  # type: ignore[union-attr]


@pytest.mark.usefixtures("world")
def test_a_run_writes_record_and_report(executor: FakeExecutor) -> None:
    session = Session.open(["tracking.enabled=false", "~variants"])
    session.execute(session.decide(), QUIET, executor)
    record = session.history.last("digits")
    assert record is not None
    assert record.status == "finished"
    assert record.committed == {node.key: node.fingerprint for node in session.graph.nodes}
    assert {stage.status for stage in record.stages.values()} == {"made"}
    assert record.scores == collect_scores(session.graph, session.artifacts())
    assert session.store.report_file("digits").read_text().startswith("<!doctype html>")


@pytest.mark.usefixtures("world")
def test_a_damaged_record_costs_only_explanations() -> None:
    path = Session.open([]).store.root / "runs" / "digits" / "000000000001-abcdef01.json"
    path.parent.mkdir(parents=True)
    path.write_text("{torn")
    session = Session.open([])
    assert session.last is None
    assert session.history.unreadable() == [str(path)]


@pytest.mark.usefixtures("world")
def test_there_is_no_report_on_nothing() -> None:
    with pytest.raises(ConfigError, match="nothing of digits has been made yet; run `vlsi run"):
        Session.open([]).write_report()


def test_artifacts_in_an_object_store_are_made_found_and_reported(
    world: Path,
    bucket: Remote,
    run: Callable[..., Outcome],
    executor: FakeExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logs and the report stay on this machine."""
    monkeypatch.setattr("stages.contract.lease.SETTLE_SECONDS", 0.0)
    place = bucket / world.name
    there = (f"store={place}", f"prepared={world / 'store' / 'prepared' / 'digits'}", "~variants")
    outcome = run(*there)
    assert not outcome.failed
    assert "interaction" in executor.stages
    assert {artifact.place.parent.parent for artifact in outcome.artifacts.values()} == {place}
    run(*there)
    assert executor.stages == []
    run(*there, "reinforcement.schedule.learning_rate=1e-5")
    assert set(executor.stages) == {"evaluation", "reinforcement"}
    run(*there, force="capture")
    assert "capture" in executor.stages
    assert "interaction" in executor.stages
    assert (world / "vlsi-records" / "reports" / "digits.html").exists() or not outcome.executed
    assert len(Session.open(there).history.records()) == 3


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("key", ["prepared", "data.train"])
def test_what_workers_read_as_files_is_on_this_machine(key: str) -> None:
    elsewhere = ["data.train=train.jsonl", "data.test=test.jsonl"]
    with pytest.raises(ConfigError, match=rf"{key}: .*has to be a path that all workers can read"):
        Session.open([*elsewhere, f"{key}=s3://bucket/a"])


@pytest.mark.usefixtures("world")
def test_a_store_with_a_secret_in_its_url_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError, match="credentials and endpoints come from the environment") as error:
        Session.open(["store=s3://key:secret@bucket/a"])
    assert "secret" not in str(error.value)
