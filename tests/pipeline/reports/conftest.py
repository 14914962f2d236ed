"""Runs to report on, with predictions and sayings in their artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.reports.report import render
from pipeline.reports.subject import Subject
from pipeline.session import Session
from stages.contract import Artifact
from stages.contract.files import PREDICTIONS_FOLDER
from stages.contract.sayings import Said, Shown, Speaker, write_sayings
from tests.pipeline.conftest import FakeExecutor


@pytest.fixture
def session(world: Path, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch) -> Session:
    """The digits experiment after a run."""
    monkeypatch.setattr("pipeline.session.render", lambda *_: "")
    session = Session.open(["tracking.enabled=false"])
    session.execute(session.decide(), Console(quiet=True), executor)
    return session


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of a report's time; tests of its text do without."""
    monkeypatch.setattr("pipeline.reports.page._svg", lambda _: "<svg ></svg>")


def report(session: Session, artifacts: dict[str, Artifact] | None = None) -> str:
    """The page on these artifacts, or on all."""
    made = session.artifacts() if artifacts is None else artifacts
    return render(Subject.of_graph(session.experiment, session.graph, made, session.history.last("digits")))


def write_predictions(artifact: Artifact, correct: Sequence[bool], task: str = "count") -> None:
    """Answers to as many questions."""
    folder = artifact.path / PREDICTIONS_FOLDER
    folder.mkdir(exist_ok=True)
    rows = [{"id": str(n), "task": task, "correct": right} for n, right in enumerate(correct)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "shard-000000.parquet")


def speaker(name: str, *words: str, blocks: Sequence[int] = (0,), confidence: float = 0.5) -> Speaker:
    """A model all of whose layers say the same words."""
    return Speaker(name, tuple(Said(block, words, (confidence,) * len(words)) for block in blocks))


def let_speak(session: Session) -> None:
    """Sayings before interaction and after it, in their artifacts."""
    before = (speaker("teacher", "two", " three", blocks=(0, 1, 2)), speaker("backbone", "two", " nine"))
    after = (speaker("student", "two", " three", confidence=0.9),)
    artifacts = session.artifacts()
    for key, models in (("verbalization", before), ("interaction", after)):
        picture = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
        sample = Shown("7", "Which digit?", "two three", ("two", " three"), (picture,), models)
        write_sayings(artifacts[key].path, [sample])
