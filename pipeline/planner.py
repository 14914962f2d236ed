"""Planner: what a stage costs before it runs, from model configurations alone.

Parameters, floating-point operations, memory of one worker at its peak, and time on a machine whose
sustained throughput is stated. Everything is a pure function of a few numbers; a prediction that turns
out wrong points at one term, because every term has a name and stands for one thing in memory or for
one kind of work.

Sizes are in bytes, tokens of a sample include those of its pictures. A product of matrices [n, k] and
[k, m] counts as 2 n k m operations; whatever else a model computes is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

FLOAT32 = 4
"""Bytes of a number."""
ADAMW = 4 * FLOAT32
"""Bytes of a trained parameter: its float32 value, its gradient and two moments."""
ADAMW_MOVED = 7 * FLOAT32
"""Bytes that one AdamW update of one parameter moves: reads the four, writes all but the gradient."""
CLIPPING_MOVED = 3 * FLOAT32
"""Bytes that clipping moves of one parameter's gradient: read for the norm, read and written for the scaling."""
LOGITS_CHUNK_BYTES = 128 * 2**20
"""Logits that exist at one time, with what is made of them (`schedule.logits_chunk_mb`)."""
LIVE_IN_PASS = 3
"""Tensors of a chunk's size in a pass over a frozen head: logits, weights and one between."""
LIVE_IN_CROSS_ENTROPY = 2
"""The same with a head that is trained: logits and one between."""
CACHED = 2
"""Bytes of a cached number: captured states and moments are bfloat16."""
VOCABULARY_BLOCK = 4096
"""Rows of a frozen head that are multiplied at a time."""
STEPS_IN_MEMORY = 2
"""Steps whose samples a worker holds with one loader thread: the one that runs and the next."""
LORA_LAYERS = 7
"""Linear layers of a decoder block; all of them are adapted."""


@dataclass(frozen=True)
class VisionSize:
    """A vision tower with what leads from it to the decoder.

    Attributes:
        layers, width, mlp_width: of its blocks.
        parameters: all of them, the connector's included.
        patch_numbers: pixels that make up one patch, over channels and frames.
        connector_products: weights that an image token is multiplied with on its way to the decoder.
    """

    layers: int
    width: int
    mlp_width: int
    parameters: int
    patch_numbers: int
    connector_products: int

    def forward_flops(self, patches: float, patches_per_picture: float, image_tokens: float) -> float:
        """Embedding, blocks and connector; a patch attends to those of its own picture."""
        block = 4 * self.width**2 + 2 * self.width * self.mlp_width
        weights = patches * (self.patch_numbers * self.width + self.layers * block)
        attention = 2 * self.layers * patches * patches_per_picture * self.width
        return 2 * (weights + attention + image_tokens * self.connector_products)


@dataclass(frozen=True)
class ModelSize:
    """A vision language model: a decoder of the Qwen2 kind behind a vision tower.

    Attributes:
        layers, width, mlp_width, heads, key_value_heads: of the decoder.
        rows: of embedding and head, padding included.
        tied: whether the head is the embedding.
        vision: its vision tower.
    """

    layers: int
    width: int
    mlp_width: int
    heads: int
    key_value_heads: int
    rows: int
    tied: bool
    vision: VisionSize

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelSize:
        """Read a checkpoint's `config.json`; the decoder's settings stand in `text_config` or at the top.

        Raises:
            ValueError: the architecture is not known.
        """
        readers = {"qwen2_vl": _qwen2_vl_tower, "llava_onevision": _siglip_tower}
        kind = config.get("model_type")
        if kind not in readers:
            raise ValueError(f"model_type {kind!r} cannot be planned; known: {', '.join(readers)}")
        text = config.get("text_config") or config
        return cls(
            layers=text["num_hidden_layers"],
            width=text["hidden_size"],
            mlp_width=text["intermediate_size"],
            heads=text["num_attention_heads"],
            key_value_heads=text["num_key_value_heads"],
            rows=text["vocab_size"],
            tied=config.get("tie_word_embeddings") or text.get("tie_word_embeddings") or False,
            vision=readers[kind](config["vision_config"], text["hidden_size"]),
        )

    @property
    def key_value_width(self) -> int:
        """Of one token's keys, and of its values."""
        return self.width // self.heads * self.key_value_heads

    @property
    def block_products(self) -> int:
        """Weights of a decoder block that a token is multiplied with."""
        attention = 2 * self.width**2 + 2 * self.width * self.key_value_width
        return attention + 3 * self.width * self.mlp_width

    @property
    def block_parameters(self) -> int:
        """Of one decoder block: the products, biases of query, key and value, two norms."""
        return self.block_products + self.width + 2 * self.key_value_width + 2 * self.width

    @property
    def head_parameters(self) -> int:
        """Of the head, which may be the embedding."""
        return self.rows * self.width

    @property
    def word_parameters(self) -> int:
        """Of embedding and head together."""
        return self.head_parameters * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.layers * self.block_parameters + self.width + self.word_parameters + self.vision.parameters

    def lora_parameters(self, rank: int) -> int:
        """Of adapters on all linear layers of all decoder blocks."""
        ends = 9 * self.width + 2 * self.key_value_width + 3 * self.mlp_width
        return self.layers * rank * ends

    def verbalizer_parameters(self, targets: int) -> int:
        """Of one verb-FFN for each target layer: three square matrices and a norm."""
        return targets * (3 * self.width**2 + self.width)

    def decoder_flops(self, tokens: float, tokens_per_sample: float) -> float:
        """All blocks, forward. A token attends to all of its sample: the mask that cuts off half saves nothing."""
        return 2 * self.layers * tokens * (self.block_products + 2 * tokens_per_sample * self.width)


