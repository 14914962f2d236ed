"""`vlsi runs`: what it lists, and in which order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Command, FakeExecutor, Question

from pipeline.commands.runs import ago
from pipeline.runner import Outcome
from pipeline.session import Session

ALONE = "~variants"
FASTER = "interaction.schedule.steps=5"

Run = Callable[..., Outcome]


def test_runs_are_listed_newest_first(run: Run, vlsi: Command) -> None:
    run(ALONE)
    run(ALONE, FASTER)
    newest, oldest = reversed(Session.open([]).history.records())
    code, text = vlsi("runs", width=120)
    assert code == 0
    assert text.index(newest.id) < text.index(oldest.id)
    flat = " ".join(text.split())
    for row in ("finished 8 0 65.0 tracking.enabled=false ~variants", "finished 3 5 65.0 tracking.enabled=false"):
        assert row in flat
    assert oldest.id not in vlsi("runs", "--limit", "1")[1]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_into_the_terminal(run: Run, vlsi: Command, width: int) -> None:
    run(ALONE, FASTER, "interaction.schedule.learning_rate=5e-5", "reinforcement.schedule.learning_rate=5e-5")
    _, text = vlsi("runs", width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_how_a_run_ended_is_said(run: Run, executor: FakeExecutor, ask_vlsi: Question) -> None:
    executor.failing = {"interaction"}
    run(ALONE)
    _, (failed,) = ask_vlsi("runs", "digits")
    assert (failed["status"], failed["accuracy"]) == ("failed", None)
    assert failed["stages"]["interaction"]["error"] == "interaction: out of luck"
    history = Session.open([]).history
    record = history.records()[0]
    record.status, record.pid = "running", 2**22 + 1
    history.write(record)
    _, (interrupted,) = ask_vlsi("runs")
    assert interrupted["status"] == "interrupted"


def test_a_record_that_cannot_be_read_is_named(run: Run, vlsi: Command) -> None:
    run(ALONE)
    torn = Session.open([]).store.root / "runs" / "digits" / "000000000001-abcdef01.json"
    torn.write_text("{torn")
    code, text = vlsi("runs", width=300)
    assert code == 0
    assert f"{torn} cannot be read" in text


def test_an_experiment_without_runs_is_refused(run: Run, vlsi: Command) -> None:
    assert "No runs yet" in vlsi("runs")[1]
    run(ALONE)
    code, text = vlsi("runs", "letters")
    assert code == 2
    assert "no runs of 'letters'; there are runs of: digits" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s ago"), (61, "1 min ago"), (7300, "2 h ago"), (5e6, "57 d ago"), (-3, "0 s ago")],
)
def test_an_age_has_one_unit(seconds: float, text: str) -> None:
    assert ago(seconds) == text
