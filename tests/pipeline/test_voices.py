"""Voices: which model and which verbalizers a name stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.runner import Outcome
from pipeline.session import Session
from pipeline.voices import Voices
from stages.contract import Job
from stages.contract.files import STUDENT_VERBALIZERS_FILE, TEACHER_VERBALIZERS_FILE
from tests.pipeline.conftest import FakeExecutor

Run = Callable[..., Outcome]


@pytest.fixture
def trained(run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """An experiment whose stages left verbalizers."""
    plain = FakeExecutor._stage

    def stage(self: FakeExecutor, job: Job, work: Path) -> dict[str, Any]:
        for name in (TEACHER_VERBALIZERS_FILE, STUDENT_VERBALIZERS_FILE):
            if job.stage in ("verbalization", "interaction"):
                (work / name).write_bytes(b"weights")
        return plain(self, job, work)

    monkeypatch.setattr(FakeExecutor, "_stage", stage)
    run("~variants")
    return {key: Path(str(artifact.path)) for key, artifact in Session.open(["~variants"]).artifacts().items()}


def test_names_lead_to_models_and_their_verbalizers(trained: dict[str, Path], world: Path) -> None:
    voices = Voices(None, ["~variants"])
    prepared = world / "store" / "prepared" / "digits"
    teacher, backbone, vlsi = (voices.find(name) for name in ("teacher", "backbone", "vlsi"))
    assert (teacher.checkpoint.place, backbone.checkpoint.place) == (
        str(prepared / "teacher"),
        str(prepared / "backbone"),
    )
    assert vlsi.checkpoint.place == str(trained["reinforcement"])
    assert teacher.verbalizers == trained["verbalization"] / TEACHER_VERBALIZERS_FILE
    assert backbone.verbalizers == trained["verbalization"] / STUDENT_VERBALIZERS_FILE
    assert vlsi.verbalizers == trained["interaction"] / STUDENT_VERBALIZERS_FILE
    assert Voices("digits", []).find("vlsi") == vlsi
    other = voices.find(str(prepared / "teacher"))
    assert (other.verbalizers, other.through) == (None, "logit lens")
    assert teacher.checkpoint.loading.dtype == "float32"


def test_a_student_that_was_never_verbalized_speaks_through_the_lens(run: Run) -> None:
    run("~variants")
    assert Voices(None, ["~variants"]).find("vlsi").verbalizers is None
