"""Reports on runs of the history: `vlsi report RUN …`, missing and failed stages, sweeps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import ConfigError
from pipeline.experiment import Experiment
from pipeline.history import History, RunRecord
from pipeline.reports.report import render
from pipeline.reports.runs import write_runs_report
from pipeline.reports.subject import Subject
from pipeline.results import Scores
from pipeline.runner import Outcome
from pipeline.session import Session
from pipeline.store import Store
from pipeline.sweeps.recording import recorded_sweeps
from tests.pipeline.conftest import Command, FakeExecutor
from tests.pipeline.reports.conftest import write_predictions

SLOWER = "interaction.schedule.learning_rate=5e-5"
ALONE = "~variants"

pytestmark = pytest.mark.usefixtures("undrawn")
Run = Callable[..., Outcome]


def open_store(world: Path) -> tuple[Store, History]:
    store = Store(world / "store")
    return store, History(store.artifacts)


def test_two_runs_are_one_page_with_differences_first(world: Path, run: Run) -> None:
    before = run(ALONE).artifacts["evaluation"]
    after = run(ALONE, SLOWER).artifacts["evaluation"]
    write_predictions(before, [True, False] * 20)
    write_predictions(after, [True, True] * 20)
    store, history = open_store(world)
    first, second = history.records("digits")
    html = write_runs_report(store, history, ["digits~1", "digits"]).read_text()
    assert f"<h1>digits {first.id} · digits {second.id}</h1>" in html
    setting = "<td><code>interaction.schedule.learning_rate</code></td>"
    assert re.search(rf"{setting}<td><code>\S+</code></td><td><code>5e-5</code></td>", html)
    assert f"<td>VLsI</td><td>digits {second.id}</td><td>65.0</td><td>65.0</td><td>+0.0</td><td>+35.0 … +65.0" in html
    assert html.count("the last steps.</figcaption>") == 2
    assert html.count(" by itself</summary>") == 2
    assert html.index("What was set differently") < html.index(" by itself</summary>")
    assert store.report_file(f"{first.id}-{second.id}").is_file()


def test_three_runs_are_each_compared_with_the_first(world: Path, run: Run) -> None:
    for changes in ((), (SLOWER,), (SLOWER, "interaction.schedule.weight_decay=0.5")):
        run(ALONE, *changes)
    store, history = open_store(world)
    html = write_runs_report(store, history, ["digits~2", "digits~1", "digits"], world / "page.html").read_text()
    decay = "<td><code>interaction.schedule.weight_decay</code></td>"
    row = html[html.index(decay) + len(decay) :].partition("</tr>")[0]
    assert row.count("<td>") == 3
    assert row.endswith("<td><code>0.5</code></td>")


def test_the_parts_of_two_runs_do_not_share_a_name(world: Path, run: Run) -> None:
    store, history = open_store(world)
    ids = []
    for changes in ((), (SLOWER,)):
        run(ALONE, *changes)
        ids.append(Subject.of_record(history.records("digits")[-1], store).identifier)
    assert len(set(ids)) == 2


def test_a_run_cannot_be_compared_with_itself(world: Path, run: Run) -> None:
    run(ALONE)
    store, history = open_store(world)
    with pytest.raises(ConfigError, match="digits digits name a run twice"):
        write_runs_report(store, history, ["digits", "digits"])


def test_one_run_by_name_shows_what_is_left_of_it(world: Path, run: Run, vlsi: Command) -> None:
    run(ALONE)
    page = world / "page.html"
    code, text = vlsi("report", "digits", "--output", str(page))
    assert (code, "page.html" in text) == (0, True)
    assert "<h1>digits</h1>" in page.read_text()
    code, text = vlsi("report", "nothing-of-that-name")
    assert (code, "there is no run 'nothing-of-that-name'" in text) == (2, True)


def test_a_failed_stage_is_named_and_the_page_still_opens(world: Path, run: Run, executor: FakeExecutor) -> None:
    executor.failing = {"interaction"}
    run(ALONE)
    store, history = open_store(world)
    html = render(Subject.of_record(history.records("digits")[-1], store))
    assert "<li>interaction <bdi>failed: out of luck</bdi></li>" in html
    assert "<li>reinforcement <bdi>has not been made</bdi></li>" in html
    session = Session.open(["tracking.enabled=false", ALONE])
    page = session.write_report(world / "page.html")
    assert page.is_file()


def test_a_failure_among_what_is_reused_is_told_in_the_experiments_report(
    world: Path, run: Run, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(ALONE)
    monkeypatch.setattr("pipeline.session.render", render)
    executor.failing = {"interaction"}
    run(ALONE, SLOWER)
    assert "<li>interaction <bdi>failed: out of luck</bdi></li>" in (world / "store/reports/digits.html").read_text()


def test_artifacts_that_are_gone_leave_a_page(world: Path, run: Run) -> None:
    run(ALONE)
    store, history = open_store(world)
    record = history.records("digits")[-1]
    gone = record.model_copy(update={"wanted": {key: f"{key}/{'0' * 16}" for key in record.wanted}})
    html = render(Subject.of_record(gone, store))
    assert html.count("has not been made") == len(record.wanted)


def test_a_run_of_another_version_is_shown_without_a_plan(world: Path, run: Run) -> None:
    run(ALONE)
    store, history = open_store(world)
    record = history.records("digits")[-1]
    older = record.model_copy(update={"configuration": {"teacher": {"path": "there"}, "gone": "<script>"}})
    html = render(Subject.of_record(older, store))
    assert "Teacher <code>there</code>, small backbone <code>unknown</code>" in html
    assert "<script" not in html


def test_the_lineage_tells_code_models_and_data(world: Path, run: Run) -> None:
    run(ALONE)
    store, history = open_store(world)
    record = history.records("digits")[-1]
    record.origin = {"mlflow.source.git.commit": "0123abcd", "host": "<here>"}
    html = render(Subject.of_record(record, store))
    assert "<td>commit</td><td><code>0123abcd</code></td>" in html
    assert "&lt;here&gt;" in html
    for label in ("teacher of capture", "student of verbalization", "samples of capture", "samples of evaluation"):
        assert f"<td>{label}</td>" in html


def trial(history: History, experiment: Experiment, name: str, accuracy: float, started: float = 1.0) -> None:
    history.write(
        RunRecord(
            id=f"{int(started):08x}",
            experiment=name,
            started=started,
            host="here",
            pid=1,
            overrides=(),
            configuration={},
            graph=name,
            wanted={},
            scores=[Scores("vlsi", accuracy, {}, 10)],
        )
    )


def test_the_sweeps_that_records_tell_of_are_drawn(world: Path, session: Session) -> None:
    history = session.history
    for name, accuracy in (("small-to-small", 0.25), ("large-to-large", 0.75)):
        trial(history, session.experiment, f"digits@sizes.{name}.0", accuracy)
    trial(history, session.experiment, "digits@sizes.large-to-large.0", 0.5, started=2.0)
    trial(history, session.experiment, "digits@gone.point.0", 0.5)
    trial(history, session.experiment, "other@sizes.small-to-small.0", 0.5)
    (results,) = recorded_sweeps(history, session.experiment)
    assert {value.point: value.scores.overall for value in results.values} == {
        "small-to-small": 0.25,
        "large-to-large": 0.5,
    }
    subject = Subject.of_graph(session.experiment, session.graph, session.artifacts(), None, [results])
    assert "sizes: Sizes of teacher and student. Mean and standard error over seeds 0. 2 values are" in render(subject)
