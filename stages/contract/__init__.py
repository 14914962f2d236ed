"""What a stage is: the part of `stages` that the pipeline, a container and a person all see.

A stage is a program. It is given a `Job` (settings, input places, one output place), works in
`<output>.partial`, and leaves one artifact at `<output>`, committed whole with its `manifest.json`,
or nothing. It knows no other stage. Nothing in this package imports torch, transformers or Ray,
so that whoever only asks questions about stages gets answers at once.
"""

from stages.contract.artifact import Artifact, ArtifactError, Manifest, open_artifact
from stages.contract.job import STAGES, Job, Resources, Stage, StageError
from stages.contract.journal import Follower, Journal, read_journal

__all__ = [
    "STAGES",
    "Artifact",
    "ArtifactError",
    "Follower",
    "Job",
    "Journal",
    "Manifest",
    "Resources",
    "Stage",
    "StageError",
    "open_artifact",
    "read_journal",
]