def _qwen2_vl_tower(config: Mapping[str, Any], width: int) -> VisionSize:
    """Blocks with fused query-key-value; four neighbouring patches become one token in the merger."""
    layers, own = config.get("depth", 32), config.get("embed_dim", 1280)
    mlp = own * config.get("mlp_ratio", 4)
    channels = config.get("in_channels", config.get("in_chans", 3))
    patch = config.get("patch_size", 14) ** 2 * config.get("temporal_patch_size", 2) * channels
    merged = own * config.get("spatial_merge_size", 2) ** 2
    block = 4 * own**2 + 4 * own + 2 * own * mlp + mlp + own + 4 * own
    merger = merged**2 + merged * width
    return VisionSize(
        layers=layers,
        width=own,
        mlp_width=mlp,
        parameters=patch * own + layers * block + merger + merged + width + 2 * own,
        patch_numbers=patch,
        connector_products=merger,
    )


def _siglip_tower(config: Mapping[str, Any], width: int) -> VisionSize:
    """SigLIP without its pooling head, two linear layers to the decoder, one vector that ends a row of patches."""
    layers, own, mlp = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    patch = config["patch_size"] ** 2 * config.get("num_channels", 3)
    positions = (config["image_size"] // config["patch_size"]) ** 2
    block = 4 * own**2 + 4 * own + 2 * own * mlp + mlp + own + 4 * own
    projector = own * width + width**2
    return VisionSize(
        layers=layers,
        width=own,
        mlp_width=mlp,
        parameters=patch * own + own + positions * own + layers * block + 2 * own + projector + 2 * width + width,
        patch_numbers=patch,
        connector_products=projector,
    )


@dataclass(frozen=True)
class Workload:
    """What is processed: samples that are all alike.

    Attributes:
        samples: how many.
        text_tokens, image_tokens, response_tokens: of one sample; responses are not part of the text.
        patches: positions of the vision tower, of one sample.
        patches_per_picture: that attend to each other.
    """

    samples: float
    text_tokens: float
    image_tokens: float
    response_tokens: float
    patches: float
    patches_per_picture: float

    @property
    def tokens(self) -> float:
        """Of one sample."""
        return self.text_tokens + self.image_tokens + self.response_tokens

    @property
    def responses(self) -> float:
        """Response tokens of all samples."""
        return self.samples * self.response_tokens

    def some(self, samples: float) -> Workload:
        """As many of the same samples."""
        return replace(self, samples=samples)

    def forward_flops(self, model: ModelSize) -> float:
        """Of all samples through vision tower and decoder; no head."""
        vision = model.vision.forward_flops(self.patches, self.patches_per_picture, self.image_tokens)
        return self.samples * (vision + model.decoder_flops(self.tokens, self.tokens))


@dataclass(frozen=True)
class Recipe:
    """The settings that decide what a stage costs.

    Attributes:
        teacher_targets, student_targets: how many target layers.
        vocabulary: real token ids; padding rows of a head are never multiplied.
        micro_batch_samples: of one forward pass.
        batch_samples: of one optimizer step of one worker.
        shard_samples: of one file of a cache.
        captured_share: of the samples, whose teacher states precompute finds.
        lora_rank: None trains the decoder in full.
        checkpointing: whether blocks are computed again in the backward pass.
        number_bytes: of a number that the model is loaded and computes in: 2, or 4 for float32.
    """

    teacher_targets: int
    student_targets: int
    vocabulary: int
    micro_batch_samples: float = 8
    batch_samples: float = 512
    shard_samples: float = 256
    captured_share: float = 1.0
    lora_rank: int | None = None
    checkpointing: bool = True
    number_bytes: int = 2


@dataclass(frozen=True)
class Machine:
    """What one worker computes on.

    Attributes:
        half_flops_per_second: sustained, products of 16-bit numbers.
        float_flops_per_second: sustained, products in float32. On a GPU a head's float32 product is two
            of 16-bit numbers: half the rate of those.
        moved_bytes_per_second: sustained, of memory that an optimizer reads and writes in place.
        copied_bytes_per_second: sustained, of memory that is read and written to a new place.
        process_bytes: of the interpreter with its libraries, before any model.
        is_cpu: frozen weights are then pages of the checkpoint's mapped files, of which only those are in memory
            that were read, and a float32 product with a 16-bit matrix needs a float32 copy of it.
    """

    half_flops_per_second: float
    float_flops_per_second: float
    moved_bytes_per_second: float
    copied_bytes_per_second: float
    process_bytes: float = 0.0
    is_cpu: bool = False


@dataclass(frozen=True)
class Work:
    """What a stage computes, over all its samples.

    Attributes:
        half_flops: in the model's dtype.
        float_flops: in float32: heads, and verb-FFNs outside training.
        moved_bytes: by the optimizer and the adding up of gradients.
        copied_bytes: by the widening of heads.
    """

    half_flops: float = 0.0
    float_flops: float = 0.0
    moved_bytes: float = 0.0
    copied_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.half_flops + other.half_flops,
            self.float_flops + other.float_flops,
            self.moved_bytes + other.moved_bytes,
            self.copied_bytes + other.copied_bytes,
        )

    @property
    def flops(self) -> float:
        """All operations."""
        return self.half_flops + self.float_flops

    def seconds(self, machine: Machine) -> float:
        """On one worker that does one after the other."""
        return (
            self.half_flops / machine.half_flops_per_second
            + self.float_flops / machine.float_flops_per_second
            + self.moved_bytes / machine.moved_bytes_per_second
            + self.copied_bytes / machine.copied_bytes_per_second
        )


