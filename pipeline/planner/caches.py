"""The caches of an experiment: what captured states take on disk, and the cache in every codec."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from pipeline.experiment import Experiment
from pipeline.planner.facts import Facts
from pipeline.planner.models import ModelSize
from pipeline.planner.shards import STATES, Contents, cache_bytes, codec_arrays
from stages.contract.settings import CaptureSettings, PrecomputeSettings, resolve_target_layers


@dataclass(frozen=True)
class Disk:
    """What a stage writes for the next ones.

    Attributes:
        bytes: of all shards.
        files: how many shards.
        response_tokens: in them.
    """

    bytes: float
    files: int
    response_tokens: float


@dataclass(frozen=True)
class CodecPlan:
    """What the whole training set takes in one codec.

    Attributes:
        codec: its name, or `STATES`.
        token_bytes: of a token and layer, before compression.
        disk: of all shards.
        layers: cached of each token.
        chosen: whether the experiment uses it.
    """

    codec: str
    token_bytes: int
    disk: Disk
    layers: int
    chosen: bool

    @property
    def stored_bytes(self) -> float:
        """Of a token and layer, on disk."""
        return self.disk.bytes / (self.disk.response_tokens * self.layers)


class Caches:
    """Sizes of one experiment's caches; those that were rehearsed set the scale.

    Attributes:
        vocabulary: real token ids of both models.
        target_layers: of the teacher, how many.
    """

    def __init__(self, experiment: Experiment, facts: Facts, teacher: ModelSize, student: ModelSize) -> None:
        """Nothing is written before a size is asked for."""
        self._experiment = experiment
        self._facts = facts
        self._widths = (teacher.width, student.width)
        self.vocabulary = facts.vocabulary or min(teacher.tokens, student.tokens)
        self.target_layers = len(resolve_target_layers(experiment.teacher.target_layers, teacher.layers))

    def codec(self, settings: PrecomputeSettings, codec: str) -> CodecPlan:
        """The cache of the whole training set."""
        contents = self.contents(settings, codec)
        disk = self.disk(settings, codec, self._facts.samples)
        return CodecPlan(codec, contents.token_bytes, disk, contents.layers, codec == settings.codec)

    def contents(self, settings: CaptureSettings | PrecomputeSettings, codec: str) -> Contents:
        """What a cache holds; captured states are head inputs of the teacher, unpacked."""
        if isinstance(settings, CaptureSettings):
            arrays = codec_arrays("hidden", *self._widths, settings.dtype, self.vocabulary, 0)
            return Contents(1 + self.target_layers, arrays, self._facts.keys)
        arrays = codec_arrays(codec, *self._widths, settings.dtype, self.vocabulary, settings.samples)
        return Contents(1 + self.target_layers * (settings.layers == "all"), arrays, self._facts.keys)

    def disk(self, settings: CaptureSettings | PrecomputeSettings, codec: str, samples: float) -> Disk:
        """Made-up shards, as the samples' real lengths and the rehearsed shards differ from them."""
        made_up = cache_bytes(self.contents(settings, codec), samples, settings.shard_samples)
        tokens = samples * self._facts.workload.response_tokens
        size = made_up * self._facts.longer_than_keys * self._rehearsed_over_made_up(codec)
        return Disk(size, ceil(samples / settings.shard_samples), tokens)

    def _rehearsed_over_made_up(self, codec: str) -> float:
        """What real states took over what made-up ones of the same samples take; 1 without a rehearsal."""
        settings = self._experiment.capture if codec == STATES else self._experiment.precompute
        if settings is None or codec not in self._facts.rehearsed:
            return 1.0
        made_up = cache_bytes(self.contents(settings, codec), len(self._facts.keys), settings.shard_samples)
        return self._facts.rehearsed[codec] / made_up
