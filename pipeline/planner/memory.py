"""What lies in a worker's memory at the worst moment: every term stands for one thing, in bytes."""

from __future__ import annotations

from pipeline.planner.models import ModelSize
from pipeline.planner.work import Machine, Recipe, Workload

FLOAT32 = 4
"""Bytes of a number."""
ADAMW = 4 * FLOAT32
"""Bytes of a trained parameter: its float32 value, its gradient and two moments."""
LOGITS_CHUNK_BYTES = 128 * 2**20
"""Logits that exist at one time, with what is made of them (`schedule.logits_chunk_mb`)."""
LIVE_IN_PASS = 3
"""Tensors of a chunk's size in a pass over a frozen head: logits, weights and one between."""
LIVE_IN_CROSS_ENTROPY = 2
"""The same with a head that is trained: logits and one between."""
VOCABULARY_BLOCK = 4096
"""Rows of a frozen head that are multiplied at a time."""
SPREADING_TENSORS = 7
"""Chunks of float32 logits' size that the spreading of ids holds; float64 counts twice."""
SHARDS_OF_PIXELS = 3
"""Of one file's samples: as the reader packed them, unpacked, and those of the next file."""
STEPS_IN_MEMORY = 2
"""Steps whose samples a worker holds with one loader thread: the one that runs and the next."""
REMEMBERED_BYTES = 2**30
"""Encoded samples that a training worker keeps for the next epoch."""
LORA_LAYERS = 7
"""Linear layers of a decoder block; all of them are adapted."""


def teacher_memory(teacher: ModelSize, batch: Workload, recipe: Recipe, machine: Machine) -> dict[str, float]:
    """Of a teacher at work; its first pass also makes its own logits, at every position, to check its structure."""
    return {
        "teacher": frozen_bytes(teacher, teacher.parameters, recipe, machine),
        "logits of the check": batch.samples * batch.tokens * teacher.rows * recipe.number_bytes,
        "teacher's pass": forward_memory(teacher, batch, recipe, recipe.teacher_targets + 1),
    }


def frozen_bytes(model: ModelSize, parameters: int, recipe: Recipe, machine: Machine) -> float:
    """Of frozen weights. An embedding that is not the head as well is looked up in a few rows, not read as a whole."""
    unread = model.head_parameters if machine.is_cpu and not model.tied else 0
    return (parameters - unread) * recipe.number_bytes


def trained_decoder(model: ModelSize, recipe: Recipe) -> int:
    """Trained parameters of the decoder blocks."""
    if recipe.lora_rank:
        return model.lora_parameters(recipe.lora_rank)
    return model.layers * model.block_parameters


def frozen_parameters(model: ModelSize, recipe: Recipe) -> int:
    """Of a student whose decoder is trained: all but the decoder; with adapters, all."""
    return model.parameters - (0 if recipe.lora_rank else model.layers * model.block_parameters)


def autocast_copies(parameters: float, recipe: Recipe) -> float:
    """Autocast's 16-bit copies of trained matrices live from their first use to the backward pass."""
    return parameters * recipe.number_bytes if recipe.number_bytes < FLOAT32 else 0


def shard_memory(model: ModelSize, workload: Workload, recipe: Recipe, seen: float, rows: float) -> float:
    """What a worker gathers for one file: its samples' pixels; their rows, and an Arrow copy of those.

    Args:
        model: that sees the samples.
        workload: of all files.
        recipe: with the samples of a file.
        seen: samples of the workload whose pixels are needed.
        rows: bytes of all of the workload's.
    """
    share = min(1, recipe.shard_samples / workload.samples)
    return share * (SHARDS_OF_PIXELS * seen * _pixels(model, workload) + 2 * rows)


def loaded_memory(model: ModelSize, workload: Workload, recipe: Recipe, cached: float) -> float:
    """Samples of the steps that a training worker holds; `cached` is what one sample has in the cache."""
    return STEPS_IN_MEMORY * recipe.batch_samples * (_pixels(model, workload) + cached)


def remembered_memory(model: ModelSize, workload: Workload, recipe: Recipe) -> float:
    """Encoded samples that are kept for the next epoch."""
    return min(REMEMBERED_BYTES, min(workload.samples, recipe.distinct_samples) * _pixels(model, workload))


def _pixels(model: ModelSize, workload: Workload) -> float:
    return workload.patches * model.vision.patch_numbers * FLOAT32


def forward_memory(model: ModelSize, batch: Workload, recipe: Recipe, targets: int) -> float:
    """A forward pass that keeps nothing but its target layers' states: those, and the widest moment of a block.

    That is in the MLP: gate, its activation, up, and their product, beside the residual stream and its norm.
    """
    tokens = batch.samples * batch.tokens
    states = targets * tokens * model.width
    block = tokens * (3 * model.mlp_width + 3 * model.width)
    return recipe.number_bytes * (states + block)


def verbalized_memory(model: ModelSize, layers: int, batch: Workload, recipe: Recipe, machine: Machine) -> float:
    """Of some layers' responses: inputs of the head, mean rows and slopes in float32; verb-FFNs' activations."""
    rows = layers * batch.responses
    activations = rows * model.width * (5 * recipe.number_bytes + 3 * FLOAT32)
    return rows * model.width * 3 * FLOAT32 + activations + pass_memory(rows, model.width, recipe, machine)


def pass_memory(rows: float, width: float, recipe: Recipe, machine: Machine) -> float:
    """Of a pass over the vocabulary: logits and what is made of them, and a block of the head in float32."""
    block = min(VOCABULARY_BLOCK, recipe.vocabulary)
    share = block / VOCABULARY_BLOCK  # A chunk has as many rows as fit with a whole block.
    chunk = min(LIVE_IN_PASS * FLOAT32 * rows * block, LOGITS_CHUNK_BYTES * share)
    widened = machine.is_cpu and recipe.number_bytes < FLOAT32
    return chunk + (block * width * FLOAT32 if widened else 0)


def spreading_memory(rows: float, recipe: Recipe) -> float:
    """Of the spreading of ids over whole distributions: logits, their softmax and its logarithm, sums in float64."""
    return SPREADING_TENSORS * min(FLOAT32 * rows * recipe.vocabulary, LOGITS_CHUNK_BYTES)


def kept_states(model: ModelSize, batch: Workload, recipe: Recipe, residual_bytes: int) -> float:
    """What a forward pass keeps for the backward pass: each block's input, or all that its blocks computed."""
    tokens = batch.samples * batch.tokens
    if recipe.checkpointing:
        return tokens * model.layers * model.width * residual_bytes
    return model.layers * block_memory(model, batch, recipe)


def block_memory(model: ModelSize, batch: Workload, recipe: Recipe) -> float:
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
