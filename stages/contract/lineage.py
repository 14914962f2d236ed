"""Lineage: what an artifact was made from, told by the manifests of everything upstream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

from stages.contract.artifact import Artifact, open_artifact
from stages.contract.place import Place, place_of


class Made(Protocol):
    """What a job and a manifest both say."""

    @property
    def stage(self) -> str:
        """That makes it."""

    @property
    def fingerprint(self) -> str:
        """Of the artifact; empty for a job that was written by hand."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint was made of."""

    @property
    def inputs(self) -> dict[str, str]:
        """Places by input name."""


@dataclass(frozen=True)
class Step:
    """One artifact on the way.

    Attributes:
        stage: that made it.
        fingerprint: of the artifact.
        settings: of the stage, those that can change a result.
    """

    stage: str
    fingerprint: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A checkpoint or a data set that came from outside.

    Attributes:
        place: a folder, file or hub id.
        digest: of its contents, as the fingerprints have it; empty if it is not known.
    """

    place: str
    digest: str

    @property
    def name(self) -> str:
        """A hub id as it is; of what lies on a machine the last part, which says nothing of that machine."""
        is_local = self.place.startswith("/") or "://" in self.place
        return PurePosixPath(self.place).name if is_local else self.place


@dataclass
class Lineage:
    """Everything upstream of an artifact, and the artifact.

    Attributes:
        steps: artifacts, each once, inputs before what uses them.
        sources: by input name: `teacher`, `student` (the small backbone), `samples`.
    """

    steps: list[Step] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)


def trace(made: Made, store: Place) -> Lineage:
    """Follow inputs upstream.

    Args:
        made: a job or a manifest.
        store: the folder of all artifacts, where an input is looked for that its maker had elsewhere.

    Raises:
        ArtifactError: a manifest on the way cannot be read.
    """
    lineage = Lineage()
    _follow(made, store, lineage)
    return lineage


def _follow(made: Made, store: Place, lineage: Lineage) -> None:
    digests = made.identity.get("inputs", {})
    for name, where in made.inputs.items():
        if artifact := _find(where, store):
            _follow(artifact.manifest, store, lineage)
        else:
            lineage.sources.setdefault(name, Source(where, digests.get(name, "")))
    step = Step(made.stage, made.fingerprint, made.identity.get("settings", {}))
    if step not in lineage.steps:
        lineage.steps.append(step)


def _find(where: str, store: Place) -> Artifact | None:
    """The artifact at a place, or, if that was on another machine, what has its stage and fingerprint here."""
    own = PurePosixPath(where)
    return open_artifact(place_of(where)) or open_artifact(store / own.parent.name / own.name)
