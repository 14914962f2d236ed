"""Whole optimizer steps: interaction from the cache, with the teacher in memory, and plain finetuning.

Student and teacher are genuine Qwen2-VL models with random weights and 151,936 rows in the head. In
shape they are Qwen2-VL-2B and 72B made smaller: half the blocks (14 and 40), a target layer at every
second one (7 and 20), the student's head tied, the teacher's not. A batch has one picture, a question
and an answer of 64 tokens in each of four samples.

An interaction step is taken in pieces so that each can be timed: the graph is cut behind the
decoder blocks and behind the verbalizers, and the gradients are handed over. Reading the cache is
inside the step; the training loop reads ahead in a thread instead.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from stages.cache.codecs import make_codec
from stages.cache.shard import Layout
from stages.contract.files import LAST_LAYER, TARGETS_FOLDER, block_column
from stages.contract.settings import Matching, Schedule
from stages.contract.settings import Verbalizer as VerbalizerSettings
from stages.data.encoding import Batch, Encoded, collate
from stages.data.sample import Sample
from stages.interaction import TeacherTargets
from stages.losses.divergence import Target, divergence, moment_target, partition, trained_cross_entropy
from stages.losses.layerwise import KLCosts, match_and_learn
from stages.models.backbone import Backbone
from stages.models.student import prepare_for_training, train_decoder, train_language_model
from stages.models.verbalizer import Verbalizers
from stages.training.optimizer import make_optimizer
from tests.bench.caches import save_cache
from tests.bench.measure import Built, Side, alternate, apart
from tests.bench.results import Check, Result, relative_differences

REPEATS = 3
SPEEDUP_AT_LEAST = 5
PATCH_NUMBERS = 3 * 2 * 14 * 14
"""Numbers of one patch of a picture: colours, frames, height, width."""


class ModelSizes(NamedTuple):
    """Of a Qwen2-VL language model; the vision tower is the same for all."""

    width: int
    layers: int
    mlp_width: int
    heads: int
    key_value_heads: int
    tied: bool
    stride: int = 2

    @property
    def target_layers(self) -> list[int]:
        """Every `stride`-th block, from the first."""
        return list(range(0, self.layers, self.stride))


class Sizes(NamedTuple):
    """Of the models and of a batch."""

    student: ModelSizes = ModelSizes(384, 14, 2_048, 6, 2, tied=True)
    teacher: ModelSizes = ModelSizes(960, 40, 3_456, 15, 3, tied=False)
    vocabulary: int = 151_936
    samples: int = 4
    picture_side: int = 8
    question_tokens: int = 128
    response_tokens: int = 64
    vision_width: int = 192
    vision_layers: int = 4


QUICK = Sizes(
    student=ModelSizes(32, 4, 64, 2, 1, tied=True),
    teacher=ModelSizes(64, 6, 128, 2, 1, tied=False),
    vocabulary=1_000,
    samples=2,
    picture_side=2,
    question_tokens=8,
    response_tokens=4,
    vision_width=32,
    vision_layers=1,
)


def compare(quick: bool) -> Iterator[Result]:
    """The interaction step from the cache against the same with the teacher in memory, and against finetuning."""
    sizes = QUICK if quick else Sizes()
    with TemporaryDirectory() as folder:
        apart(write_cache, sizes=sizes, folder=folder)
        sides = {
            "cache": Side(build_from_cache, {"sizes": sizes, "folder": folder}),
            "teacher": Side(build_with_teacher, {"sizes": sizes}),
            "sft": Side(build_sft, {"sizes": sizes}),
        }
        measured = alternate(sides, repeats=REPEATS, warmups=1)
    ours, teacher = measured["cache"], measured["teacher"]
    result = Result(
        "interaction-cache",
        "interaction step from the cache against the same step with the teacher in memory",
        ours,
        teacher,
        details=relative_differences(ours, teacher) | _size_ratios(teacher.notes),
    )
    result.checks = [Check("speedup", result.ratio, SPEEDUP_AT_LEAST)]
    yield result
    what = "interaction step from the cache against a reinforcement (plain finetuning) step of the same student"
    yield Result("interaction-sft", what, ours, measured["sft"], slowdown=True)


def _size_ratios(notes: dict[str, Any]) -> dict[str, float]:
    student, teacher = notes["student_parameters"], notes["teacher_parameters"]
    return {f"teacher / student, {part} parameters": teacher[part] / student[part] for part in student}


class Clock:
    """Seconds of each part of each step."""

    def __init__(self) -> None:
        self._steps: list[dict[str, float]] = []

    def start(self) -> None:
        """At the beginning of a step."""
        self._steps.append(defaultdict(float))
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What was done since the last call is `part`."""
        now = time.perf_counter()
        self._steps[-1][part] += now - self._last
        self._last = now

    def notes(self) -> dict[str, Any]:
        """Median seconds of each part."""
        parts = self._steps[-1]
        return {"seconds_by_part": {part: median(step[part] for step in self._steps) for part in parts}}


