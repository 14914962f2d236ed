"""Runs in a real MLflow database in a temporary folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command, FakeExecutor, Runs

from pipeline.figures import save_stage_figures
from pipeline.history import History, RunRecord
from pipeline.runner import Outcome
from pipeline.session import Session
from pipeline.store import Store
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.server import connect, experiment_id
from pipeline.tracking.students import model_name
from stages.contract import Journal

Track = Callable[..., Runs]
SLOWER = "interaction.schedule.steps=5"


def last_record() -> RunRecord:
    record = Session.open(["~variants"]).history.last("digits")
    assert record is not None
    return record


def mirror(world: Path) -> Mirror:
    store = Store(world / "store")
    client = connect(store)
    return Mirror(client, experiment_id(client, "vlsi", store), store)


def test_a_run_is_a_parent_with_a_child_for_every_stage(track: Track, world: Path) -> None:
    runs = track()
    (parent,) = runs.parents
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "digits")
    assert parent.data.metrics == {f"accuracy{suffix}": 0.65 for suffix in ("", ".teacher", ".backbone")}
    assert runs.files(parent) == {"config.yaml", "digits.html"}
    assert set(runs.children) == {node.key for node in Session.open(["~variants"]).graph.nodes}
    assert {child.info.status for child in runs.children.values()} == {"FINISHED"}
    assert {child.data.tags["mlflow.parentRunId"] for child in runs.children.values()} == {parent.info.run_id}
    interaction = runs.children["interaction"]
    assert (interaction.data.metrics["loss"], interaction.data.metrics["ce_teacher.1"]) == (0.3, 1.0)
    assert runs.steps(interaction) == [1, 2, 3]
    assert runs.files(interaction) == {"figures/a.png", "summary.json", "identity.json"}
    experiment = runs.client.get_experiment(runs.experiment_id)
    assert experiment.artifact_location == (world / "store" / "mlruns").as_uri()


def test_parent_and_stage_are_compared_by_the_same_keys(track: Track) -> None:
    runs = track()
    (parent,) = runs.parents
    interaction = runs.children["interaction"].data.params
    assert parent.data.params["interaction.schedule.learning_rate"] == "0.002"
    shared = set(interaction) & set(parent.data.params)
    assert {key: interaction[key] for key in shared} == {key: parent.data.params[key] for key in shared}
    assert set(interaction) - shared == {"interaction.version"}


def test_data_is_an_input_with_its_digest(track: Track) -> None:
    runs = track()
    (node,) = Session.open(["~variants"]).graph.named("capture")
    (read,) = runs.children["interaction"].inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("train", node.identity["inputs"]["samples"])
    assert {entry.dataset.name for entry in runs.parents[0].inputs.dataset_inputs} == {"train", "test"}


def test_code_command_and_machine_are_on_every_run(track: Track) -> None:
    runs = track()
    origin = last_record().origin
    assert {"host", "hardware.cpu", "hardware.cores", "hardware.memory_gb", "mlflow.source.name"} <= set(origin)
    for run in (runs.parents[0], runs.children["capture"]):
        assert origin.items() <= run.data.tags.items()
    assert "version.torch" in runs.children["capture"].data.tags


def test_the_record_knows_its_runs_in_mlflow(track: Track) -> None:
    runs = track()
    record = last_record()
    assert record.mlflow_run_id == runs.parents[0].info.run_id
    known = {key: stage.mlflow_run_id for key, stage in record.stages.items()}
    assert known == {key: child.info.run_id for key, child in runs.children.items()}


def test_times_are_those_of_the_run(track: Track) -> None:
    runs = track()
    record = last_record()
    (parent,) = runs.parents
    assert parent.info.start_time == round(record.started * 1000)
    assert parent.info.end_time == round((record.ended or 0) * 1000)
    capture = runs.children["capture"]
    journal = Store(record.configuration["store"]).artifacts / "capture" / record.stages["capture"].fingerprint
    written = [json.loads(line)["time"] for line in (journal / "metrics.jsonl").read_text().splitlines()]
    logged = runs.client.get_metric_history(capture.info.run_id, "loss")
    assert sorted(entry.timestamp for entry in logged) == [round(time * 1000) for time in written]


def test_the_samples_that_a_stage_left_out_are_counted_and_listed(track: Track) -> None:
    runs = track()
    capture, precompute = runs.children["capture"], runs.children["precompute"]
    assert (capture.data.metrics["quarantined"], precompute.data.metrics["quarantined"]) == (2, 0)
    table = json.loads(Path(runs.client.download_artifacts(capture.info.run_id, "quarantine.json")).read_text())
    assert table == {
        "columns": ["id", "line", "reason"],
        "data": [["7", 8, "image 7.png cannot be read: OSError"], ["line 12", 12, "invalid UTF-8"]],
    }
    assert '"quarantine.json"' in capture.data.tags["mlflow.loggedArtifacts"]
    assert "quarantine.json" not in runs.files(precompute)


def test_a_failed_run_is_marked_and_then_continued(track: Track, executor: FakeExecutor) -> None:
    executor.failing = {"interaction"}
    runs = track()
    (failed,) = runs.parents
    interaction = runs.children["interaction"]
    assert (failed.info.status, interaction.info.status) == ("FAILED", "FAILED")
    assert "out of luck" in interaction.data.tags["error"]
    assert runs.steps(interaction) == [1, 2]
    executor.failing = set()
    again = track()
    (continued,) = again.parents
    assert (continued.info.run_id, continued.info.status) == (failed.info.run_id, "FINISHED")
    assert again.children["interaction"].info.run_id == interaction.info.run_id
    assert again.steps(again.children["interaction"]) == [1, 2, 3]
    assert "error" not in again.children["interaction"].data.tags
    assert len(again.all) == 1 + len(again.children)


def test_reused_stages_name_the_runs_that_made_them(track: Track) -> None:
    first = track()
    runs = track(SLOWER)
    assert len(runs.parents) == 2
    second = runs.parents[1]
    assert second.data.params["interaction.schedule.steps"] == "5"
    assert second.data.tags["reused.capture"] == first.children["capture"].info.run_id
    assert "reused.interaction" not in second.data.tags


def test_what_an_unknown_run_made_is_named_by_its_fingerprint(track: Track, tracked: Callable[..., str]) -> None:
    tracked("tracking.enabled=false")
    runs = track(SLOWER)
    assert runs.parents[0].data.tags["reused.capture"] == last_record().stages["capture"].fingerprint


def test_a_run_with_nothing_to_do_leaves_no_trace(track: Track) -> None:
    track()
    assert len(track().parents) == 1


def test_figures_are_files_of_their_stage(track: Track, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.mirror.save_stage_figures", save_stage_figures)
    runs = track()
    assert {"figures/matching.png", "figures/loss.png"} <= runs.files(runs.children["interaction"])
    assert "figures/ce_by_depth.png" in runs.files(runs.children["verbalization"])


def test_doing_it_again_changes_nothing(track: Track, world: Path) -> None:
    before = track()
    record = last_record()
    runs = {run.info.run_id: run for run in before.all}
    assert mirror(world).is_whole(record)
    for run_id in runs:
        before.client.delete_tag(run_id, "vlsi.state")
    mirror(world).bring(record)
    after = Runs(f"sqlite:///{world / 'store' / 'mlflow.db'}")
    assert {run.info.run_id: run.data.to_dictionary() for run in after.all} == {
        run_id: run.data.to_dictionary() for run_id, run in runs.items()
    }
    assert after.steps(after.children["interaction"]) == [1, 2, 3]
    assert len(after.client.search_model_versions("name = 'digits'")) == 1


def test_each_step_is_there_once_although_a_stage_went_back_to_a_checkpoint(
    track: Track, world: Path, executor: FakeExecutor
) -> None:
    executor.failing = {"interaction"}
    runs = track()
    record = last_record()
    record.status, record.ended = "running", None
    record.stages["interaction"].status = "running"
    work = world / "store" / "interaction" / f"{record.stages['interaction'].fingerprint}.partial"
    journal = Journal(work, total=4, unit="steps", start=1)
    for step in (2, 3, 4):
        journal.write(step, loss=9.0)
    mirror(world).bring(record)
    assert runs.steps(runs.children["interaction"]) == [1, 2, 3, 4]


def test_an_interrupted_run_is_closed_as_killed(track: Track, world: Path, executor: FakeExecutor) -> None:
    executor.failing = {"interaction"}
    track()
    record = last_record()
    record.status, record.pid = "running", 2**22 + 1
    record.stages["interaction"].status = "running"
    mirror(world).bring(record)
    runs = Runs(f"sqlite:///{world / 'store' / 'mlflow.db'}")
    assert (runs.parents[0].info.status, runs.children["interaction"].info.status) == ("KILLED", "KILLED")


def test_the_points_of_a_sweep_are_siblings_below_it(track: Track, world: Path) -> None:
    track()
    track(SLOWER)
    records = History(Store(world / "store").artifacts).records()
    for record in records:
        record.id, record.sweep = record.id[::-1], "rates"
        mirror(world).bring(record)
    runs = Runs(f"sqlite:///{world / 'store' / 'mlflow.db'}")
    (above,) = [run for run in runs.all if run.data.tags.get("vlsi.sweep") == "rates"]
    below = [run for run in runs.parents if run.data.tags.get("mlflow.parentRunId") == above.info.run_id]
    assert len(below) == 2


def test_a_student_leads_back_to_everything_it_was_made_from(track: Track, world: Path) -> None:
    runs = track()
    graph = Session.open(["~variants"]).graph
    (version,) = runs.client.search_model_versions("name = 'digits'")
    tags = version.tags
    assert version.run_id == runs.children["reinforcement"].info.run_id
    assert version.source == tags["weights"] == graph.named("reinforcement")[0].output.as_uri()
    for stage in ("capture", "verbalization", "precompute", "interaction", "reinforcement"):
        (node,) = graph.named(stage)
        assert tags[f"fingerprint.{stage}"] == node.fingerprint
        assert tags[f"run.{stage}"] == runs.children[stage].info.run_id
    assert tags["cache"] == graph.named("precompute")[0].fingerprint
    inputs = graph.named("capture")[0].identity["inputs"]
    assert (tags["teacher.digest"], tags["data.digest"]) == (inputs["teacher"], inputs["samples"])
    assert (tags["teacher"], tags["backbone"]) == tuple(
        str(world / "store" / "prepared" / "digits" / name) for name in ("teacher", "backbone")
    )
    assert tags["run"] == last_record().id
    assert tags["configuration"] == f"runs:/{runs.parents[0].info.run_id}/config.yaml"
    assert tags.items() >= {k: v for k, v in last_record().origin.items() if "git" in k and "branch" not in k}.items()


def test_another_student_is_another_version(track: Track) -> None:
    track()
    runs = track(SLOWER)
    assert {int(version.version) for version in runs.client.search_model_versions("name = 'digits'")} == {1, 2}
    assert {model.name for model in runs.client.search_logged_models([runs.experiment_id])} == {"digits"}


def test_the_student_of_a_variant_is_another_model(run: Callable[..., Outcome]) -> None:
    run("~variants")
    assert model_name(last_record(), "reinforcement") == "digits"
    assert model_name(last_record(), "reinforcement@last-layer-kd") == "digits-last-layer-kd"


def test_a_server_without_a_registry_goes_without_the_student(
    tracked: Callable[..., str], track: Track, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
    from mlflow.tracking import MlflowClient

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("no such endpoint", ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(MlflowClient, "search_model_versions", refuse)
    printed = tracked()
    assert printed.count("MLflow has no model registry") == 1
    assert "sync-tracking" not in printed


def test_what_mlflow_lacks_is_brought_and_said(track: Track, tracked: Callable[..., str], call_vlsi: Command) -> None:
    tracked("tracking.enabled=false")
    off = last_record()
    track(SLOWER)
    assert "was there" in call_vlsi("sync-tracking")[1]
    code, printed = call_vlsi("sync-tracking", off.id, "--json")
    (result,) = json.loads(printed)
    assert (code, result["run"], result["result"]) == (0, off.id, "brought")
    assert call_vlsi("sync-tracking", "nothing-like-it")[0] == 2


def test_the_machine_is_measured_while_it_works(
    track: Track, world: Path, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    measured = threading.Event()
    log_batch = MlflowClient.log_batch

    def watched(self: MlflowClient, run_id: str, metrics: list | tuple = (), **rest: object) -> None:
        log_batch(self, run_id, metrics=metrics, **rest)
        if any(metric.key.startswith("system/") for metric in metrics):
            measured.set()

    monkeypatch.setattr(MlflowClient, "log_batch", watched)
    run = executor.run

    def wait_for_measurement(*arguments: object) -> None:
        assert measured.wait(60)
        run(*arguments)  # type: ignore[arg-type]

    executor.run = wait_for_measurement  # type: ignore[method-assign]
    (parent,) = track().parents
    host = last_record().host
    assert f"system/{host}/cpu_utilization_percentage" in parent.data.metrics
