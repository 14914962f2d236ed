"""The headline and the table: paired differences over the questions, and intervals."""

from __future__ import annotations

import re

import pytest

from pipeline.reports.scores import headline, intervals_of
from pipeline.reports.subject import Subject
from pipeline.results import Answer, answers_of
from pipeline.session import Session
from pipeline.statistics import interval, paired
from tests.pipeline.reports.conftest import report, write_predictions

RIGHT = [True] * 30 + [False] * 10
WORSE = [True] * 18 + [False] * 22


@pytest.fixture
def evaluated(session: Session) -> Session:
    artifacts = session.artifacts()
    for key, correct in (("evaluation", RIGHT), ("evaluation@sft", WORSE)):
        write_predictions(artifacts[key], correct)
    return session


def subject_of(session: Session) -> Subject:
    return Subject.of_graph(session.experiment, session.graph, session.artifacts())


def test_the_headline_is_paired_over_the_questions(evaluated: Session) -> None:
    text = "".join(headline(subject_of(evaluated)))
    exact = paired([float(right) for right in RIGHT], [float(right) for right in WORSE])
    assert f"<td>than plain SFT</td><td>+0.0</td><td>{100 * exact.low:+.1f} … {100 * exact.high:+.1f}</td>" in text
    assert "<td>than teacher</td><td>+0.0</td><td>–</td><td>–</td>" in text, "it has no predictions"


def test_another_answer_changes_the_headline(evaluated: Session) -> None:
    before = "".join(headline(subject_of(evaluated)))
    write_predictions(evaluated.artifacts()["evaluation"], [False] * 40)
    assert "".join(headline(subject_of(evaluated))) != before


def test_intervals_are_those_of_every_kind_of_question_and_of_all() -> None:
    answers = {"a": Answer("count", 1.0), "b": Answer("count", 0.0), "c": Answer("", 1.0)}
    found = intervals_of(answers)
    assert found["count"] == interval([1.0, 0.0])
    assert found["overall"] == interval([1.0, 0.0, 1.0])
    assert intervals_of({}) == {}


def test_damaged_predictions_leave_the_page_without_intervals(
    evaluated: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.reports.page._svg", lambda _: "<svg ></svg>")
    artifact = evaluated.artifacts()["evaluation"]
    (artifact.path / "predictions" / "shard-000000.parquet").write_bytes(b"torn")
    assert answers_of(artifact) == {}
    assert re.search(r"VLsI answers <strong>65.0 %</strong> of 70 ", report(evaluated))
