"""What each stage costs: its work over all samples, and the memory of one of its workers.

Everything is a pure function of a few numbers; a prediction that turns out wrong points at one term,
because every term has a name and stands for one thing in memory or for one kind of work.
"""

from __future__ import annotations

import math

from pipeline.planner import memory
from pipeline.planner.models import ModelSize
from pipeline.planner.work import Cost, Machine, Recipe, Work, Workload

ADAMW_MOVED = 7 * memory.FLOAT32
"""Bytes that one AdamW update of one parameter moves: reads the four, writes all but the gradient."""
CLIPPING_MOVED = 3 * memory.FLOAT32
"""Bytes that clipping moves of one parameter's gradient: read for the norm, read and written for the scaling."""


def capture(teacher: ModelSize, workload: Workload, recipe: Recipe, machine: Machine) -> Cost:
    """The teacher forward over the captured samples, no head."""
    batch = workload.some(recipe.micro_batch_samples)
    layers = recipe.teacher_targets + 1
    work = Work(half_flops=workload.forward_flops(teacher))
    return Cost(
        work,
        {
            "process": machine.process_bytes,
            "shard": memory.shard_memory(
                teacher, workload, recipe, workload.samples, workload.responses * layers * recipe.state_bytes
            ),
            **memory.teacher_memory(teacher, batch, recipe, machine),
        },
        teacher_flops=work.flops,
    )


