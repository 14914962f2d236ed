"""A small world for the pipeline: the real configuration, tiny files for models and data, stages that only write."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from pipeline import cli, commands
from pipeline.decisions import Selection
from pipeline.executors import StageFailed
from pipeline.runner import Outcome
from pipeline.session import Session
from stages.contract import Job, Journal
from stages.contract.artifact import RUN_VARIABLE
from stages.contract.job import execute
from stages.contract.place import Place, write_whole
from stages.contract.quarantine import BadLine, write_quarantine

if TYPE_CHECKING:
    from mlflow.entities import Run

Command = Callable[..., tuple[int, str]]
Question = Callable[..., tuple[int, Any]]

TASKS = ("which-digit", "read-a-row", "largest", "how-many", "add-a-column", "sort-a-row", "even-or-odd")
BAD = [BadLine("7", 8, "image 7.png cannot be read: OSError"), BadLine("line 12", 12, "invalid UTF-8")]


class FakeExecutor:
    """Commits artifacts through the real contract; its stages take no time and can be told to fail."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.environments: dict[str, dict[str, str]] = {}
        self.failing: set[str] = set()

    @property
    def stages(self) -> list[str]:
        """What ran, sorted: independent stages run in any order."""
        return sorted(job.stage for job in self.jobs)

    def __enter__(self) -> FakeExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def run(self, job: Job, log: Path, environment: dict[str, str]) -> None:
        """Do what a stage's process would do."""
        self.jobs.append(job)
        self.environments[job.stage] = environment
        os.environ.update(environment)
        execute(job, self._stage)

    def _stage(self, job: Job, work: Place) -> dict[str, Any]:
        journal = Journal(work, total=3, unit="steps")
        for step in (1, 2):
            journal.write(step, loss=1.0 / step, samples_per_second=10.0)
        if job.stage in self.failing:
            raise StageFailed(f"{job.stage}: out of luck")
        journal.write(3, loss=0.3, learning_rate=1e-4, ce_teacher=[2.0, 1.0])
        write_whole(work / "weights.bin", job.fingerprint)
        write_quarantine(work, BAD if job.stage == "capture" else [], job.stage)
        return summary_of(job.stage)


def summary_of(stage: str) -> dict[str, Any]:
    """What the real stages say in their manifests."""
    if stage == "verbalization":
        layers = {"teacher_target_layers": [0, 1, 2], "student_target_layers": [0, 1]}
        return {**layers, "ce_teacher": [2.0, 1.0, 0.5], "ce_student": [2.0, 1.2], "steps": 3}
    if stage == "interaction":
        layers = {"teacher_target_layers": [0, 1, 2], "student_target_layers": [0, 1]}
        draws = [[0.5, 0.5, 0.0], [0.0, 0.4, 0.6]]
        return {**layers, "matching_start": draws, "matching_end": draws, "steps": 3, "loss": 0.3}
    if stage == "evaluation":
        by_task = {task: {"accuracy": 0.5 + 0.05 * i, "samples": 10} for i, task in enumerate(TASKS)}
        return {"overall": 0.65, "samples": 70, "by_task": by_task}
    return {"steps": 3, "loss": 0.3}


def journal_of_matches() -> list[dict[str, object]]:
    """Lines of two steps, of two student layers."""
    drawn, expected = [[0.0, 1.0], [0.5, 2.0]], [[0.2, 1.4], [0.4, 1.6]]
    steps = enumerate(zip(drawn, expected, strict=True), 1)
    return [{"step": step, "match_mean": mean, "match_expected": exact} for step, (mean, exact) in steps]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in which the digits experiment is prepared; the current directory is beside it."""
    monkeypatch.setenv("VLSI_STORE", str(tmp_path / "store"))
    monkeypatch.setenv(RUN_VARIABLE, "")
    for name in ("VLSI_CONF", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    prepared = tmp_path / "store" / "prepared" / "digits"
    for name in ("teacher", "backbone"):
        folder = prepared / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"name": name}))
        (folder / "model.safetensors").write_bytes(name.encode())
    (prepared / "images").mkdir()
    for name in ("train", "test"):
        (prepared / "images" / f"{name}.png").write_bytes(name.encode())
        content = [{"type": "image"}, {"type": "text", "text": "Which digit?"}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "one"}]
        sample = {"id": name, "images": [f"images/{name}.png"], "messages": turns}
        (prepared / f"{name}.jsonl").write_text(json.dumps(sample) + "\n")
    return tmp_path


@pytest.fixture(autouse=True)
def unpaired(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny files have no processors to compare; tests of the comparison itself are marked `paired`."""
    if "paired" not in request.keywords:
        monkeypatch.setattr("pipeline.pairing._check", lambda *_: None)


