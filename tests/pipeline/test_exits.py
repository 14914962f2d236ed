"""How commands end, and what programs read of them."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from conftest import Command, FakeExecutor, Question

from pipeline import cli
from pipeline.exits import EXIT_CODES, MEANINGS, Exit
from pipeline.runner import Outcome
from pipeline.session import Session

ALONE = ("tracking.enabled=false", "~variants")
STATUS_KEYS = {"key", "stage", "fingerprint", "place", "status", "reasons", "seconds"}


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Exit)
    assert EXIT_CODES.startswith("Exit codes: 0 done · 1 ")


@pytest.mark.parametrize("command", ["run", "prepare"])
def test_a_stop_says_how_to_go_on_and_ends_with_3(vlsi: Command, executor: FakeExecutor, command: str) -> None:
    executor.run = stop  # type: ignore[method-assign]
    code, text = vlsi(command, *ALONE, width=300)
    assert code == 3
    assert f"Stopped; go on with: vlsi {command} {' '.join(ALONE)}\n" in text


def test_going_on_repeats_the_selection(vlsi: Command, executor: FakeExecutor) -> None:
    executor.run = stop  # type: ignore[method-assign]
    _, text = vlsi("run", *ALONE, "--until", "precompute", "--keep-going", width=300)
    assert f"go on with: vlsi run {' '.join(ALONE)} --until=precompute --keep-going\n" in text


def test_sigterm_is_a_stop(vlsi: Command) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        vlsi("status")
        assert signal.getsignal(signal.SIGTERM) is cli._interrupt
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(KeyboardInterrupt):
        cli._interrupt()


def test_a_stopped_run_is_recorded_and_goes_on(ask_vlsi: Question, executor: FakeExecutor) -> None:
    plain, executor.run = executor.run, stop  # type: ignore[method-assign]
    code, stopped = ask_vlsi("run", *ALONE, "executor.parallel_stages=1")
    assert (code, stopped["status"]) == (3, "stopped")
    assert [stage["status"] for stage in stopped["stages"]].count("stopped") == 1
    executor.run = plain  # type: ignore[method-assign]
    code, finished = ask_vlsi("run", *ALONE)
    assert (code, finished["status"], finished["run"]) == (0, "finished", stopped["run"])


def test_status_ends_with_1_if_asked_whether_anything_would_run(vlsi: Command, run: Callable[..., Outcome]) -> None:
    assert vlsi("status", *ALONE)[0] == 0
    assert vlsi("status", *ALONE, "--exit-code")[0] == 1
    run("~variants")
    assert vlsi("status", *ALONE, "--exit-code")[0] == 0


def test_a_run_tells_programs_what_became_of_it(ask_vlsi: Question, executor: FakeExecutor) -> None:
    executor.failing = {"interaction"}
    code, failed = ask_vlsi("run", *ALONE, "--keep-going")
    assert (code, failed["status"], failed["scores"][0]["name"]) == (1, "failed", "teacher")
    stages = {stage["key"]: stage for stage in failed["stages"]}
    assert set(stages["interaction"]) == {*STATUS_KEYS, "error"}
    assert stages["interaction"]["error"] == "interaction: out of luck"
    assert stages["evaluation"]["status"] == "skipped"
    executor.failing = set()
    code, done = ask_vlsi("run", *ALONE)
    assert (code, done["run"], done["status"]) == (0, failed["run"], "finished")
    assert {row["name"]: row["overall"] for row in done["scores"]} == {"teacher": 0.65, "backbone": 0.65, "vlsi": 0.65}
    assert {"student", "report", "artifacts"} <= set(done["places"])
    assert all(stage["seconds"] >= 0 and stage["error"] is None for stage in done["stages"])
    code, nothing = ask_vlsi("run", *ALONE)
    assert (code, nothing["run"]) == (0, done["run"])
    assert {stage["status"] for stage in nothing["stages"]} == {"reused"}


@pytest.mark.parametrize("command", [("status",), ("run", "--dry-run")])
def test_decisions_are_for_programs_too(ask_vlsi: Question, command: tuple[str, ...]) -> None:
    code, found = ask_vlsi(*command, *ALONE)
    assert (code, found["experiment"], found["stale"]) == (0, "digits", len(found["stages"]))
    assert all(set(stage) == STATUS_KEYS and stage["status"] == "stale" for stage in found["stages"])


def test_an_explanation_is_for_programs_too(ask_vlsi: Question) -> None:
    code, (found,) = ask_vlsi("explain", "interaction", *ALONE)
    (node,) = Session.open(ALONE).graph.named("interaction")
    assert (code, found["fingerprint"], found["reasons"]) == (0, node.fingerprint, ["no artifact yet"])
    assert found["settings"]["interaction.matching.strategy"] == "adaptive"
    assert set(found["inputs"]) == {"student", "samples", "verbalization", "precompute"}
    assert found["inputs"]["precompute"]["stage"] == "precompute"
    assert set(found["inputs"]["student"]) == {"place", "digest"}