def verbalization(teacher: ModelSize, student: ModelSize, workload: Workload, recipe: Recipe, machine: Machine) -> Cost:
    """Verb-FFNs of both models; the student forward, of the teacher its readout alone."""
    batch = workload.some(recipe.micro_batch_samples)
    sides = ((teacher, recipe.teacher_targets), (student, recipe.student_targets))
    trained = sum(model.verbalizer_parameters(targets) for model, targets in sides)
    of_teacher, of_student = (
        _verbalizer_training(model, targets, workload) + _frozen_head_work(model, targets, workload, recipe, machine)
        for model, targets in sides
    )
    forward = Work(half_flops=workload.forward_flops(student))
    work = forward + of_student + of_teacher + _updates(trained, workload, recipe)
    captured = workload.response_tokens * (recipe.teacher_targets + 1) * recipe.state_bytes
    return Cost(
        work,
        {
            "process": machine.process_bytes,
            "student": memory.frozen_bytes(student, student.parameters, recipe, machine),
            "teacher's readout": teacher.head_parameters * recipe.number_bytes,
            "trained": memory.ADAMW * trained,
            "16-bit copies of the trained": memory.autocast_copies(trained, recipe),
            "data": memory.loaded_memory(student, workload, recipe, captured),
            "remembered samples": memory.remembered_memory(student, workload, recipe),
            "pass": max(
                memory.forward_memory(student, batch, recipe, recipe.student_targets),
                max(memory.verbalized_memory(model, targets, batch, recipe, machine) for model, targets in sides),
            ),
        },
        teacher_flops=of_teacher.flops,
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
    rows = layers * batch.responses
    read, weighed = recipe.codec != "hidden", recipe.codec == "moment"
    product = 2 * layers * workload.responses * recipe.vocabulary
    passes = _passes(rows) * workload.samples / batch.samples if read else 0
    missing = workload.some(workload.samples * (1 - recipe.captured_share))
    of_teacher = Work(
        half_flops=missing.forward_flops(teacher),
        float_flops=2 * workload.responses * verbalizers + product * teacher.width * read,
    )
    of_student = Work(
        float_flops=product * student.width * weighed, copied_bytes=passes * _widening(heads, recipe, machine)
    )
    held = {
        "process": machine.process_bytes,
        "heads": heads * recipe.number_bytes,
        "verbalizers": verbalizers * memory.FLOAT32,
        "shard": memory.shard_memory(
            teacher, workload, recipe, missing.samples, workload.responses * layers * recipe.cached_bytes
        ),
        "states": rows * (recipe.state_bytes + widths * memory.FLOAT32),
        "pass": {
            "hidden": 0.0,
            "moment": memory.pass_memory(rows, max(teacher.width, student.width), recipe, machine),
            "sampled": memory.spreading_memory(rows, recipe),
        }[recipe.codec],
    }
    if missing.samples:
        held |= memory.teacher_memory(teacher, batch, recipe, machine)
    return Cost(of_teacher + of_student, held, teacher_flops=of_teacher.flops)


def interaction(teacher: ModelSize, student: ModelSize, workload: Workload, recipe: Recipe, machine: Machine) -> Cost:
    """The student's decoder against the cache; verb-FFNs are trained along, heads are frozen.

    Of the teacher there is what the cache keeps, and its head if that is hidden states.
    """
    batch = workload.some(recipe.micro_batch_samples)
    layers = recipe.student_targets + 1
    decoder = memory.trained_decoder(student, recipe)
    verbalizers = student.verbalizer_parameters(recipe.student_targets)
    work = decoder_training(student, workload, recipe) + _updates(decoder + verbalizers, workload, recipe)
    work += _verbalizer_training(student, recipe.student_targets, workload)
    work += _frozen_head_work(student, layers, workload, recipe, machine)
    cached_layers = recipe.teacher_targets + 1
    cached = workload.response_tokens * cached_layers * recipe.cached_bytes
    is_hidden = recipe.codec == "hidden"
    product = 2 * cached_layers * workload.responses * recipe.vocabulary * is_hidden
    of_teacher = Work(float_flops=product * teacher.width)
    work += of_teacher + Work(float_flops=product * student.width)
    targets = 2 * batch.responses * recipe.teacher_targets * student.width * memory.FLOAT32
    return Cost(
        work,
        {
            "process": machine.process_bytes,
            "frozen": memory.frozen_bytes(student, memory.frozen_parameters(student, recipe), recipe, machine),
            "trained": memory.ADAMW * (decoder + verbalizers),
            "16-bit copies of the trained": memory.autocast_copies(decoder + verbalizers, recipe),
            "teacher's head": teacher.head_parameters * recipe.number_bytes if is_hidden else 0,
            "data": memory.loaded_memory(student, workload, recipe, cached),
            "remembered samples": memory.remembered_memory(student, workload, recipe),
            "kept states": memory.kept_states(student, batch, recipe, recipe.number_bytes),
            "pass": max(
                memory.block_memory(student, batch, recipe),
                memory.verbalized_memory(student, layers, batch, recipe, machine) + targets,
            ),
        },
        teacher_flops=of_teacher.flops,
    )


def reinforcement(student: ModelSize, workload: Workload, recipe: Recipe, machine: Machine) -> Cost:
    """Decoder, embedding and head on the responses; embedding and head in full.

    Of the head there are, beside its float32 value, in the forward pass the gradient that is being added
    up, a 16-bit copy, and on a CPU that copy's float32 copy; in the backward pass that gradient and the
    embedding's.
    """
    batch = workload.some(recipe.micro_batch_samples)
    decoder, words = memory.trained_decoder(student, recipe), student.word_parameters
    row = memory.LIVE_IN_CROSS_ENTROPY * memory.FLOAT32 * recipe.vocabulary
    chunks = math.ceil(batch.responses / max(1, memory.LOGITS_CHUNK_BYTES // row))
    passes = chunks * workload.samples / batch.samples
    widened = memory.FLOAT32 if machine.is_cpu else 0
    head = Work(
        float_flops=6 * workload.responses * recipe.vocabulary * student.width,
        # The gradient is read and written once a chunk; two of the three products need the widened head.
        moved_bytes=passes * 2 * memory.FLOAT32 * student.head_parameters,
        copied_bytes=passes * 2 * _widening(student.head_parameters, recipe, machine),
    )
    return Cost(
        decoder_training(student, workload, recipe) + _updates(decoder + words, workload, recipe) + head,
        {
            "process": machine.process_bytes,
            "frozen": (memory.frozen_parameters(student, recipe) - words) * recipe.number_bytes,
            "file pages of the trained": words * recipe.number_bytes if machine.is_cpu else 0,
            "trained": memory.ADAMW * (decoder + words),
            "16-bit copies of the trained": memory.autocast_copies(decoder, recipe),
            "data": memory.loaded_memory(student, workload, recipe, 0),
            "remembered samples": memory.remembered_memory(student, workload, recipe),
            "kept states": memory.kept_states(student, batch, recipe, memory.FLOAT32),
            "gradients and copies of the head": student.head_parameters
            * max(memory.FLOAT32 + recipe.number_bytes + widened, 2 * memory.FLOAT32),
            "pass": max(
                memory.block_memory(student, batch, recipe), min(batch.responses * row, memory.LOGITS_CHUNK_BYTES)
            ),
        },
    )


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


def _updates(parameters: float, workload: Workload, recipe: Recipe) -> Work:
    """Clipping and AdamW, once for every batch."""
    steps = workload.samples / recipe.batch_samples
    return Work(moved_bytes=steps * parameters * (ADAMW_MOVED + CLIPPING_MOVED))


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
    row = memory.LIVE_IN_PASS * memory.FLOAT32 * memory.VOCABULARY_BLOCK
    return math.ceil(rows / (memory.LOGITS_CHUNK_BYTES // row))


def _widening(parameters: float, recipe: Recipe, machine: Machine) -> float:
    """Bytes moved to make a float32 copy of a matrix, where a product needs one."""
    is_needed = machine.is_cpu and recipe.number_bytes < memory.FLOAT32
    return parameters * (recipe.number_bytes + memory.FLOAT32) if is_needed else 0