@dataclass(frozen=True)
class Cost:
    """A stage's work, and the memory of one of its workers at the worst moment, by what lies in it."""

    work: Work
    memory: Mapping[str, float]

    @property
    def peak_bytes(self) -> float:
        """Of one worker."""
        return sum(self.memory.values())


def capture(teacher: ModelSize, workload: Workload, recipe: Recipe, machine: Machine) -> Cost:
    """The teacher forward over the captured samples, no head."""
    batch = workload.some(recipe.micro_batch_samples)
    layers = recipe.teacher_targets + 1
    return Cost(
        Work(half_flops=workload.forward_flops(teacher)),
        {
            "process": machine.process_bytes,
            "shard": _shard_memory(teacher, workload, recipe, captured_bytes(teacher, workload, layers)),
            **_teacher_memory(teacher, batch, recipe, machine),
        },
    )


def verbalization(teacher: ModelSize, student: ModelSize, workload: Workload, recipe: Recipe, machine: Machine) -> Cost:
    """Verb-FFNs of both models; the student forward, of the teacher its readout alone."""
    batch = workload.some(recipe.micro_batch_samples)
    sides = ((teacher, recipe.teacher_targets), (student, recipe.student_targets))
    trained = sum(model.verbalizer_parameters(targets) for model, targets in sides)
    work = Work(half_flops=workload.forward_flops(student)) + _updates(trained, workload, recipe)
    for model, targets in sides:
        work += _verbalizer_training(model, targets, workload)
        work += _frozen_head_work(model, targets, workload, recipe, machine)
    cached = captured_bytes(teacher, workload.some(1), recipe.teacher_targets + 1)
    return Cost(
        work,
        {
            "process": machine.process_bytes,
            "student": _frozen_bytes(student, student.parameters, recipe, machine),
            "teacher's readout": teacher.head_parameters * recipe.number_bytes,
            "trained": ADAMW * trained,
            "16-bit copies of the trained": _autocast_copies(trained, recipe),
            "data": _loaded_memory(student, workload, recipe, cached),
            "pass": max(
                _forward_memory(student, batch, recipe, recipe.student_targets),
                max(_verbalized_memory(model, targets, batch, recipe, machine) for model, targets in sides),
            ),
        },
    )


