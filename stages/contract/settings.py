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


class EveryNth(Settings):
    """Target layers with a fixed stride: blocks `offset`, `offset + stride`, … (0-based; METHOD §1)."""

    offset: int = Field(default=2, ge=0)
    stride: int = Field(default=4, ge=1)


TargetLayers = EveryNth | tuple[int, ...]
"""Which decoder blocks are verbalized: by offset and stride, or a list of block indices (0-based)."""


def resolve_target_layers(target_layers: TargetLayers, num_layers: int) -> tuple[int, ...]:
    """Block indices, strictly increasing, for a decoder of `num_layers` blocks.

    Raises:
        ValueError: nothing is selected, or a block does not exist or is out of order.
    """
    if isinstance(target_layers, EveryNth):
        blocks = tuple(range(target_layers.offset, num_layers, target_layers.stride))
    else:
        blocks = target_layers
    if not blocks or list(blocks) != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] >= num_layers:
        raise ValueError(
            f"target_layers: {target_layers!r} gives blocks {list(blocks)}; "
            f"at least one is needed, increasing strictly within 0..{num_layers - 1}"
        )
    return blocks


class BackbonePaths(Settings):
    """Where a model keeps its parts, as dotted module paths; None finds a part by structure."""

    layers: str | None = None
    """The list of decoder blocks, for example `model.language_model.layers`."""
    norm: str | None = None
    """The norm between the last block and the head."""
    head: str | None = None
    """The linear map to the vocabulary."""


class ModelLoading(Settings):
    """How a checkpoint is loaded: passed through to `from_pretrained`."""

    dtype: Dtype = "bfloat16"
    """What the model computes in. Parameters that are trained are kept in float32, and a bfloat16 model
    is then trained under autocast."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None
    quantization: Literal["int8", "int4"] | None = None
    """bitsandbytes quantization of the weights; needs an NVIDIA GPU."""
    device_map: Annotated[str | None, Incidental()] = None
    """`auto` spreads one model over the GPUs of an actor; None puts it on the worker's own device."""
    trust_remote_code: bool = False
    """Runs Python code that comes with the checkpoint. Leave it off unless you have read that code."""
    backbone: BackbonePaths = BackbonePaths()
    """By hand, for a model whose parts are not found by structure."""


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
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Padded tokens of one forward pass of one worker: its samples times the longest of them. A step's
    samples are grouped by length; the matching draws once for each forward pass."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """At most so many samples in one forward pass."""
    learning_rate: float = Field(default=1e-4, gt=0)
    final_learning_rate: float = Field(default=1e-6, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float | None = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False
    """Keeps one state a block and computes the rest again in the backward pass."""
    seed: int = 0
    """Order of the samples, initialisation and every random draw of the stage."""
    checkpoint_every_steps: Annotated[int, Incidental()] = Field(default=500, ge=1)
    loader_threads: Annotated[int, Incidental()] = Field(default=1, ge=1)
    """Threads that read, decode and encode the coming steps' samples while a step runs."""
    logits_chunk_mb: Annotated[int, Incidental()] = Field(default=128, ge=1)
    """Memory for the logits that exist at one time and for what is made of them, MiB."""

    @property
    def logits_chunk_bytes(self) -> int:
        """The same in bytes."""
        return self.logits_chunk_mb * 2**20


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
    "joint",
    "viterbi",
]
_DRAWN = ("adaptive", "multinomial", "multinomial+range", "multinomial+range+order", "joint")
_WHOLE_PATHS = ("joint", "viterbi")


class Annealing(Settings):
    """How sharp the draws are over a training: explore first, commit later."""

    first: float = Field(default=0.1, gt=0)
    """What divides the temperature in the first step."""
    last: float = Field(default=10.0, gt=0)
    """What divides it in the last step."""

    def sharpness(self, progress: float) -> float:
        """From `first` to `last` in equal ratios; `progress` is the share of the steps that are done."""
        return self.first ** (1 - progress) * self.last**progress