@pytest.fixture
def executor() -> FakeExecutor:
    """Remembers every job that was run in the test."""
    return FakeExecutor()


@pytest.fixture
def run(world: Path, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run an experiment as `vlsi run` does, without MLflow and figures; everything is read afresh each time."""
    monkeypatch.setattr("pipeline.session.render", lambda *_: "")

    def run(*overrides: str, keep_going: bool = False, **selection: str) -> Outcome:
        executor.jobs.clear()
        session = Session.open(["tracking.enabled=false", *overrides])
        decisions = session.decide(Selection(**selection))
        return session.execute(decisions, Console(quiet=True), executor, keep_going=keep_going)

    return run


class Runs:
    """What one MLflow knows, by parent and by stage."""

    def __init__(self, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(uri)
        experiment = self.client.get_experiment_by_name("vlsi")
        assert experiment is not None
        self.experiment_id = experiment.experiment_id
        runs = self.client.search_runs([self.experiment_id], order_by=["attributes.start_time ASC"])
        self.parents = [run for run in runs if "vlsi.run" in run.data.tags and "vlsi.stage" not in run.data.tags]
        self.children = {run.data.tags["vlsi.stage"]: run for run in runs if "vlsi.stage" in run.data.tags}
        self.all = runs

    def files(self, run: Run) -> set[str]:
        """Names of a run's files, folders entered."""
        found = set()
        for item in self.client.list_artifacts(run.info.run_id):
            inner = self.client.list_artifacts(run.info.run_id, item.path) if item.is_dir else [item]
            found |= {entry.path for entry in inner}
        return found

    def steps(self, run: Run, metric: str = "loss") -> list[int]:
        """The steps that a metric was logged at, sorted."""
        return sorted(entry.step for entry in self.client.get_metric_history(run.info.run_id, metric))


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow database without runs; making one takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def tracked(world: Path, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the digits experiment alone, mirrored in whatever MLFLOW_TRACKING_URI names; what was printed."""
    monkeypatch.setattr("pipeline.session.render", lambda *_: "<!doctype html>")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    monkeypatch.setattr("pipeline.tracking.tracker.LOCAL_PATIENCE_SECONDS", 120.0)
    monkeypatch.setattr("pipeline.tracking.mirror.save_stage_figures", lambda _, folder: (folder / "a.png").touch())

    def tracked(*overrides: str, **selection: str) -> str:
        session = Session.open(["~variants", *overrides])
        printed = io.StringIO()
        session.execute(session.decide(Selection(**selection)), Console(file=printed, width=200), executor)
        return printed.getvalue()

    return tracked


@pytest.fixture
def track(world: Path, tracked: Callable[..., str], fresh_database: bytes) -> Callable[..., Runs]:
    """The same with a database in the store; what MLflow knows afterwards."""
    database = world / "store" / "mlflow.db"
    database.write_bytes(fresh_database)

    def track(*overrides: str, **selection: str) -> Runs:
        printed = tracked(*overrides, **selection)
        assert "MLflow" not in printed, printed
        return Runs(f"sqlite:///{database}")

    return track


@pytest.fixture
def call_vlsi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call `vlsi` in this process; exit code and everything printed, in a terminal of so many columns."""

    def call_vlsi(*arguments: str, width: int = 100) -> tuple[int, str]:
        for console in (commands.out, commands.err):
            monkeypatch.setattr(console, "_width", width)
        monkeypatch.setattr(sys, "argv", ["vlsi", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return call_vlsi


@pytest.fixture
def vlsi(world: Path, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch, call_vlsi: Command) -> Command:
    """Call `vlsi` in this process, with stages that only write; exit code and everything printed."""
    monkeypatch.setattr("pipeline.session.make_executor", lambda settings: executor)
    monkeypatch.setattr("pipeline.session.render", lambda *_: "")
    return call_vlsi


@pytest.fixture
def ask_vlsi(vlsi: Command) -> Question:
    """Call `vlsi … --json` in the same way; exit code and the document, which is all that stdout holds.

    Stages that only write print in this process what a real one prints into its log.
    """

    def ask_vlsi(*arguments: str) -> tuple[int, Any]:
        with redirect_stdout(io.StringIO()) as printed:
            code, _ = vlsi(*arguments, "--json")
        ours = [line for line in printed.getvalue().splitlines() if not line.startswith("capture: ")]
        return code, json.loads("\n".join(ours))

    return ask_vlsi