def precompute(teacher: ModelSize, student: ModelSize, workload: Workload, recipe: Recipe, machine: Machine) -> Cost:
    """What every teacher layer says, through the teacher's head and the student's.

    The teacher is in memory, and its head a second time, only if some samples were not captured.
    """
    batch = workload.some(recipe.micro_batch_samples)
    layers = recipe.teacher_targets + 1
    verbalizers = teacher.verbalizer_parameters(recipe.teacher_targets)
    widths = teacher.width + student.width
    heads = teacher.head_parameters + student.head_parameters
    passes = _passes(layers * batch.responses) * workload.samples / batch.samples
    heads_work = Work(
        float_flops=2 * workload.responses * (layers * recipe.vocabulary * widths + verbalizers),
        copied_bytes=passes * _widening(heads, recipe, machine),
    )
    missing = workload.some(workload.samples * (1 - recipe.captured_share))
    states = captured_bytes(teacher, batch, layers) + layers * batch.responses * widths * FLOAT32
    memory = {
        "process": machine.process_bytes,
        "heads": heads * recipe.number_bytes,
        "verbalizers": verbalizers * FLOAT32,
        "shard": _shard_memory(student, workload, recipe, moment_bytes(student, workload, layers)),
        "states": states,
        "pass": _pass_memory(layers * batch.responses, max(teacher.width, student.width), machine),
    }
    if missing.samples:
        memory |= _teacher_memory(teacher, batch, recipe, machine)
    return Cost(heads_work + Work(half_flops=missing.forward_flops(teacher)), memory)


def interaction(teacher: ModelSize, student: ModelSize, workload: Workload, recipe: Recipe, machine: Machine) -> Cost:
    """The student's decoder against the cache; verb-FFNs are trained along, heads are frozen."""
    del teacher  # It is in the cache alone.
    batch = workload.some(recipe.micro_batch_samples)
    layers = recipe.student_targets + 1
    decoder = _trained_decoder(student, recipe)
    verbalizers = student.verbalizer_parameters(recipe.student_targets)
    work = decoder_training(student, workload, recipe) + _updates(decoder + verbalizers, workload, recipe)
    work += _verbalizer_training(student, recipe.student_targets, workload)
    work += _frozen_head_work(student, layers, workload, recipe, machine)
    cached = moment_bytes(student, workload.some(1), recipe.teacher_targets + 1)
    targets = 2 * batch.responses * recipe.teacher_targets * student.width * FLOAT32
    return Cost(
        work,
        {
            "process": machine.process_bytes,
            "frozen": _frozen_bytes(student, _frozen_parameters(student, recipe), recipe, machine),
            "trained": ADAMW * (decoder + verbalizers),
            "16-bit copies of the trained": _autocast_copies(decoder + verbalizers, recipe),
            "data": _loaded_memory(student, workload, recipe, cached),
            "kept states": _kept_states(student, batch, recipe, recipe.number_bytes),
            "pass": max(
                _block_memory(student, batch, recipe),
                _verbalized_memory(student, layers, batch, recipe, machine) + targets,
            ),
        },
    )


