"""What differs between two runs: the comparison itself, and `vlsi diff`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Command, Question

from pipeline.comparison import compare
from pipeline.history import RunRecord, StageRun
from pipeline.results import Scores
from pipeline.runner import Outcome
from pipeline.session import Session

ALONE = "~variants"
SLOWER = "interaction.schedule.learning_rate=5e-5"

Run = Callable[..., Outcome]


def record(id: str, rate: float, accuracy: float, **others: Any) -> RunRecord:
    return RunRecord(
        id=id,
        experiment="digits",
        started=accuracy,
        host="here",
        pid=1,
        overrides=(),
        graph=id,
        configuration={"interaction": {"schedule": {"learning_rate": rate, "steps": 5}}},
        scores=[Scores("vlsi", accuracy, {"count": accuracy, "sort": 0.5}, 100)],
        **others,
    )


def made(stage: str, fingerprint: str) -> StageRun:
    return StageRun(stage=stage, fingerprint=fingerprint, status="made")


def test_settings_artifacts_and_scores_are_compared() -> None:
    first = record(
        "a",
        1e-4,
        0.5,
        wanted={"capture": "capture/c", "interaction": "interaction/1"},
        stages={"capture": made("capture", "c"), "interaction": made("interaction", "1")},
    )
    second = record(
        "b",
        5e-5,
        0.75,
        wanted={"capture": "capture/c", "interaction": "interaction/2", "evaluation": "evaluation/e"},
        stages={"interaction": made("interaction", "2")},
    )
    identities = {f"interaction/{n}": identity(rate) for n, rate in ((1, 1e-4), (2, 5e-5))}
    found = compare(first, second, [second, first], identities.get)
    assert [str(change) for change in found.configuration] == ["interaction.schedule.learning_rate 1e-4 → 5e-5"]
    capture, interaction, evaluation = found.nodes
    assert (capture.is_same, capture.made_before, capture.made_after) == (True, "a", "a")
    assert (interaction.is_same, interaction.made_before, interaction.made_after) == (False, "a", "b")
    assert interaction.reasons == ("interaction.schedule.learning_rate 1e-4 → 5e-5", "another precompute")
    assert (evaluation.before, evaluation.after, evaluation.made_after) == (None, "e", None)
    (scores,) = found.scores
    assert (scores.overall, scores.by_task) == (0.25, {"count": 0.25, "sort": 0.0})


def identity(rate: float) -> dict[str, Any]:
    return {
        "stage": "interaction",
        "version": 1,
        "settings": {"schedule": {"learning_rate": rate}},
        "inputs": {"precompute": f"of {rate}", "student": "s"},
    }


def test_what_is_gone_has_no_reasons() -> None:
    first = record("a", 1e-4, 0.5, wanted={"interaction": "interaction/1", "capture": "capture/c"})
    second = record("b", 1e-4, 0.5, wanted={"interaction": "interaction/2"})
    second.scores = []
    found = compare(first, second, [], lambda _: None)
    assert [(node.key, node.reasons) for node in found.nodes] == [("interaction", ()), ("capture", ())]
    assert found.nodes[1].after is None
    assert [(row.after, row.overall, row.by_task) for row in found.scores] == [(None, None, {})]


@pytest.mark.parametrize("width", [80, 120])
def test_diff_shows_the_last_run_beside_the_one_before(run: Run, vlsi: Command, width: int) -> None:
    run(ALONE)
    run(ALONE, SLOWER)
    first, second = Session.open([]).history.records()
    code, text = vlsi("diff", "digits", width=width)
    assert code == 0
    flat = " ".join(text.split())
    assert f"before {first.id} digits tracking.enabled=false ~variants" in flat
    assert f"after {second.id} digits tracking.enabled=false ~variants {SLOWER}" in flat
    assert "interaction.schedule.learning_rate 0.002 → 5e-5" in flat
    assert f"interaction differs {first.id} → {second.id}" in flat
    assert f"capture same {first.id}" in flat
    assert "VLsI 65.0 65.0 +0.0" in flat
    assert max(map(len, text.splitlines()[2:])) <= width


def test_diff_is_for_programs_too(run: Run, ask_vlsi: Question) -> None:
    run(ALONE)
    run(ALONE, SLOWER)
    first, second = Session.open([]).history.records()
    code, found = ask_vlsi("diff", second.id, first.id)
    assert (code, found["before"], found["after"]) == (0, second.id, first.id)
    assert found["configuration"] == {"interaction.schedule.learning_rate": {"before": 5e-5, "after": 0.002}}
    stages = {stage["key"]: stage for stage in found["stages"]}
    assert (stages["capture"]["same"], stages["interaction"]["made_before"]) == (True, second.id)
    assert stages["interaction"]["reasons"] == ["interaction.schedule.learning_rate 5e-5 → 0.002"]
    assert stages["evaluation"]["reasons"] == ["another model"]
    assert found["scores"][-1]["difference"] == 0.0


def test_diff_does_without_artifacts(run: Run, ask_vlsi: Question) -> None:
    run(ALONE)
    run(ALONE, SLOWER)
    shutil.rmtree(Session.open([]).store.root / "interaction")
    code, found = ask_vlsi("diff", "digits")
    assert code == 0
    assert {stage["key"]: stage["reasons"] for stage in found["stages"]}["interaction"] == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere"], "there is no run 'nowhere'"),
        (["digits"], "has 1 runs, none is 1 before"),
        (["digits", "digits", "digits"], "name one run or two, not 3"),
    ],
)
def test_what_cannot_be_compared_is_refused(run: Run, vlsi: Command, names: list[str], message: str) -> None:
    run(ALONE)
    code, text = vlsi("diff", *names, width=300)
    assert (code, message in text) == (2, True)