class InteractionStudent:
    """A student in interaction."""

    def __init__(self, sizes: Sizes) -> None:
        self.backbone = make_backbone(sizes.student, sizes, seed=0)
        self.clock = Clock()
        self._vocabulary = sizes.vocabulary
        train_decoder(self.backbone, None)
        prepare_for_training(self.backbone, Schedule())
        self._verbalizers = make_verbalizers(sizes.student, seed=1)
        trained = [*self.backbone.model.parameters(), *self._verbalizers.parameters()]
        self._trained = [parameter for parameter in trained if parameter.requires_grad]
        self._optimizer = make_optimizer(self._trained, Schedule())
        self._generator = torch.Generator().manual_seed(2)

    def step(self, batch: Batch, teacher: Target, last: Target) -> dict[str, float]:
        """Learn from the teacher's layers, moments [t_l, N, d], and from its last one, [N, d]."""
        clock = self.clock
        states = self.backbone.states(batch, self._verbalizers.target_layers)
        outputs = [*states.targets, states.last]
        cut = [_leaf(state) for state in outputs]
        clock.lap("blocks, forward")
        said = self._verbalizers(cut[:-1], self.backbone.norm)
        inputs = [_leaf(x) for x in said]
        clock.lap("verb-FFNs")
        head = self.backbone.readout.head_rows(self._vocabulary)
        costs = KLCosts(inputs, head, teacher)
        passed = partition(cut[-1], head)
        clock.lap("heads")
        losses = match_and_learn(costs, costs.all_pairs(), batch.rows, Matching(), self._generator).losses
        total = losses.sum() + divergence(cut[-1], passed, last).sum()
        (total / len(batch.labels)).backward()
        clock.lap("matching")
        torch.autograd.backward(said, [x.grad for x in inputs])
        clock.lap("verb-FFNs")
        torch.autograd.backward(outputs, [state.grad for state in cut])
        clock.lap("blocks, backward")
        _update(self._trained, self._optimizer)
        clock.lap("optimizer")
        return {"loss": total.item() / len(batch.labels)}


def build_from_cache(sizes: Sizes, folder: str) -> Built:
    """The step of the interaction stage: neither the teacher nor its head is in memory."""
    student = InteractionStudent(sizes)
    cache = TeacherTargets(Path(folder), student.backbone, sizes.vocabulary)
    batches = iter([make_batch(sizes, number) for number in range(REPEATS + 1)])

    def run() -> dict[str, float]:
        batch = next(batches)
        student.clock.start()
        batch = replace(batch, cached=cache.reader.fields(batch.sample_ids, batch.labels))
        head = student.backbone.readout.head_rows(sizes.vocabulary)
        teacher, last = cache.intermediate(batch, head), cache.last(batch, head)
        student.clock.lap("reading the cache")
        return student.step(batch, teacher, last)

    return Built(run, {"parameters": count_parameters(student.backbone)}, student.clock.notes)


def build_with_teacher(sizes: Sizes) -> Built:
    """The same step with what it learns from computed in it, by the functions that make the cache."""
    student, teacher = InteractionStudent(sizes), Teacher(sizes)
    batches = iter([make_batch(sizes, number) for number in range(REPEATS + 1)])

    def run() -> dict[str, float]:
        batch = next(batches)
        student.clock.start()
        targets = teacher.targets(batch, student.backbone)
        student.clock.lap("teacher")
        return student.step(batch, _stack(targets[:-1]), targets[-1])

    counted = {
        "student_parameters": count_parameters(student.backbone),
        "teacher_parameters": count_parameters(teacher.backbone),
    }
    return Built(run, counted, student.clock.notes)