def reinforcement(student: ModelSize, workload: Workload, recipe: Recipe, machine: Machine) -> Cost:
    """Decoder, embedding and head on the responses; embedding and head in full.

    Of the head there are, beside its float32 value, in the forward pass the gradient that is being added
    up, a 16-bit copy, and on a CPU that copy's float32 copy; in the backward pass that gradient and the
    embedding's.
    """
    batch = workload.some(recipe.micro_batch_samples)
    decoder, words = _trained_decoder(student, recipe), student.word_parameters
    row = LIVE_IN_CROSS_ENTROPY * FLOAT32 * recipe.vocabulary
    chunks = math.ceil(batch.responses / max(1, LOGITS_CHUNK_BYTES // row))
    passes = chunks * workload.samples / batch.samples
    widened = FLOAT32 if machine.is_cpu else 0
    head = Work(
        float_flops=6 * workload.responses * recipe.vocabulary * student.width,
        # The gradient is read and written once a chunk; two of the three products need the widened head.
        moved_bytes=passes * 2 * FLOAT32 * student.head_parameters,
        copied_bytes=passes * 2 * _widening(student.head_parameters, recipe, machine),
    )
    return Cost(
        decoder_training(student, workload, recipe) + _updates(decoder + words, workload, recipe) + head,
        {
            "process": machine.process_bytes,
            "frozen": (_frozen_parameters(student, recipe) - words) * recipe.number_bytes,
            "file pages of the trained": words * recipe.number_bytes if machine.is_cpu else 0,
            "trained": ADAMW * (decoder + words),
            "16-bit copies of the trained": _autocast_copies(decoder, recipe),
            "data": _loaded_memory(student, workload, recipe, 0),
            "kept states": _kept_states(student, batch, recipe, FLOAT32),
            "gradients and copies of the head": student.head_parameters
            * max(FLOAT32 + recipe.number_bytes + widened, 2 * FLOAT32),
            "pass": max(_block_memory(student, batch, recipe), min(batch.responses * row, LOGITS_CHUNK_BYTES)),
        },
    )


def captured_bytes(teacher: ModelSize, workload: Workload, layers: int) -> float:
    """Of the raw states of some layers, the head's input among them."""
    return workload.responses * layers * teacher.width * CACHED


def moment_bytes(student: ModelSize, workload: Workload, layers: int) -> float:
    """Of the cache in the `moment` codec: a vector of the student's width and an entropy."""
    return workload.responses * layers * (student.width * CACHED + FLOAT32)


def _updates(parameters: float, workload: Workload, recipe: Recipe) -> Work:
    """Clipping and AdamW, once for every batch."""
    steps = workload.samples / recipe.batch_samples
    return Work(moved_bytes=steps * parameters * (ADAMW_MOVED + CLIPPING_MOVED))


def decoder_training(model: ModelSize, workload: Workload, recipe: Recipe) -> Work:
    """Vision tower forward; decoder forward, perhaps again, and backward.

    Backward through frozen weights is one product for the forward's one, through trained weights two;
    through attention it is five for two. Computing a block again stops short of its last product.
    """
    tokens = workload.samples * workload.tokens
    attention = 4 * model.layers * tokens * workload.tokens * model.width
    products = 2 * model.layers * tokens * model.block_products
    adapters = 2 * tokens * (model.lora_parameters(recipe.lora_rank) if recipe.lora_rank else 0)
    forward = products + attention + adapters
    backward = products * (1 if recipe.lora_rank else 2) + 2.5 * attention + 2 * adapters
    vision = model.vision.forward_flops(workload.patches, workload.patches_per_picture, workload.image_tokens)
    last = 2 * model.layers * tokens * model.width * (recipe.lora_rank or model.mlp_width)
    again = forward - last if recipe.checkpointing else 0
    return Work(half_flops=workload.samples * vision + forward + again + backward)


def _verbalizer_training(model: ModelSize, targets: int, workload: Workload) -> Work:
    """Three square products forward, two for each of them backward."""
    return Work(half_flops=2 * 9 * targets * workload.responses * model.width**2)


def _frozen_head_work(model: ModelSize, layers: int, workload: Workload, recipe: Recipe, machine: Machine) -> Work:
    """Logits and mean rows of some layers' responses: two products, whatever is compared with them."""
    rows = layers * workload.response_tokens * recipe.micro_batch_samples
    passes = _passes(rows) * workload.samples / recipe.micro_batch_samples
    return Work(
        float_flops=4 * layers * workload.responses * recipe.vocabulary * model.width,
        copied_bytes=passes * 2 * _widening(model.head_parameters, recipe, machine),
    )


def _passes(rows: float) -> int:
    """Over the vocabulary, for so many inputs of a head."""
    return math.ceil(rows / (LOGITS_CHUNK_BYTES // (LIVE_IN_PASS * FLOAT32 * VOCABULARY_BLOCK)))


def _widening(parameters: float, recipe: Recipe, machine: Machine) -> float:
    """Bytes moved to make a float32 copy of a matrix, where a product needs one."""
    return parameters * (recipe.number_bytes + FLOAT32) if machine.is_cpu and recipe.number_bytes < FLOAT32 else 0


def _trained_decoder(model: ModelSize, recipe: Recipe) -> int:
    if recipe.lora_rank:
        return model.lora_parameters(recipe.lora_rank)
    return model.layers * model.block_parameters


def _frozen_parameters(model: ModelSize, recipe: Recipe) -> int:
    """Of a student whose decoder is trained: all but the decoder; with adapters, all."""
    return model.parameters - (0 if recipe.lora_rank else model.layers * model.block_parameters)


def _teacher_memory(teacher: ModelSize, batch: Workload, recipe: Recipe, machine: Machine) -> dict[str, float]:
    """Of a teacher at work; its first pass also makes its own logits, at every position, to check its structure."""
    return {
        "teacher": _frozen_bytes(teacher, teacher.parameters, recipe, machine),
        "logits of the check": batch.samples * batch.tokens * teacher.rows * recipe.number_bytes,
        "teacher's pass": _forward_memory(teacher, batch, recipe, recipe.teacher_targets + 1),
    }


def _frozen_bytes(model: ModelSize, parameters: int, recipe: Recipe, machine: Machine) -> float:
    """Of frozen weights. An embedding that is not the head as well is looked up in a few rows, not read as a whole."""
    unread = model.head_parameters if machine.is_cpu and not model.tied else 0
    return (parameters - unread) * recipe.number_bytes


def _autocast_copies(parameters: float, recipe: Recipe) -> float:
    """Autocast's 16-bit copies of trained matrices live from their first use to the backward pass."""
    return parameters * recipe.number_bytes if recipe.number_bytes < FLOAT32 else 0


def _shard_memory(model: ModelSize, workload: Workload, recipe: Recipe, rows: float) -> float:
    """What a worker gathers before it writes a file: its samples' pixels; their rows, and an Arrow copy of those.

    `rows` are the bytes of all of the workload's.
    """
    share = min(1, recipe.shard_samples / workload.samples)
    return share * (workload.samples * _pixels(model, workload) + 2 * rows)


def _loaded_memory(model: ModelSize, workload: Workload, recipe: Recipe, cached: float) -> float:
    """Samples of the steps that a training worker holds; `cached` is what one sample has in the cache."""
    return STEPS_IN_MEMORY * recipe.batch_samples * (_pixels(model, workload) + cached)


def _pixels(model: ModelSize, workload: Workload) -> float:
    return workload.patches * model.vision.patch_numbers * FLOAT32


def _forward_memory(model: ModelSize, batch: Workload, recipe: Recipe, targets: int) -> float:
    """A forward pass that keeps nothing but its target layers' states: those, and the widest moment of a block.

    That is in the MLP: gate, its activation, up, and their product, beside the residual stream and its norm.
    """
    tokens = batch.samples * batch.tokens
    states = targets * tokens * model.width
    block = tokens * (3 * model.mlp_width + 3 * model.width)
    return recipe.number_bytes * (states + block)


def _verbalized_memory(model: ModelSize, layers: int, batch: Workload, recipe: Recipe, machine: Machine) -> float:
    """Of some layers' responses: inputs of the head, mean rows and slopes in float32; verb-FFNs' activations."""
    rows = layers * batch.responses
    activations = rows * model.width * (5 * recipe.number_bytes + 3 * FLOAT32)
    return rows * model.width * 3 * FLOAT32 + activations + _pass_memory(rows, model.width, machine)


def _pass_memory(rows: float, width: float, machine: Machine) -> float:
    """Of a pass over the vocabulary: logits and what is made of them, and a block of the head in float32."""
    chunk = min(LIVE_IN_PASS * FLOAT32 * rows * VOCABULARY_BLOCK, LOGITS_CHUNK_BYTES)
    return chunk + (VOCABULARY_BLOCK * width * FLOAT32 if machine.is_cpu else 0)


def _kept_states(model: ModelSize, batch: Workload, recipe: Recipe, residual_bytes: int) -> float:
    """What a forward pass keeps for the backward pass: each block's input, or all that its blocks computed."""
    tokens = batch.samples * batch.tokens
    if recipe.checkpointing:
        return tokens * model.layers * model.width * residual_bytes
    return model.layers * _block_memory(model, batch, recipe)


def _block_memory(model: ModelSize, batch: Workload, recipe: Recipe) -> float:
    """What one block keeps for its backward pass, of each token.

    Norms keep their input in float32, trained ones their output too. Attention keeps query, key, value
    and result; the MLP gate, its activation, up and their product. Linear layers keep their input: under
    autocast a 16-bit copy each, else they share it. Adapters keep what lies between their two matrices.
    """
    width, number = model.width, recipe.number_bytes
    in_half = number < FLOAT32
    norms = 2 * width * (FLOAT32 + (0 if recipe.lora_rank else number))
    attention = 2 * width + 2 * model.key_value_width
    copies = 5 + bool(recipe.lora_rank) if in_half else 2
    adapters = LORA_LAYERS * (recipe.lora_rank or 0)
    numbers = attention + copies * width + 4 * model.mlp_width + adapters
    return batch.samples * batch.tokens * (norms + numbers * number)
