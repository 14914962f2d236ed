"""One experiment, typed: what `conf/` says once it is composed.

The stages' settings are the stages' own classes; nothing is declared twice. What is added here is
what the chain alone knows (models, data, variants, where to run) and which combinations of
settings contradict each other.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator, model_validator

from pipeline.execution import AnyExecution
from stages.contract.place import Remote, absolute, place_of
from stages.contract.settings import (
    CaptureSettings,
    EvaluationSettings,
    InteractionSettings,
    ModelLoading,
    PrecomputeSettings,
    PrepareSettings,
    Preprocessing,
    ReinforcementSettings,
    TargetLayers,
    VerbalizationSettings,
)
from stages.data.formats import Format
from stages.data.mixture import MIXTURE_SUFFIXES

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
MAIN = "vlsi"
"""Name of the experiment itself among the things that are evaluated."""
UNTRAINED = ("teacher", "backbone")
"""Names of what is evaluated as it is."""


def is_hub_id(text: str) -> bool:
    """Whether it is written as `owner/name`, and not as a path."""
    return _HUB_ID.fullmatch(text) is not None and not text.startswith(".")


def _on_this_machine(place: str) -> str:
    if isinstance(place_of(place), Remote):
        raise ValueError(f"{place} has to be a path that all workers can read; an object store holds artifacts only")
    return place


AnyPlace = Annotated[str, AfterValidator(absolute)]
"""A path, made absolute against the current directory (stages run elsewhere), or a URL of an object store."""
LocalPlace = Annotated[str, AfterValidator(_on_this_machine), AfterValidator(absolute)]
"""A path alone."""


class Section(BaseModel):
    """Base of the chain's own sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Model(Section):
    """A checkpoint and how it is read."""

    path: str
    """A folder, a hub id such as `Qwen/Qwen2-VL-2B-Instruct`, or the URL of a folder in an object store."""
    revision: str | None = None
    """Of a hub id: a branch, tag or commit; only a commit never changes under you."""
    loading: ModelLoading = ModelLoading()
    target_layers: TargetLayers

    @field_validator("path")
    @classmethod
    def _absolute_folder(cls, path: str) -> str:
        return path if is_hub_id(path) and not Path(path).exists() else absolute(path)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, here or in an object store, rather than on a hub."""
        return Path(self.path).is_absolute() or isinstance(place_of(self.path), Remote)

    @property
    def place(self) -> str:
        """What a stage is told to load: a folder, or a hub id with its revision after an `@`."""
        return f"{self.path}@{self.revision}" if self.revision and not self.is_folder else self.path


class Data(Section):
    """The samples and how they become tensors."""

    train: LocalPlace
    """JSON Lines, a JSON array, Parquet or a folder of it; or a `.yaml` file that mixes several."""
    test: LocalPlace
    format: Format = "auto"
    """What the records are, where looking at them is not enough; each source of a mixture states its own."""
    digest_pictures: bool = True
    """Whether pictures are read to see that the data is what it was; false spares that for millions of them."""
    preprocessing: Preprocessing = Preprocessing()

    def place(self, split: str) -> str:
        """What a stage is told to read, `train` or `test`: the path, with the format behind it if one is stated."""
        path: str = getattr(self, split)
        stated = self.format != "auto" and not path.endswith(MIXTURE_SUFFIXES)
        return f"{path}#{self.format}" if stated else path


class Tracking(Section):
    """MLflow; the server is named by MLFLOW_TRACKING_URI, else a database in the store is used."""

    enabled: bool = True
    experiment: str = "vlsi"
    """The MLflow experiment in which runs are compared."""


class Experiment(Section):
    """Everything `vlsi` knows about one experiment."""

    name: str
    seed: int = 0
    store: AnyPlace
    """Folder or URL of all artifacts."""
    prepared: AnyPlace
    """Artifact of `vlsi prepare`, where the experiment makes its own models and data."""
    teacher: Model
    student: Model
    data: Data
    prepare: PrepareSettings | None = None
    capture: CaptureSettings
    verbalization: VerbalizationSettings
    precompute: PrecomputeSettings | None
    interaction: InteractionSettings | None
    """None: reinforcement starts from the backbone, which is plain finetuning."""
    reinforcement: ReinforcementSettings
    evaluation: EvaluationSettings
    variants: dict[str, tuple[str, ...]] = {}
    """Trained and evaluated beside the experiment: name -> overrides relative to it."""
    executor: AnyExecution
    tracking: Tracking = Tracking()

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("use lower-case letters, digits, '.', '_' and '-'")
        return name

    @field_validator("variants")
    @classmethod
    def _variant_names(cls, variants: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name in variants:
            if name in (*UNTRAINED, MAIN) or not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} cannot name a variant; use lower-case letters, digits, '.', '_' and '-', "
                    f"and none of {', '.join((*UNTRAINED, MAIN))}"
                )
        return variants

    @model_validator(mode="after")
    def _prepared_on_this_machine(self) -> Experiment:
        if self.prepare is not None and isinstance(place_of(self.prepared), Remote):
            raise ValueError(
                f"prepared: {self.prepared} has to be a path that all workers can read, since it has samples in it; "
                "set prepared or VLSI_PREPARED to one"
            )
        return self

    @model_validator(mode="after")
    def _teacher_signal_exists(self) -> Experiment:
        if self.interaction is None or not self.interaction.losses.need_teacher:
            return self
        losses = self.interaction.losses
        wanted = f"interaction.losses.intermediate={losses.intermediate} with interaction.losses.last={losses.last}"
        if self.precompute is None:
            raise ValueError(f"precompute: null does not go with {wanted}, which compares with the teacher's cache")
        if self.precompute.layers == "last" and losses.intermediate in ("kl", "feature-l2"):
            raise ValueError(
                f"precompute.layers: 'last' caches no intermediate layer, but {wanted} compares with them; "
                "set precompute.layers=all or interaction.losses.intermediate=none"
            )
        if not self.precompute.codec.startswith("hidden") and losses.intermediate == "feature-l2":
            raise ValueError(
                f"precompute.codec: {self.precompute.codec!r} keeps no hidden state, but "
                "interaction.losses.intermediate=feature-l2 compares hidden states; set precompute.codec=hidden"
            )
        return self

    @model_validator(mode="after")
    def _quantized_weights_stay_fixed(self) -> Experiment:
        for stage in ("interaction", "reinforcement"):
            settings = getattr(self, stage)
            if settings is not None and settings.model.quantization and settings.lora is None:
                raise ValueError(
                    f"{stage}.lora: null trains all weights, but {stage}.model.quantization="
                    f"{settings.model.quantization} keeps them fixed; set {stage}.lora={{}} or quantization=null"
                )
        return self
