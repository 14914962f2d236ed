"""Scores of answers, overall and by kind of question."""

from __future__ import annotations

from stages.evaluation import score


def test_questions_are_scored_by_kind_and_together() -> None:
    rows = [("b", True), ("a", True), ("b", False), ("a", True)]
    scores = score(rows_of(rows))
    assert scores == {
        "overall": 0.75,
        "samples": 4,
        "by_task": {"a": {"accuracy": 1.0, "samples": 2}, "b": {"accuracy": 0.5, "samples": 2}},
    }


def test_questions_without_a_kind_count_only_together() -> None:
    rows = [("", True), ("a", False), ("", False)]
    scores = score(rows_of(rows))
    assert (scores["samples"], scores["overall"]) == (3, 1 / 3)
    assert scores["by_task"] == {"a": {"accuracy": 0.0, "samples": 1}}
    assert score(rows_of([("", True)]))["by_task"] == {}


def test_no_answers_score_nothing() -> None:
    assert score([]) == {"overall": 0.0, "samples": 0, "by_task": {}}
