"""The settings of every stage: plain values, validated before anything starts.

Each field that METHOD calls a decision of this project says so in its description. A field marked
`Incidental` says where or how fast something runs and cannot change a result; every other field is
part of the fingerprint of the stages that read it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Incidental(NamedTuple):
    """Marks a field that changes no result and so belongs to no fingerprint."""


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def identity(self) -> dict[str, Any]:
        """The fields that can change a result, as plain JSON values."""
        return {
            name: _identity_of(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if not any(isinstance(mark, Incidental) for mark in field.metadata)
        }


def _identity_of(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.identity()
    if isinstance(value, dict):
        return {str(key): _identity_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_identity_of(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a setting of type {type(value).__name__} has no identity; use plain values")


Dtype = Literal["float32", "bfloat16", "float16"]


class TargetLayers(Settings):
    """Which decoder blocks are verbalized: `offset, offset + stride, …` or an explicit list (0-based)."""

    offset: Annotated[int, Field(ge=0)] = 2
    stride: Annotated[int, Field(ge=1)] = 4
    blocks: tuple[int, ...] | None = None
    """An explicit list of block indices; offset and stride are then ignored."""

    def resolve(self, num_layers: int) -> tuple[int, ...]:
        """Block indices, strictly increasing, for a decoder of `num_layers` blocks (METHOD §1).

        Raises:
            ValueError: nothing is selected, or a block does not exist or is out of order.
        """
        chosen = self.blocks or tuple(range(self.offset, num_layers, self.stride))
        if not chosen:
            raise ValueError(
                f"target_layers: offset {self.offset} selects no block of a decoder with {num_layers}; "
                f"offset has to be below {num_layers}"
            )
        if list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= num_layers:
            raise ValueError(
                f"target_layers.blocks: {list(chosen)} has to increase strictly within 0..{num_layers - 1}"
            )
        return chosen


class ModelLoading(Settings):
    """How a checkpoint is loaded: passed through to `from_pretrained`."""

    dtype: Dtype = "bfloat16"
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None
    quantization: Literal["int8", "int4"] | None = None
    """bitsandbytes quantization of the weights; needs an NVIDIA GPU."""
    device_map: Annotated[str | None, Incidental()] = None
    """`auto` spreads one model over the GPUs of an actor; None puts it on the worker's own device."""
    trust_remote_code: bool = False
    """Runs Python code that comes with the checkpoint. Leave it off unless you have read that code."""


