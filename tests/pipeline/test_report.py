"""Figures and the report, from what the stages say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import TASKS, FakeExecutor, summary_of
from rich.console import Console

from pipeline import figures
from pipeline.report import render
from pipeline.results import Scores, collect_scores
from pipeline.session import Session

HOSTILE = '<script>alert("1")</script> $\\frac{ & [red]'


@pytest.fixture
def session(world: Path, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch) -> Session:
    """The digits experiment after a run."""
    monkeypatch.setattr("pipeline.session.render", lambda *_: "")
    session = Session.open(["tracking.enabled=false"])
    session.execute(session.decide(), Console(quiet=True), executor)
    return session


def test_the_report_holds_everything_and_needs_nothing(session: Session) -> None:
    html = render(session.experiment, session.graph, session.artifacts())
    for label in ("teacher", "small backbone", "plain SFT", "last-layer KD", "VLsI"):
        assert f"<td>{label}</td>" in html
    assert html.count("<svg") == 1 + 1 + 2 + 6
    assert all(node.fingerprint in html for node in session.graph.nodes)
    assert not re.search(r'(src|href)="(?!#|data:)', html)
    assert figures.INK not in html.replace(f"--ink: {figures.INK}", "")


def test_the_report_says_how_long_training_waited_for_data(session: Session) -> None:
    artifacts = session.artifacts()
    interaction = artifacts["interaction"]
    summary = {**summary_of("interaction"), "waiting_share": 0.1234}
    manifest = interaction.manifest.model_copy(update={"summary": summary})
    artifacts["interaction"] = type(interaction)(interaction.path, manifest)
    assert "<td>12.3</td>" in render(session.experiment, session.graph, artifacts)
    assert "waiting for data" in render(session.experiment, session.graph, artifacts)


def test_the_report_shows_what_there_is(session: Session) -> None:
    artifacts = {key: value for key, value in session.artifacts().items() if key in ("capture", "evaluation@sft")}
    html = render(session.experiment, session.graph, artifacts)
    assert "<td>plain SFT</td>" in html
    assert "<td>VLsI</td>" not in html


def test_hostile_text_is_escaped(session: Session) -> None:
    artifacts = session.artifacts()
    evaluation = artifacts["evaluation"]
    summary = {**summary_of("evaluation"), "by_task": {HOSTILE: {"accuracy": 0.5, "samples": 1}}}
    artifacts["evaluation"] = type(evaluation)(
        evaluation.path, evaluation.manifest.model_copy(update={"summary": summary})
    )
    experiment = session.experiment.model_copy(update={"name": HOSTILE})
    html = render(experiment, session.graph, artifacts)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_scores_are_in_the_order_of_the_table(session: Session) -> None:
    scores = collect_scores(session.graph, session.artifacts())
    assert [row.name for row in scores] == ["teacher", "backbone", "sft", "last-layer-kd", "vlsi"]
    assert list(scores[0].by_task) == list(TASKS)


def test_the_matching_matrix_has_a_row_for_each_student_layer() -> None:
    figure = figures.matching(summary_of("interaction"))
    start, end, _ = figure.axes
    assert (start.get_title(), end.get_title()) == ("start", "end")
    assert [tick.get_text() for tick in start.get_xticklabels()] == ["0", "1", "2"]
    assert [tick.get_text() for tick in start.get_yticklabels()] == ["0", "1"]


def test_the_bars_take_any_number_of_models() -> None:
    for count in (1, 9):
        scores = [Scores(f"model-{i}", 0.5, {"a": 0.4, "b": 0.6}, 10) for i in range(count)]
        assert len(figures.accuracy_by_task(scores).axes[0].patches) == 3 * count


def test_a_curve_leaves_out_what_is_no_number() -> None:
    journal = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": "nan"}, {"step": 3, "loss": 1.0}]
    measured = figures.loss_curves({"interaction": journal}).axes[0].lines[0]
    assert list(measured.get_xdata()) == [1, 3]
