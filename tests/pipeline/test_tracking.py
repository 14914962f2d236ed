"""Runs in a real MLflow database in a temporary folder."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FakeExecutor
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from rich.console import Console

from pipeline.decisions import Selection
from pipeline.session import Session

ALONE = "~variants"


class Runs:
    """What MLflow knows, by parent and by stage."""

    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(uri)
        experiment = self.client.get_experiment_by_name("vlsi")
        assert experiment is not None
        self.experiment_id = experiment.experiment_id
        runs = self.client.search_runs([self.experiment_id])
        self.parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        self.children = {run.info.run_name: run for run in reversed(runs) if "mlflow.parentRunId" in run.data.tags}

    def artifacts(self, run: Run) -> set[str]:
        """Names of a run's files, folders entered."""
        found = set()
        for item in self.client.list_artifacts(run.info.run_id):
            inner = self.client.list_artifacts(run.info.run_id, item.path) if item.is_dir else [item]
            found |= {entry.path for entry in inner}
        return found


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow database without runs; making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def track(
    world: Path, executor: FakeExecutor, fresh_database: bytes, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Runs]:
    """Run the digits experiment with tracking; what MLflow knows afterwards."""
    monkeypatch.setattr("pipeline.session.render", lambda *_: "<!doctype html>")
    database = world / "store" / "mlflow.db"
    database.write_bytes(fresh_database)

    def track(*overrides: str, **selection: str) -> Runs:
        session = Session.open(overrides)
        printed = io.StringIO()
        session.execute(session.decide(Selection(**selection)), Console(file=printed), executor)
        assert "MLflow" not in printed.getvalue(), printed.getvalue()
        return Runs(f"sqlite:///{database}")

    return track


def test_the_files_of_runs_lie_in_the_store(track: Callable[..., Runs], world: Path) -> None:
    runs = track(ALONE)
    experiment = runs.client.get_experiment(runs.experiment_id)
    assert experiment.artifact_location == (world / "store" / "mlruns").as_uri()


def test_a_run_is_a_parent_with_a_child_for_every_stage(track: Callable[..., Runs], executor: FakeExecutor) -> None:
    runs = track()
    (parent,) = runs.parents
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {
        f"accuracy{suffix}": 0.65 for suffix in ("", ".teacher", ".backbone", ".sft", ".last-layer-kd")
    }
    assert parent.data.params["interaction.schedule.learning_rate"] == "0.002"
    assert runs.artifacts(parent) == {"config.yaml", "digits.html"}
    assert set(runs.children) == {node.key for node in Session.open([]).graph.nodes}
    assert {child.info.status for child in runs.children.values()} == {"FINISHED"}
    interaction = runs.children["interaction"]
    assert interaction.data.metrics["loss"] == 0.3
    assert interaction.data.metrics["ce_teacher.1"] == 1.0
    assert [metric.step for metric in runs.client.get_metric_history(interaction.info.run_id, "loss")] == [1, 2, 3]
    assert {"figures/matching.png", "figures/loss.png", "summary.json"} <= runs.artifacts(interaction)
    assert "figures/ce_by_depth.png" in runs.artifacts(runs.children["verbalization"])
    (dataset,) = interaction.inputs.dataset_inputs
    (node,) = Session.open([]).graph.named("capture")
    assert dataset.dataset.digest == node.identity["inputs"]["samples"]
    names = {model.name for model in runs.client.search_logged_models([runs.experiment_id])}
    assert names == {"digits-reinforcement", "digits-reinforcement-sft", "digits-reinforcement-last-layer-kd"}
    assert executor.environments["interaction"]["MLFLOW_RUN_ID"] in {
        runs.children[key].info.run_id for key in ("interaction", "interaction@last-layer-kd")
    }


def test_the_samples_that_a_stage_left_out_are_counted_and_listed(track: Callable[..., Runs]) -> None:
    runs = track(ALONE)
    capture, precompute = runs.children["capture"], runs.children["precompute"]
    assert capture.data.metrics["quarantined"] == 2
    assert precompute.data.metrics["quarantined"] == 0
    table = runs.client.load_table(runs.experiment_id, "quarantine.json", [capture.info.run_id])
    assert table.to_dict("list") == {
        "id": ["7", "line 12"],
        "line": [8, 12],
        "reason": ["image 7.png cannot be read: OSError", "invalid UTF-8"],
    }
    assert "quarantine.json" not in runs.artifacts(precompute)


def test_a_failed_run_is_marked_and_then_continued(track: Callable[..., Runs], executor: FakeExecutor) -> None:
    executor.failing = {"interaction"}
    runs = track(ALONE)
    (failed,) = runs.parents
    assert failed.info.status == "FAILED"
    assert runs.children["interaction"].info.status == "FAILED"
    assert "error.txt" in runs.artifacts(runs.children["interaction"])
    executor.failing = set()
    runs = track(ALONE)
    (continued,) = runs.parents
    assert (continued.info.run_id, continued.info.status) == (failed.info.run_id, "FINISHED")
    assert "reused.verbalization" in continued.data.tags


def test_another_recipe_is_another_run_that_links_what_it_reuses(track: Callable[..., Runs]) -> None:
    first = track(ALONE).parents[0].info.run_id
    runs = track(ALONE, "interaction.schedule.steps=5")
    assert len(runs.parents) == 2
    (second,) = [run for run in runs.parents if run.info.run_id != first]
    assert second.data.params["interaction.schedule.steps"] == "5"
    assert "reused.capture" in second.data.tags
    assert "reused.interaction" not in second.data.tags


def test_a_run_with_nothing_to_do_leaves_no_trace(track: Callable[..., Runs]) -> None:
    track(ALONE)
    assert len(track(ALONE).parents) == 1


@pytest.mark.usefixtures("world")
def test_a_dead_server_costs_a_warning(executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.session.render", lambda *_: "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    session = Session.open([ALONE])
    printed = io.StringIO()
    outcome = session.execute(session.decide(), Console(file=printed, width=200), executor)
    assert not outcome.failed
    assert printed.getvalue().count("MLflow at http://127.0.0.1:9 does not work, going on without it") == 1
    assert executor.environments["interaction"] == {}