class Preprocessing(Settings):
    """How samples become tensors; teacher and student share it."""

    max_pixels: int | None = Field(default=None, ge=1)
    """Image resize limit given to the processor; None keeps the checkpoint's own."""
    min_pixels: int | None = Field(default=None, ge=1)
    max_image_pixels: int = Field(default=100_000_000, ge=1)
    """An image with more pixels than this is refused before it is decoded."""
    max_tokens: int = Field(default=4096, ge=8)
    """A longer sample (prompt, image tokens and responses) is quarantined."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """A stage stops when more than this share of its samples cannot be used."""


class Schedule(Settings):
    """Optimizer and duration of a training stage (METHOD §5)."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; None means `epochs`."""
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=512, ge=1)
    """Samples of one optimizer step over all workers."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Samples of one forward pass of one worker; the matching draws once for each."""
    learning_rate: float = Field(default=1e-4, gt=0)
    final_learning_rate: float = Field(default=1e-6, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float | None = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False
    autocast: Literal["none", "bfloat16"] = "none"
    seed: int = 0
    """Order of the samples, initialisation and every random draw of the stage."""
    checkpoint_every_steps: Annotated[int, Incidental()] = Field(default=500, ge=1)


class Verbalizer(Settings):
    """The verb-FFN (METHOD §1)."""

    variant: Literal["stable", "literal"] = "stable"
    """[D] `stable`: pre-RMSNorm, residual, zero output, final norm (untrained = logit lens); `literal`: bare."""


class Lora(Settings):
    """Low-rank adaptation of the decoder's linear layers; merged when the student is saved."""

    rank: int = Field(default=64, ge=1)
    alpha: int = Field(default=64, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


Strategy = Literal[
    "adaptive",
    "multinomial",
    "multinomial+range",
    "multinomial+range+order",
    "bottom-1",
    "bottom-3",
    "uniform",
    "random",
]


class Matching(Settings):
    """Which teacher layer each student layer learns from (METHOD §3)."""

    strategy: Strategy = "adaptive"
    scale: float = Field(default=2.0, gt=0)
    """Adaptive temperature = scale / (max - min + eps)."""
    eps: float = Field(default=1e-6, gt=0)
    reduction: Literal["mean", "sum"] = "mean"
    """[D] Over response tokens, for the draw only; with `sum` the draw is the argmin from the first step on."""
    per_sample: bool = False
    """[D] One draw for each sample instead of one for each micro-batch."""


class Losses(Settings):
    """What interaction minimises (METHOD §3; the paper's Table 4d)."""

    intermediate: Literal["kl", "ce", "feature-l2", "none"] = "kl"
    last: Literal["kl", "ce", "none"] = "kl"
    last_weight: float = Field(default=1.0, gt=0)
    """[D] Weight of the last layer's loss."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Losses:
        if self.intermediate == "none" and self.last == "none":
            raise ValueError("losses.intermediate and losses.last are both `none`: nothing would be trained")
        return self

    @property
    def need_teacher(self) -> bool:
        """Whether any loss compares with the teacher."""
        return self.intermediate in ("kl", "feature-l2") or self.last == "kl"


class CaptureSettings(Settings):
    """Run the teacher over some samples and keep its hidden states at response tokens."""

    model: ModelLoading = ModelLoading()
    target_layers: TargetLayers = TargetLayers()
    preprocessing: Preprocessing = Preprocessing()
    fraction: float = Field(default=0.03, gt=0, le=1)
    """Share of the training samples whose raw hidden states are kept (the verbalizers' training set)."""
    dtype: Dtype = "bfloat16"
    """Of the stored states."""
    seed: int = 0
    shard_samples: int = Field(default=256, ge=1)
    """Samples in one Parquet file."""
    micro_batch_size: Annotated[int, Incidental()] = Field(default=8, ge=1)


class VerbalizationSettings(Settings):
    """Step 1: train a verbalizer on every target layer of both models."""

    model: ModelLoading = ModelLoading()
    target_layers: TargetLayers = TargetLayers()
    """Of the student; the teacher's are the captured ones."""
    preprocessing: Preprocessing = Preprocessing()
    verbalizer: Verbalizer = Verbalizer()
    schedule: Schedule = Schedule()


class PrecomputeSettings(Settings):
    """Cache what every teacher layer says about every response token."""

    model: ModelLoading = ModelLoading()
    """Of the teacher; used only for samples that were not captured."""
    preprocessing: Preprocessing = Preprocessing()
    codec: Literal["moment", "hidden"] = "moment"
    dtype: Dtype = "bfloat16"
    """Of the stored vectors; entropies are always float32."""
    layers: Literal["all", "last"] = "all"
    """`last` caches the ordinary final output alone and needs no verbalizer."""
    shard_samples: int = Field(default=256, ge=1)
    micro_batch_size: Annotated[int, Incidental()] = Field(default=8, ge=1)


class InteractionSettings(Settings):
    """Step 2: train the student's decoder against the teacher's verbalized layers."""

    model: ModelLoading = ModelLoading()
    target_layers: TargetLayers = TargetLayers()
    preprocessing: Preprocessing = Preprocessing()
    verbalizer: Verbalizer = Verbalizer()
    losses: Losses = Losses()
    matching: Matching = Matching()
    lora: Lora | None = None
    """None trains the decoder layers in full."""
    schedule: Schedule = Schedule()


class ReinforcementSettings(Settings):
    """Step 3: plain supervised finetuning of the whole distilled student."""

    model: ModelLoading = ModelLoading()
    preprocessing: Preprocessing = Preprocessing()
    lora: Lora | None = None
    """None trains everything but the vision part; with LoRA embeddings and head are trained in full."""
    schedule: Schedule = Schedule()


class EvaluationSettings(Settings):
    """Answer held-out questions and score the answers."""

    model: ModelLoading = ModelLoading()
    preprocessing: Preprocessing = Preprocessing()
    max_new_tokens: int = Field(default=64, ge=1)
    num_beams: int = Field(default=1, ge=1)
    shard_samples: Annotated[int, Incidental()] = Field(default=64, ge=1)
    micro_batch_size: Annotated[int, Incidental()] = Field(default=8, ge=1)
