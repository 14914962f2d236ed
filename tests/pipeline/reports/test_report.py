"""Figures and the report, from what the stages say."""

from __future__ import annotations

import re

import pytest

from pipeline import figures
from pipeline.experiment import Experiment
from pipeline.planner.comparison import compare
from pipeline.planner.facts import Facts, Options, assumed
from pipeline.planner.models import ModelSize, VisionSize
from pipeline.reports.report import render
from pipeline.reports.subject import Subject
from pipeline.results import collect_scores
from pipeline.session import Session
from stages.contract.artifact import File
from tests.pipeline.conftest import TASKS, journal_of_matches, summary_of
from tests.pipeline.reports.conftest import report

undrawn = pytest.mark.usefixtures("undrawn")
HOSTILE = '<script>alert("1")</script> $\\frac{ & [red]'


def test_the_report_holds_everything_and_needs_nothing(session: Session) -> None:
    html = report(session)
    for label in ("teacher", "small backbone", "plain SFT", "last-layer KD", "VLsI"):
        assert f"<td>{label}</td>" in html
    assert html.count("<svg") == 1 + 1 + 2 + 6
    assert all(node.fingerprint in html for node in session.graph.nodes)
    assert not re.search(r'(src|href)="(?!#|data:)', html)
    assert figures.INK not in html.replace(f"--ink: {figures.INK}", "")


@undrawn
def test_the_report_says_how_long_training_waited_for_data(session: Session) -> None:
    artifacts = session.artifacts()
    interaction = artifacts["interaction"]
    summary = {**summary_of("interaction"), "waiting_share": 0.1234}
    manifest = interaction.manifest.model_copy(update={"summary": summary})
    artifacts["interaction"] = type(interaction)(interaction.path, manifest)
    assert "<td>12.3</td>" in report(session, artifacts)
    assert "waiting for data" in report(session, artifacts)


@undrawn
def test_the_report_shows_what_there_is(session: Session) -> None:
    artifacts = {key: value for key, value in session.artifacts().items() if key in ("capture", "evaluation@sft")}
    html = report(session, artifacts)
    assert "<td>plain SFT</td>" in html
    assert "<td>VLsI</td>" not in html


@undrawn
def test_hostile_text_is_escaped(session: Session) -> None:
    artifacts = session.artifacts()
    evaluation = artifacts["evaluation"]
    summary = {**summary_of("evaluation"), "by_task": {HOSTILE: {"accuracy": 0.5, "samples": 1}}}
    artifacts["evaluation"] = type(evaluation)(
        evaluation.path, evaluation.manifest.model_copy(update={"summary": summary})
    )
    experiment = session.experiment.model_copy(update={"name": HOSTILE})
    html = render(Subject.of_graph(experiment, session.graph, artifacts))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


@undrawn
def test_scores_are_in_the_order_of_the_table(session: Session) -> None:
    scores = collect_scores(session.graph, session.artifacts())
    assert [row.name for row in scores] == ["teacher", "backbone", "sft", "last-layer-kd", "vlsi"]
    assert list(scores[0].by_task) == list(TASKS)


@undrawn
def test_without_kinds_of_question_the_report_shows_the_overall_score(session: Session) -> None:
    evaluation = session.artifacts()["evaluation"]
    manifest = evaluation.manifest.model_copy(update={"summary": {**summary_of("evaluation"), "by_task": {}}})
    artifacts = {"evaluation": type(evaluation)(evaluation.path, manifest)}
    html = report(session, artifacts)
    assert "<thead><tr><th></th><th>overall</th></tr></thead>" in html
    assert "<td>65.0</td>" in html


@undrawn
def test_the_report_shows_matches_over_time_where_they_were_recorded(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts, caption = session.artifacts(), "<figcaption>interaction: the mean teacher block"
    assert caption not in report(session, artifacts)
    monkeypatch.setattr("pipeline.reports.layers.read_journal", lambda _: journal_of_matches())
    assert caption in report(session, artifacts)


@undrawn
def test_the_report_compares_what_was_planned_with_what_was_measured(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantities that an artifact does not have are left out; the plan of a variant is that of its settings."""
    monkeypatch.setattr("pipeline.planner.comparison.find_facts", facts_of)
    monkeypatch.setattr("pipeline.planner.plan.model_size", lambda key, model: SIZE)
    artifacts = session.artifacts()
    capture = artifacts["capture"]
    summary = {"bytes": 4_560_000, "response_tokens": 6426, "peak_memory_bytes": 1_230_000_000}
    files = tuple(File(path=f"states/shard-{n}.parquet", bytes=1, sha256="") for n in range(6))
    manifest = capture.manifest.model_copy(update={"summary": summary, "files": files})
    artifacts["capture"] = type(capture)(capture.path, manifest)
    made = [(node.key, node.settings, artifacts[node.key]) for node in session.graph.nodes]
    basis, comparisons = compare(session.experiment, made)
    by_key = {one.key: one for one in comparisons}
    assert basis == "assumed (a test)"
    assert "evaluation" not in by_key
    assert {"capture", "precompute", "precompute@last-layer-kd", "reinforcement@sft"} <= set(by_key)
    of_capture = by_key["capture"]
    assert of_capture.files == (6, 6)
    assert of_capture.response_tokens == (1500 * 4, 6426)
    assert of_capture.disk_bytes.measured == 4_560_000
    assert of_capture.peak_bytes.measured == 1_230_000_000
    assert of_capture.seconds.planned is None, "no accelerator, no stated throughput"
    assert by_key["interaction"].peak_bytes.measured is None
    assert by_key["precompute@last-layer-kd"].disk_bytes.planned < by_key["precompute"].disk_bytes.planned / 5
    html = report(session, artifacts)
    assert "Planned / measured" in html
    assert " / 4.56</td><td>6 / 6</td><td>6,000 / 6,426</td>" in html


@undrawn
def test_a_plan_that_cannot_be_made_leaves_the_report_without_one(session: Session) -> None:
    assert "Planned / measured" not in report(session)


SIZE = ModelSize(10, 96, 256, 4, 4, 576, 462, False, VisionSize(2, 64, 128, 100_000, 1176, 1000, 6, 24))


def facts_of(experiment: Experiment, options: Options, verbalization: str | None) -> Facts:
    assert verbalization is not None
    return assumed(SIZE, 60, Options(samples=1500, response_tokens=4, prompt_tokens=20), "a test")


@undrawn
def test_the_samples_that_stages_left_out_are_listed(session: Session) -> None:
    html = report(session)
    assert "<summary>capture: 2</summary>" in html
    assert "<td>8</td><td><bdi>image 7.png cannot be read: OSError</bdi></td>" in html
    assert "<summary>precompute:" not in html
