"""A small world for the pipeline: the real configuration, tiny files for models and data, stages that only write."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from rich.console import Console

from pipeline import cli, commands
from pipeline.decisions import Selection
from pipeline.executors import StageFailed
from pipeline.runner import Outcome
from pipeline.session import Session
from stages.contract import Job, Journal
from stages.contract.job import execute
from stages.contract.place import Place, write_whole
from stages.contract.quarantine import BadLine, write_quarantine

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


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in which the digits experiment is prepared; the current directory is beside it."""
    monkeypatch.setenv("VLSI_STORE", str(tmp_path / "store"))
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
    """Call `vlsi … --json` in the same way; exit code and the document, which is all that stdout holds."""

    def ask_vlsi(*arguments: str) -> tuple[int, Any]:
        with redirect_stdout(io.StringIO()) as printed:
            code, _ = vlsi(*arguments, "--json")
        return code, json.loads(printed.getvalue())

    return ask_vlsi
