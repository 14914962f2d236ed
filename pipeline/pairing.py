"""Before anything is computed: do teacher and student see samples alike?

The processors alone are loaded, not the weights, and only if something has to run that compares the
two models. What was found alike is remembered in the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from pipeline.config import ConfigError
from pipeline.decisions import Decision
from pipeline.experiment import Experiment, Model
from pipeline.identity import Digests, fingerprint
from pipeline.store import Store
from stages.contract import StageError
from stages.contract.artifact import write_whole

_COMPARING = ("capture", "verbalization", "precompute", "interaction")
"""Stages whose work is lost if teacher and student see samples differently."""


def check_pairs(experiments: Iterable[Experiment], decisions: Sequence[Decision], store: Store) -> None:
    """Compare the processors of teacher and student of every experiment.

    Raises:
        ConfigError: they differ, with every difference; or one cannot be loaded.
    """
    if all(decision.reused or decision.node.stage not in _COMPARING for decision in decisions):
        return
    for experiment in experiments:
        if experiment.interaction is not None and experiment.interaction.losses.need_teacher:
            _check(experiment, store)


def _check(experiment: Experiment, store: Store) -> None:
    known = store.root / "pairs" / _identity(experiment, Digests(store.root))
    if known.exists():
        return
    found = _differences(experiment)
    if found:
        listed = "\n".join(f"  - {difference}" for difference in found)
        raise ConfigError(
            f"{experiment.teacher.place} and {experiment.student.place} do not see samples alike, so what one says "
            f"at a token means nothing to the other; take two models of one family:\n{listed}"
        )
    known.parent.mkdir(parents=True, exist_ok=True)
    write_whole(known, "alike\n")


def _identity(experiment: Experiment, digests: Digests) -> str:
    models = (experiment.teacher, experiment.student)
    limits = experiment.data.preprocessing
    return fingerprint(
        {
            "models": [digests.checkpoint(model.place) for model in models],
            "pixels": [limits.min_pixels, limits.max_pixels],
            "transformers": metadata.version("transformers"),
        }
    )


def _differences(experiment: Experiment) -> list[str]:
    from stages.data.pair import differences

    teacher, student = _processor("teacher", experiment.teacher), _processor("student", experiment.student)
    try:
        return differences(teacher, student, experiment.data.preprocessing)
    except StageError as error:
        raise ConfigError(f"data.{error}") from error


def _processor(role: str, model: Model) -> Any:
    from stages.models.backbone import load_processor

    try:
        return load_processor(model.place, model.loading)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{role}.path: the processor of {model.place} cannot be loaded: {reason}") from error
