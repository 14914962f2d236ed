"""What is reused, what runs, and whether the reason names what changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ConfigError
from pipeline.decisions import Selection
from pipeline.runner import Outcome
from pipeline.session import Session
from stages.contract import Job
from stages.contract.artifact import prepare_work
from tests.pipeline.conftest import FakeExecutor

CHAIN = ["capture", "verbalization", "precompute", "interaction", "reinforcement", "evaluation"]
ALONE = "~variants"

Run = Callable[..., Outcome]


def reasons(*overrides: str, **selection: str) -> dict[str, tuple[str, ...]]:
    """Why each node runs that does, in an experiment without variants."""
    decisions = Session.open([ALONE, *overrides]).decide(Selection(**selection))
    return {decision.node.key: decision.reasons for decision in decisions if not decision.reused}


@pytest.mark.usefixtures("world")
def test_in_an_empty_store_everything_runs() -> None:
    assert reasons()["capture"] == ("no artifact yet",)
    assert list(reasons()) == [*CHAIN, "evaluation@teacher", "evaluation@backbone"]


def test_after_a_run_nothing_runs(run: Run) -> None:
    run(ALONE)
    assert reasons() == {}


def test_a_changed_field_is_named_with_both_values(run: Run) -> None:
    run(ALONE)
    assert reasons("interaction.schedule.learning_rate=5e-5", "interaction.matching.strategy=bottom-1") == {
        "interaction": (
            "interaction.matching.strategy adaptive → bottom-1",
            "interaction.schedule.learning_rate 0.002 → 5e-5",
        ),
        "reinforcement": ("because interaction is",),
        "evaluation": ("because reinforcement is",),
    }


def test_a_chain_of_reasons_leads_to_the_change(run: Run) -> None:
    run(ALONE)
    changed = reasons("verbalization.schedule.steps=500")
    assert changed["verbalization"] == ("verbalization.schedule.steps 300 → 500",)
    assert changed["precompute"] == ("because verbalization is",)
    assert changed["interaction"] == ("because verbalization is", "because precompute is")


def test_an_artifact_of_another_recipe_is_reused_when_the_recipe_returns(run: Run) -> None:
    run(ALONE)
    run(ALONE, "interaction.schedule.steps=5")
    assert reasons() == {}


def test_changed_data_is_named(run: Run, world: Path) -> None:
    run(ALONE)
    prepared = world / "store" / "prepared" / "digits"
    (prepared / "images" / "test.png").write_bytes(b"another picture")
    changed = (f"samples changed: {prepared / 'test.jsonl'}",)
    assert reasons() == dict.fromkeys(("evaluation", "evaluation@teacher", "evaluation@backbone"), changed)


def test_an_input_that_falls_away_is_named(run: Run) -> None:
    run(ALONE)
    without_teacher = reasons("interaction.losses={intermediate: ce, last: ce}")
    assert without_teacher["interaction"][-1] == "precompute is no input any more"


def test_a_student_that_comes_from_elsewhere_is_named(run: Run) -> None:
    run(ALONE)
    assert reasons("interaction=null")["reinforcement"][0].startswith("student changed: ")


def test_an_interrupted_stage_goes_on(run: Run) -> None:
    session = Session.open([ALONE])
    capture = session.graph.nodes[0]
    prepare_work(capture.output, fresh=False, identity=capture.fingerprint)
    assert reasons()["capture"] == ("was interrupted, goes on where it stopped",)


def test_what_was_made_from_an_older_attempt_is_outdated(run: Run) -> None:
    run(ALONE)
    run(ALONE, force="interaction", only="interaction")
    assert reasons() == {
        "reinforcement": ("interaction was made anew since",),
        "evaluation": ("because reinforcement is",),
    }


def test_only_from_and_until_select(run: Run) -> None:
    run(ALONE)
    change = "capture.fraction=0.5"
    assert list(reasons(change, until="verbalization")) == ["capture", "verbalization"]
    assert list(reasons(change, only="capture")) == ["capture"]
    assert list(reasons("interaction.schedule.steps=5", start="interaction")) == CHAIN[3:]
    assert list(reasons("interaction.schedule.steps=5", start="interaction", until="reinforcement")) == CHAIN[3:5]


def test_a_stale_input_outside_the_selection_stops(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"interaction needs verbalization, which is not up to date \(no artifact"):
        reasons(only="interaction")


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"only": "capture", "until": "capture"}, "--only does not go with"),
        ({"start": "evaluation", "until": "capture"}, "selects nothing"),
        ({"only": "capturing"}, "stage 'capturing' is not part of this experiment"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(selection: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reasons(**selection)


def test_forcing_reruns_the_stage_and_what_follows(run: Run) -> None:
    run(ALONE)
    assert reasons(force="interaction") == {
        "interaction": ("forced",),
        "reinforcement": ("because interaction is",),
        "evaluation": ("because reinforcement is",),
    }
    assert set(reasons(force="all")) == {*CHAIN, "evaluation@teacher", "evaluation@backbone"}


def test_a_lost_file_is_made_again_and_what_came_of_it_stays(run: Run, executor: FakeExecutor, world: Path) -> None:
    """Red if a repaired cache makes the training that used it stale, though it is the same cache."""
    run(ALONE)
    (artifact,) = (world / "store" / "precompute").iterdir()
    (artifact / "weights.bin").unlink()
    assert reasons() == {"precompute": ("weights.bin is damaged or missing",)}
    run(ALONE)
    assert executor.stages == ["precompute"]
    assert (artifact / "weights.bin").is_file()
    assert reasons() == {}


def test_a_repair_that_gives_another_result_makes_what_came_of_it_stale(
    run: Run, executor: FakeExecutor, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(ALONE)
    (artifact,) = (world / "store" / "precompute").iterdir()
    (artifact / "weights.bin").unlink()
    stage = FakeExecutor._stage

    def otherwise(self: FakeExecutor, job: Job, work: Path) -> dict[str, Any]:
        summary = stage(self, job, work)
        if job.stage == "precompute":
            (work / "weights.bin").write_text("other")
        return summary

    monkeypatch.setattr(FakeExecutor, "_stage", otherwise)
    run(ALONE, only="precompute")
    assert reasons()["interaction"] == ("precompute was made anew since",)