def build_sft(sizes: Sizes) -> Built:
    """The step of the reinforcement stage: the whole language model is trained, head and embedding too."""
    backbone, batch, clock = make_backbone(sizes.student, sizes, seed=0), make_batch(sizes, 0), Clock()
    train_language_model(backbone, None)
    prepare_for_training(backbone, Schedule())
    trained = [parameter for parameter in backbone.model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(trained, Schedule())

    def run() -> dict[str, float]:
        clock.start()
        last = backbone.states(batch, ()).last
        clock.lap("blocks, forward")
        head = backbone.readout.trained_head()
        total, _ = trained_cross_entropy(last, head, batch.labels, vocabulary=sizes.vocabulary)
        clock.lap("heads")
        (total / len(batch.labels)).backward()
        clock.lap("blocks, backward")
        _update(trained, optimizer)
        clock.lap("optimizer")
        return {"cross_entropy": total.item() / len(batch.labels)}

    return Built(run, finish=clock.notes)


class Teacher:
    """A frozen teacher with its verbalizers."""

    def __init__(self, sizes: Sizes) -> None:
        self.backbone = make_backbone(sizes.teacher, sizes, seed=3)
        self.backbone.model.eval().requires_grad_(False)
        self._verbalizers = make_verbalizers(sizes.teacher, seed=4)
        self._head = self.backbone.readout.head_rows(sizes.vocabulary)

    @torch.no_grad()
    def targets(self, batch: Batch, student: Backbone) -> list[Target]:
        """One of every target layer, and one of the last."""
        states = self.backbone.states(batch, self._verbalizers.target_layers)
        said = [*self._verbalizers(states.targets, self.backbone.norm), states.last]
        student_head = student.readout.head_rows(len(self._head.weight))
        return [moment_target(x, self._head, student_head) for x in said]


def write_cache(sizes: Sizes, folder: str) -> None:
    """What precompute leaves for every batch; the batches differ in nothing but their samples' ids."""
    student = make_backbone(sizes.student, sizes, seed=0)
    targets = Teacher(sizes).targets(make_batch(sizes, 0), student)
    layers = [[target.entropy[:, None], target.moment] for target in targets]
    codec = make_codec("moment", torch.bfloat16, None, student.readout.head_rows(sizes.vocabulary))
    columns = (*map(block_column, sizes.teacher.target_layers), LAST_LAYER)
    layout = Layout(codec.name, columns, codec.fields)
    pieces = [(make_samples(sizes, number), layers) for number in range(REPEATS + 1)]
    save_cache(Path(folder) / TARGETS_FOLDER, layout, pieces)


def make_backbone(model: ModelSizes, sizes: Sizes, seed: int) -> Backbone:
    """A Qwen2-VL in float32 with random weights."""
    torch.manual_seed(seed)
    frequencies = model.width // model.heads // 2
    section = [frequencies - 2 * (frequencies * 3 // 8), *[frequencies * 3 // 8] * 2]
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": sizes.vocabulary,
            "hidden_size": model.width,
            "intermediate_size": model.mlp_width,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.key_value_heads,
            "initializer_range": model.width**-0.5,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section},
        },
        vision_config={
            "depth": sizes.vision_layers,
            "embed_dim": sizes.vision_width,
            "num_heads": 2,
            "hidden_size": model.width,
            "initializer_range": sizes.vision_width**-0.5,
        },
        image_token_id=_image_token(sizes),
        video_token_id=_image_token(sizes) + 1,
        vision_start_token_id=_image_token(sizes) - 2,
        vision_end_token_id=_image_token(sizes) - 1,
        tie_word_embeddings=model.tied,
    )
    return Backbone(Qwen2VLForConditionalGeneration(config))


def make_verbalizers(model: ModelSizes, seed: int) -> Verbalizers:
    """Verbalizers that say something else than the logit lens, as trained ones do."""
    torch.manual_seed(seed)
    verbalizers = Verbalizers(model.target_layers, model.width, VerbalizerSettings())
    for ffn in verbalizers.ffns:
        nn.init.normal_(ffn.down.weight, std=model.width**-0.5)
    return verbalizers


def make_batch(sizes: Sizes, number: int) -> Batch:
    """A picture, a question and an answer in each sample; only the ids depend on `number`."""
    return collate(make_samples(sizes, number), pad_id=0)


def make_samples(sizes: Sizes, number: int) -> list[Encoded]:
    """The samples of a batch."""
    generator = torch.Generator().manual_seed(6)
    return [_make_sample(sizes, f"{number}-{index}", generator) for index in range(sizes.samples)]


def _make_sample(sizes: Sizes, name: str, generator: torch.Generator) -> Encoded:
    image, patches = _image_token(sizes), 4 * sizes.picture_side**2
    picture = torch.tensor([image - 2, *[image] * (patches // 4), image - 1])
    words = sizes.question_tokens + sizes.response_tokens
    input_ids = torch.cat([picture, torch.randint(0, image - 2, (words,), generator=generator)])
    extras = {
        "pixel_values": torch.randn(patches, PATCH_NUMBERS, generator=generator),
        "image_grid_thw": torch.tensor([[1, 2 * sizes.picture_side, 2 * sizes.picture_side]]),
        "mm_token_type_ids": (input_ids == image).long()[None],
    }
    is_response = torch.arange(len(input_ids)) >= len(input_ids) - sizes.response_tokens
    return Encoded(Sample(name, (), ()), input_ids, is_response, extras)


def count_parameters(backbone: Backbone) -> dict[str, int]:
    """In all, and in the decoder blocks alone."""
    return {
        "all": sum(parameter.numel() for parameter in backbone.model.parameters()),
        "blocks": sum(parameter.numel() for parameter in backbone.blocks.parameters()),
    }


def _image_token(sizes: Sizes) -> int:
    return sizes.vocabulary - 2


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _stack(targets: Sequence[Target]) -> Target:
    return Target(torch.stack([t.moment for t in targets]), torch.stack([t.entropy for t in targets]))


def _update(trained: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
