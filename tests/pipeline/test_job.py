"""One stage from the chain or by hand: the same artifact, found by either."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Command, FakeExecutor

from pipeline.graph import Node
from pipeline.runner import Outcome
from pipeline.session import Session
from stages.contract import Job, open_artifact
from stages.contract.job import main
from stages.contract.place import Place

ALONE = "~variants"
SLOWER = "interaction.schedule.learning_rate=5e-5"

Run = Callable[..., Outcome]
ByHand = Callable[..., int]


@pytest.fixture
def by_hand(vlsi: Command, executor: FakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ByHand]:
    """`vlsi job interaction > job.json` and `python -m stages.interaction --job job.json`; how often the stage worked.

    The second command is what `ray job submit --` is given, word for word.
    """
    worked: list[Job] = []

    def work(job: Job, folder: Place) -> dict[str, Any]:
        worked.append(job)
        return executor._stage(job, folder)

    def by_hand(*overrides: str) -> int:
        worked.clear()
        code, text = vlsi("job", "interaction", ALONE, *overrides)
        file = tmp_path / "job.json"
        file.write_text(text)
        assert (code, main("interaction", ["--job", str(file)])) == (0, 0)
        return len(worked)

    monkeypatch.setitem(sys.modules, "stages.interaction", SimpleNamespace(run=work))
    before = signal.getsignal(signal.SIGTERM)
    yield by_hand
    signal.signal(signal.SIGTERM, before)


def node(*overrides: str) -> Node:
    (found,) = Session.open([ALONE, *overrides]).graph.named("interaction")
    return found


def test_the_chain_finds_what_was_made_by_hand(run: Run, by_hand: ByHand, executor: FakeExecutor) -> None:
    run(ALONE, until="precompute")
    assert by_hand() == 1
    artifact = open_artifact(node().output)
    assert artifact is not None
    assert artifact.manifest.fingerprint == node().fingerprint
    outcome = run(ALONE, only="interaction")
    assert executor.jobs == []
    assert outcome.artifacts["interaction"] == artifact


def test_a_stage_by_hand_finds_what_the_chain_made(run: Run, by_hand: ByHand) -> None:
    artifact = run(ALONE).artifacts["interaction"]
    assert by_hand() == 0
    assert open_artifact(node().output) == artifact


def test_both_make_the_same_artifact(run: Run, by_hand: ByHand) -> None:
    run(ALONE, until="precompute")
    by_hand(SLOWER)
    ours = open_artifact(node(SLOWER).output)
    theirs = run(ALONE, SLOWER, only="interaction", force="interaction").artifacts["interaction"]
    assert ours is not None
    assert ours.place == theirs.place
    assert ours.manifest.has_result_of(theirs.manifest)
    assert (ours.manifest.identity, ours.manifest.inputs) == (theirs.manifest.identity, theirs.manifest.inputs)
