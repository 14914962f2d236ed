"""Answers to questions: what is scored, what is kept, what a restart does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages import evaluation
from stages.contract import Job, StageError
from stages.contract.artifact import open_artifact
from stages.contract.job import execute
from stages.contract.quarantine import read_quarantine
from stages.evaluation import EvaluationWorker, score
from tests.stages import tiny
from tests.stages.benchmarks import published


def rows_of(rows: list[tuple[str, bool]]) -> list[dict[str, Any]]:
    return [{"item": str(place), "task": task, "correct": float(right)} for place, (task, right) in enumerate(rows)]


def test_questions_are_scored_by_kind_and_together() -> None:
    scores = score(rows_of([("b", True), ("a", True), ("b", False), ("a", True)]))
    assert scores == {
        "overall": 0.75,
        "samples": 4,
        "by_task": {"a": {"accuracy": 1.0, "samples": 2}, "b": {"accuracy": 0.5, "samples": 2}},
    }


def test_questions_without_a_kind_count_only_together() -> None:
    scores = score(rows_of([("", True), ("a", False), ("", False)]))
    assert (scores["samples"], scores["overall"]) == (3, 1 / 3)
    assert scores["by_task"] == {"a": {"accuracy": 0.0, "samples": 1}}
    assert score(rows_of([("", True)]))["by_task"] == {}


def test_no_answers_score_nothing() -> None:
    assert score([]) == {"overall": 0.0, "samples": 0, "by_task": {}}


def test_an_item_is_right_if_all_its_forms_are() -> None:
    forms = {"1": [1.0, 1.0, 1.0], "2": [1.0, 0.0, 1.0], "3": [0.0, 0.0], "4": [1.0]}
    rows = [{"item": item, "task": "t", "correct": right} for item, answers in forms.items() for right in answers]
    assert score(rows) == {"overall": 0.5, "samples": 4, "by_task": {"t": {"accuracy": 0.5, "samples": 4}}}


def test_what_nobody_has_judged_has_no_score() -> None:
    rows = [{"item": str(place), "task": "", "correct": correct} for place, correct in enumerate([None, 0.5, 1.0])]
    assert (score(rows)["overall"], score(rows)["samples"]) == (0.75, 2)
    assert (score(rows[:1])["overall"], score(rows[:1])["samples"]) == (None, 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_qwen2vl(tmp_path_factory.mktemp("model"), width=16, layers=2, pad_rows=0, seed=0)


@pytest.fixture
def mmbench(tmp_path: Path) -> Path:
    """Four questions, twelve rotations; the third question's picture is none."""
    rows = [published.mmbench_row(index, "ABC"[index % 3]) for index in range(3)]
    broken = published.mmbench_row(3, "A", image="no picture at all " * 10)
    return published.write_table(tmp_path / "MMBench_DEV_EN.tsv", [*rows, broken])


def job(model: Path, place: Path, output: Path, **settings: Any) -> Job:
    settings = {"model": {"dtype": "float32"}, "max_new_tokens": 3, "shard_samples": 4} | settings
    settings["preprocessing"] = {"max_bad_fraction": 0.5}
    inputs = {"model": str(model), "samples": str(place)}
    return Job(stage="evaluation", settings=settings, inputs=inputs, output=str(output), resources={"workers": 0})


def predictions(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((output / "predictions").iterdir()) for row in pq.read_table(path).to_pylist()]


def summary(output: Path) -> dict[str, Any]:
    artifact = open_artifact(output)
    assert artifact is not None
    return artifact.manifest.summary


def test_a_benchmark_is_answered_and_kept_with_its_prompts(model: Path, mmbench: Path, tmp_path: Path) -> None:
    execute(job(model, mmbench, tmp_path / "out", benchmark="mmbench"), evaluation.run)
    rows, found = predictions(tmp_path / "out"), summary(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"{index}.{turn}" for index in range(3) for turn in range(3)]
    assert all("What is it?\nA. " in row["prompt"] and row["prompt"].endswith("assistant\n") for row in rows)
    assert all(row["correct"] == (row["extracted"] == row["reference"]) for row in rows)
    assert (found["samples"], found["rows"], found["quarantined"]) == (3, 9, 3)
    assert found["overall"] == score(rows)["overall"]
    assert {line.id for line in read_quarantine(tmp_path / "out")} == {"3.0", "3.1", "3.2"}


def test_beam_search_is_another_decoding(model: Path, mmbench: Path, tmp_path: Path) -> None:
    execute(job(model, mmbench, tmp_path / "greedy", benchmark="mmbench"), evaluation.run)
    execute(job(model, mmbench, tmp_path / "beam", benchmark="mmbench", num_beams=2), evaluation.run)
    assert summary(tmp_path / "greedy")["decoding"] == "greedy"
    assert summary(tmp_path / "beam")["decoding"] == "beam search, 2 beams"
    assert len(predictions(tmp_path / "beam")) == 9


def test_after_a_kill_the_scores_are_the_same(
    model: Path, mmbench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(job(model, mmbench, tmp_path / "whole", benchmark="mmbench"), evaluation.run)
    answered: list[list[str]] = []
    work = EvaluationWorker.work

    def killed_at_the_second(self: EvaluationWorker, ids: list[str], *rest: Any) -> Any:
        answered.append(ids)
        if len(answered) == 2:
            raise KeyboardInterrupt
        return work(self, ids, *rest)

    monkeypatch.setattr(EvaluationWorker, "work", killed_at_the_second)
    interrupted = job(model, mmbench, tmp_path / "torn", benchmark="mmbench")
    with pytest.raises(KeyboardInterrupt):
        execute(interrupted, evaluation.run)
    assert open_artifact(tmp_path / "torn") is None
    execute(interrupted, evaluation.run)
    assert [ids[0] for ids in answered] == ["0.0", "1.1", "1.1", "2.2"]
    assert predictions(tmp_path / "torn") == predictions(tmp_path / "whole")
    names = ("overall", "samples", "by_task", "metrics", "rows", "quarantined")
    assert [summary(tmp_path / "torn")[name] for name in names] == [summary(tmp_path / "whole")[n] for n in names]


@pytest.fixture
def mm_vet(tmp_path: Path) -> Path:
    published.write_picture(tmp_path / "images/a.png", 4)
    entries = {
        f"v1_{place}": {"imagename": "a.png", "question": "Why?", "answer": "two", "capability": ["ocr"]}
        for place in range(2)
    }
    return published.write_json(tmp_path / "mm-vet.json", entries)


def test_without_a_judge_answers_are_kept_and_not_scored(model: Path, mm_vet: Path, tmp_path: Path) -> None:
    execute(job(model, mm_vet, tmp_path / "out", benchmark="mm-vet"), evaluation.run)
    assert [row["correct"] for row in predictions(tmp_path / "out")] == [None, None]
    assert (summary(tmp_path / "out")["overall"], summary(tmp_path / "out")["samples"]) == (None, 0)


def test_a_judge_scores_every_answer(
    model: Path, mm_vet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 1.0])
    monkeypatch.setattr("stages.evaluation.Referee.score", lambda self, prompt: next(scores))
    judge = {"url": "http://localhost:1/v1", "model": "judge"}
    execute(job(model, mm_vet, tmp_path / "out", benchmark="mm-vet", judge=judge), evaluation.run)
    assert summary(tmp_path / "out")["overall"] == 0.75


def test_an_unknown_benchmark_is_refused(model: Path, mmbench: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="benchmark 'mmbnch' is unknown; allowed: mmbench, mm-vet"):
        execute(job(model, mmbench, tmp_path / "out", benchmark="mmbnch"), evaluation.run)
