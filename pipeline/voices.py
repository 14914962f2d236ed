"""Voices: models whose layers can speak, by the names that people have for them."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.checkpoints import Checkpoint, checkpoint_named, checkpoint_of
from pipeline.config import load
from pipeline.experiment import MAIN
from pipeline.made import Made
from stages.contract import Artifact
from stages.contract.files import STUDENT_VERBALIZERS_FILE, TEACHER_VERBALIZERS_FILE
from stages.contract.place import Place

TEACHER, BACKBONE = "teacher", "backbone"
LENS = "logit lens"


@dataclass(frozen=True)
class Voice:
    """One model and what makes its layers speak.

    Attributes:
        name: as it was asked for.
        checkpoint: the model.
        verbalizers: their file; None for the logit lens.
    """

    name: str
    checkpoint: Checkpoint
    verbalizers: Place | None

    @property
    def through(self) -> str:
        """What its layers speak through."""
        return "verbalizers" if self.verbalizers else LENS


class Voices:
    """Finds models for `--model`; what an experiment or a run has made is looked up once, if it is needed."""

    def __init__(self, run: str | None, overrides: list[str]) -> None:
        """`run` as in `Made.find`."""
        self._run = run
        self._overrides = overrides
        self._made: Made | None = None

    def find(self, name: str) -> Voice:
        """`teacher`, `backbone`, `vlsi`, or else a checkpoint, which has no verbalizers.

        Raises:
            ConfigError: it is not there.
        """
        if name == TEACHER:
            capture, verbalization = self.made.need("capture"), self.made.need("verbalization")
            checkpoint = checkpoint_of(capture, capture.manifest.inputs[TEACHER])
            return Voice(name, checkpoint, verbalization.path / TEACHER_VERBALIZERS_FILE)
        if name == BACKBONE:
            verbalization = self.made.need("verbalization")
            checkpoint = checkpoint_of(verbalization, verbalization.manifest.inputs["student"])
            return Voice(name, checkpoint, verbalization.path / STUDENT_VERBALIZERS_FILE)
        if name == MAIN:
            student = self.made.need("reinforcement")
            return Voice(name, checkpoint_of(student, str(student.place)), self._student_verbalizers())
        return Voice(name, checkpoint_named(name, load(self._overrides).main), None)

    @property
    def made(self) -> Made:
        """What the experiment or the run has made."""
        if self._made is None:
            self._made = Made.find(self._run, self._overrides)
        return self._made

    def _student_verbalizers(self) -> Place | None:
        """As interaction left them, else as verbalization did."""
        for stage in ("interaction", "verbalization"):
            artifact = self.made.artifacts.get(stage)
            if artifact and _has(artifact, STUDENT_VERBALIZERS_FILE):
                return artifact.path / STUDENT_VERBALIZERS_FILE
        return None


def _has(artifact: Artifact, name: str) -> bool:
    return any(file.path == name for file in artifact.manifest.files)