class Matching(Settings):
    """Which teacher layer each student layer learns from (METHOD §3)."""

    strategy: Strategy = "adaptive"
    scale: float = Field(default=2.0, gt=0)
    """Adaptive temperature = scale / (max - min + eps): of a student layer's candidates, or with `joint` of all."""
    eps: float = Field(default=1e-6, gt=0)
    reduction: Literal["mean", "sum"] = "mean"
    """[D] Over response tokens, for the draw only; with `sum` the draw is the argmin from the first step on."""
    per_sample: bool = False
    """[D] One draw for each sample instead of one for each micro-batch."""
    sync: bool = False
    """[D] With several workers: one draw for all, from the KL over all their tokens, instead of one for each."""
    stride_prior: float = Field(default=0.0, ge=0)
    """For `joint` and `viterbi`: how much cheaper a path is that skips as many teacher layers between its matches
    as it can than one that skips none, in units of max - min; layers between count in proportion."""
    annealing: Annealing | None = None
    """None draws alike from the first step to the last."""

    def sharpness(self, progress: float) -> float:
        """What divides the temperature of a draw when `progress`, a share of the steps, is done."""
        return self.annealing.sharpness(progress) if self.annealing else 1.0

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Matching:
        if self.annealing and self.strategy not in _DRAWN:
            raise ValueError(
                f"matching.annealing sharpens draws and `{self.strategy}` has none to sharpen; "
                f"set it to null or matching.strategy to one of {', '.join(_DRAWN)}"
            )
        if self.stride_prior and self.strategy not in _WHOLE_PATHS:
            raise ValueError(
                f"matching.stride_prior weighs whole paths and `{self.strategy}` chooses layer by layer; "
                f"set it to 0 or matching.strategy to one of {', '.join(_WHOLE_PATHS)}"
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_group(self) -> Matching:
        if self.sync and self.per_sample:
            raise ValueError("matching.sync makes one draw for all workers, matching.per_sample one for each sample")
        return self


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
    target_layers: TargetLayers = EveryNth()
    preprocessing: Preprocessing = Preprocessing()
    fraction: float = Field(default=0.03, gt=0, le=1)
    """Share of the training samples whose raw hidden states are kept (the verbalizers' training set)."""
    dtype: Dtype = "bfloat16"
    """Of the stored states."""
    seed: int = 0
    shard_samples: int = Field(default=256, ge=1)
    """Samples in one Parquet file."""
    micro_batch_tokens: Annotated[int, Incidental()] = Field(default=8192, ge=1)
    """Padded tokens of one forward pass; samples of similar length share one."""


class VerbalizationSettings(Settings):
    """Step 1: train a verbalizer on every target layer of both models."""

    model: ModelLoading = ModelLoading()
    target_layers: TargetLayers = EveryNth()
    """Of the student; the teacher's are the captured ones."""
    preprocessing: Preprocessing = Preprocessing()
    verbalizer: Verbalizer = Verbalizer()
    schedule: Schedule = Schedule()
    sayings: Annotated[int, Incidental()] = Field(default=4, ge=0)
    """Samples of which it is kept what every layer says, before interaction and after it."""


class PrecomputeSettings(Settings):
    """Cache what every teacher layer says about every response token."""

    model: ModelLoading = ModelLoading()
    """Of the teacher; it is loaded only for samples that were not captured."""
    preprocessing: Preprocessing = Preprocessing()
    codec: Literal["moment", "moment-int8", "hidden", "hidden-int8", "sampled"] = "moment"
    dtype: Dtype = "bfloat16"
    """Of the vectors that `moment` and `hidden` store; entropies are always float32."""
    samples: int = Field(default=32, ge=1)
    """Token ids that `sampled` stores of every token and layer."""
    seed: int = 0
    """Of the random numbers of `sampled`."""
    layers: Literal["all", "last"] = "all"
    """`last` caches the ordinary final output alone and needs no verbalizer."""
    shard_samples: int = Field(default=256, ge=1)
    micro_batch_tokens: Annotated[int, Incidental()] = Field(default=8192, ge=1)
    """Padded tokens of one forward pass; samples of similar length share one."""

    @property
    def layout_codec(self) -> str:
        """The codec's name in the cache, with the number of samples where it has one."""
        return f"{self.codec}-{self.samples}" if self.codec == "sampled" else self.codec


class InteractionSettings(Settings):
    """Step 2: train the student's decoder against the teacher's verbalized layers.

    The target layers are those that verbalization trained verbalizers for.
    """

    model: ModelLoading = ModelLoading()
    preprocessing: Preprocessing = Preprocessing()
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


class Judge(Settings):
    """A model that scores free answers, behind an endpoint that speaks OpenAI's chat completions."""

    url: Annotated[str, Incidental()] = Field(default="https://api.openai.com/v1", pattern=r"^https?://")
    """What stands before `/chat/completions`, such as `http://localhost:8000/v1`."""
    model: str = "gpt-4-0613"
    """As the endpoint calls it; the default is what MM-Vet's authors ask."""
    key_variable: Annotated[str, Incidental()] = "OPENAI_API_KEY"
    """The environment variable that holds the key; where it is not set none is sent."""


class EvaluationSettings(Settings):
    """Answer held-out questions and score the answers."""

    model: ModelLoading = ModelLoading()
    preprocessing: Preprocessing = Preprocessing()
    benchmark: str | None = None
    """Whose questions they are, such as `mmbench`; None: those of a data set in our own formats, answered exactly."""
    judge: Judge | None = None
    """Scores what no rule can (MM-Vet); None keeps the answers of such a benchmark and leaves out its score."""
    max_new_tokens: int = Field(default=64, ge=1)
    num_beams: int = Field(default=1, ge=1)
    """1 decodes greedily, more by beam search."""
    shard_samples: Annotated[int, Incidental()] = Field(default=64, ge=1)
    micro_batch_tokens: Annotated[int, Incidental()] = Field(default=8192, ge=1)
    """Padded tokens of one forward pass; samples of similar length share one."""

    @property
    def decoding(self) -> str:
        """How answers are found, for people."""
        return "greedy" if self.num_beams == 1 else f"beam search, {self.num_beams} beams"


class ScratchModel(Settings):
    """The size of a Qwen2-VL model made from nothing."""

    layers: int = Field(ge=1)
    """Decoder blocks."""
    width: int = Field(ge=16)
    """Of the decoder's hidden states; a multiple of `heads`."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of the decoder; width / heads is even and at least 6."""
    key_value_heads: int = Field(default=4, ge=1)
    """Divides `heads`."""
    mlp_width: int = Field(ge=1)
    """Of the hidden layer of the decoder's MLPs."""
    tied: bool = False
    """Whether the head shares the embedding's weights."""
    extra_vocab_rows: int = Field(default=0, ge=0)
    """Rows of embedding and head beyond the tokens' next multiple of 64, as large models of a family have."""
    rope_theta: float = Field(default=10_000.0, gt=1)
    """Base of the rotary frequencies."""
    vision_layers: int = Field(default=2, ge=1)
    """Blocks of the vision tower."""
    vision_width: int = Field(default=64, ge=16)
    """Of the vision tower's hidden states."""
    vision_heads: int = Field(default=4, ge=1)
    """Attention heads of the vision tower; vision_width / vision_heads is a multiple of 4."""
    vision_mlp_ratio: int = Field(default=2, ge=1)
    """MLP width of the vision tower / vision_width."""

    @model_validator(mode="after")
    def _heads_fit(self) -> ScratchModel:
        head_width = self.width // self.heads
        if self.width % self.heads or head_width % 2 or head_width < 6 or self.heads % self.key_value_heads:
            raise ValueError(
                f"width {self.width}, heads {self.heads}, key_value_heads {self.key_value_heads}: width / heads has "
                "to be even and at least 6, and key_value_heads has to divide heads"
            )
        if self.vision_width % (4 * self.vision_heads):
            raise ValueError(
                f"vision_width {self.vision_width} has to be a multiple of 4 x vision_heads = {4 * self.vision_heads}"
            )
        return self


class Pretraining(Settings):
    """How a model made from nothing learns to see, then to read, then to answer every kind of question."""

    vision_steps: int = Field(ge=1)
    """Optimizer steps of the vision tower alone; it is frozen afterwards."""
    reading_steps: int = Field(ge=1)
    """Optimizer steps of everything else on the two kinds of question that only read."""
    answering_steps: int = Field(default=0, ge=0)
    """Further steps on all kinds; 0 leaves a model that only reads."""
    vision_pictures_per_step: int = Field(default=16, ge=1)
    """Pictures of one step of the vision tower."""
    pictures_per_step: int = Field(default=8, ge=1)
    """Pictures of one later step; each is asked four questions to read, or one of every kind."""
    vision_learning_rate: float = Field(default=3e-3, gt=0)
    """AdamW's, of the vision tower, at its peak after the warm-up; a cosine leads it to zero."""
    matrix_learning_rate: float = Field(default=5e-3, gt=0)
    """Muon's, of the matrices of the decoder blocks; one cosine for reading and answering together."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """AdamW's, of everything else that learns in those steps."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps in which a learning rate rises linearly."""
    weight_decay: float = Field(default=0.01, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the three lessons."""
        return self.vision_steps + self.reading_steps + self.answering_steps


class PrepareSettings(Settings):
    """Make a task and two models for it: a teacher that knows it all and a backbone that only reads."""

    task: Literal["digits", "easy-vqa"] = "digits"
    """`digits` composes pictures of real handwritten digits; `easy-vqa` needs the package of that name."""
    teacher: ScratchModel = ScratchModel(layers=10, width=96, mlp_width=256, extra_vocab_rows=64)
    teacher_training: Pretraining = Pretraining(vision_steps=600, reading_steps=250, answering_steps=300)
    """On all kinds of question."""
    backbone: ScratchModel = ScratchModel(layers=6, width=64, mlp_width=176, tied=True)
    backbone_training: Pretraining = Pretraining(vision_steps=600, reading_steps=450)
    """On the kinds that only read."""
    train_digits: int = Field(default=1400, ge=1, lt=1797)
    """`digits` alone: images that training pictures are composed of; test pictures have the rest of the 1,797."""
    train_samples: int = Field(default=1500, ge=1)
    """`digits` alone: samples for distillation, over all kinds."""
    test_samples: int = Field(default=490, ge=1)
    """`digits` alone: samples for evaluation, over all kinds."""
    seed: int = Field(default=0, ge=0)
    """Of samples, initial weights and the order of training; the split by digit image is always the same."""
