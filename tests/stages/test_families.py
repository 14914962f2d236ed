"""Every image-text-to-text family of transformers: what the method needs of it holds, or it is refused with the reason.

Models are tiny and random, of the family's own classes. Pictures are tensors; the families whose own processor can be
made offline read real samples besides.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPING

from stages.cache.codecs import make_codec
from stages.contract import StageError
from stages.contract.settings import Lora, Matching, ModelLoading, Preprocessing, Schedule
from stages.contract.settings import Verbalizer as VerbalizerSettings
from stages.data.encoding import Batch, Encoded, Encoder, collate
from stages.data.sample import Sample, read_samples
from stages.losses.divergence import Target, divergence, label_target, partition
from stages.losses.layerwise import KLCosts, match_and_learn
from stages.models.backbone import Backbone
from stages.models.readout import Readout
from stages.models.scratch import TURN_END
from stages.models.student import (
    add_lora,
    merge_lora,
    missing_targets,
    prepare_for_training,
    save_student,
    train_decoder,
)
from stages.models.verbalizer import Verbalizers
from stages.training.optimizer import make_optimizer
from tests.stages import tiny
from tests.stages.families import FAMILIES, NOT_TRIED, REFUSED, SUPPORTED
from tests.stages.families_build import LAYERS, WORDS, batch_of, build, count_tokens
from tests.stages.families_processors import OWN, family_for, own_processor, picture_token
from tests.stages.families_table import refusal, tables

FLOAT32 = ModelLoading(dtype="float32")
FLOAT_TOLERANCE = 1e-5
"""Relative. Measured: at most 4e-7."""
REAL_WORDS = WORDS - 3
PLACED_ALONG_AXES = (
    *("ernie4_5_vl_moe", "glm46v", "glm4v", "glm4v_moe", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl"),
    *("qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"),
)
"""Families whose picture tokens have places along several axes."""
TEACHER_LAYERS, STUDENT_LAYERS = (0, 1, 2), (0, 2)
SCHEDULE = Schedule(steps=1, learning_rate=1e-3, gradient_checkpointing=True)
README = Path(__file__).parents[2] / "README.md"
NO_PROCESSOR = SimpleNamespace(save_pretrained=lambda folder: None)


@dataclass(frozen=True)
class Subject:
    """One family's model, and a text with a picture beside one without."""

    name: str
    backbone: Backbone
    batch: Batch

    def another(self, seed: int) -> Backbone:
        return Backbone(build(self.name, FAMILIES[self.name], seed))


@pytest.fixture(scope="module", params=SUPPORTED)
def subject(request: pytest.FixtureRequest) -> Subject:
    name = request.param
    model = build(name, FAMILIES[name])
    return Subject(name, Backbone(model), batch_of(FAMILIES[name], model))


@dataclass(frozen=True)
class Reader:
    """One family's own processor, its model, and samples that the processor encoded."""

    name: str
    processor: Any
    encoded: list[Encoded]
    backbone: Backbone

    @cached_property
    def batch(self) -> Batch:
        return collate(self.encoded, self.processor.tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """One picture, one with two turns, two pictures, and text alone."""
    return read_samples(tiny.save_samples(tmp_path_factory.mktemp("data"), 4))[0]


@pytest.fixture(scope="module", params=OWN)
def reader(request: pytest.FixtureRequest, samples: list[Sample]) -> Reader:
    name = request.param
    processor = own_processor(name)
    encoder = Encoder(processor, Preprocessing())
    encoded = [encoder.encode(sample) for sample in samples if sample.images or OWN[name].text_alone]
    model = build(name, family_for(name, processor))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)  # some see no picture through weights that start at zero
    return Reader(name, processor, encoded, Backbone(model))


@pytest.fixture(scope="module")
def trained(subject: Subject) -> Backbone:
    """A student after one step of interaction."""
    student = Backbone(deepcopy(subject.backbone.model))
    interaction_step(subject.another(seed=1), student, subject.batch)
    return student


def verbalizers(backbone: Backbone, layers: tuple[int, ...]) -> Verbalizers:
    torch.manual_seed(0)
    return Verbalizers(layers, backbone.width, VerbalizerSettings())


def interaction_step(teacher: Backbone, student: Backbone, batch: Batch) -> None:
    train_decoder(student, None)
    prepare_for_training(student, SCHEDULE)
    head = student.readout.head_rows(REAL_WORDS)
    codec = make_codec("moment", torch.float32, teacher.readout.head_rows(REAL_WORDS), head)
    with torch.no_grad():
        states = teacher.states(batch, TEACHER_LAYERS)
        layers = [*verbalizers(teacher, TEACHER_LAYERS)(states.targets, teacher.norm), states.last]
        *targets, last = (codec.decode(codec.encode(x, torch.zeros(len(x))), head) for x in layers)
    mine = verbalizers(student, STUDENT_LAYERS)
    optimizer = make_optimizer([*student.model.parameters(), *mine.parameters()], SCHEDULE)
    states = student.states(batch, STUDENT_LAYERS)
    costs = KLCosts(mine(states.targets, student.norm), head, stacked(targets))
    matched = match_and_learn(costs, costs.all_pairs(), batch.rows, Matching(), torch.Generator()).losses
    of_last = divergence(states.last, partition(states.last, head), last)
    (matched.sum() + of_last.sum()).backward()
    optimizer.step()


def stacked(targets: list[Target]) -> Target:
    moments, entropies, biases = zip(*targets, strict=True)
    return Target(torch.stack(moments), torch.stack(entropies), None if biases[0] is None else torch.stack(biases))


@torch.no_grad()
def logits(backbone: Backbone, batch: Batch) -> Tensor:
    backbone.model.eval()
    return backbone.model(**batch.inputs, use_cache=False).logits[batch.rows, batch.positions]


def assert_states_are_those_of_a_full_forward(backbone: Backbone, batch: Batch) -> None:
    with torch.no_grad():
        states = backbone.states(batch, TEACHER_LAYERS)
        full = backbone.model(**batch.inputs, output_hidden_states=True, use_cache=False)
    for layer, state in zip(TEACHER_LAYERS, states.targets, strict=True):
        torch.testing.assert_close(state, full.hidden_states[layer + 1][batch.rows, batch.positions])
    weight, bias = backbone.readout.head_rows(full.logits.shape[-1])
    expected = full.logits[batch.rows, batch.positions]
    torch.testing.assert_close(torch.nn.functional.linear(states.last, weight, bias), expected)


def test_every_family_of_transformers_is_tried_or_left_out_for_a_reason() -> None:
    assert FAMILIES.keys() | NOT_TRIED.keys() == set(MAPPING)
    assert not FAMILIES.keys() & NOT_TRIED.keys()


def test_blocks_norm_and_head_reproduce_the_models_logits(subject: Subject) -> None:
    assert len(subject.backbone.blocks) == LAYERS
    assert subject.backbone.check(subject.batch) < FLOAT_TOLERANCE


def test_captured_states_are_those_of_a_full_forward(subject: Subject) -> None:
    assert_states_are_those_of_a_full_forward(subject.backbone, subject.batch)


def test_verbalizers_learn_and_nothing_else_changes(subject: Subject) -> None:
    backbone, batch = subject.backbone, subject.batch
    before = {name: parameter.clone() for name, parameter in backbone.model.named_parameters()}
    head = backbone.readout.head_rows(REAL_WORDS)
    learners = verbalizers(backbone, TEACHER_LAYERS)
    optimizer = make_optimizer(learners.parameters(), SCHEDULE)
    losses = []
    for _ in range(3):
        with torch.no_grad():
            states = backbone.states(batch, TEACHER_LAYERS).targets
        said = torch.stack(learners(states, backbone.norm))
        loss = divergence(said, partition(said, head), label_target(batch.labels, head)).sum()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] > losses[1] > losses[2]
    assert all(torch.equal(parameter, before[name]) for name, parameter in backbone.model.named_parameters())


def test_interaction_changes_every_block_and_nothing_else(subject: Subject, trained: Backbone) -> None:
    old, new = dict(subject.backbone.model.named_parameters()), dict(trained.model.named_parameters())
    of_block = {id(p): index for index, block in enumerate(trained.blocks) for p in block.parameters()}
    changed = {of_block.get(id(new[name])) for name in new if not torch.equal(old[name], new[name])}
    assert changed == set(range(LAYERS))


def test_the_export_reloads_with_the_same_names_and_logits(subject: Subject, trained: Backbone, tmp_path: Path) -> None:
    save_student(trained, NO_PROCESSOR, tmp_path)
    again = Backbone.load(str(tmp_path), FLOAT32)
    assert again.model.state_dict().keys() == subject.backbone.model.state_dict().keys()
    torch.testing.assert_close(logits(again, subject.batch), logits(trained, subject.batch))


def test_the_readout_is_read_without_the_rest_of_the_model(subject: Subject, trained: Backbone, tmp_path: Path) -> None:
    trained.model.save_pretrained(tmp_path / "model")
    (tmp_path / "readout").mkdir()
    trained.readout.save(tmp_path / "readout", trained.model.config)
    expected = trained.readout.head_rows(REAL_WORDS)
    for found in (
        Readout.load(tmp_path / "readout", FLOAT32),
        Readout.of_checkpoint(str(tmp_path / "model"), FLOAT32),
    ):
        assert torch.equal(found.head_rows(REAL_WORDS).weight, expected.weight)
        assert all(torch.equal(a, b) for a, b in zip(found.norm.parameters(), trained.norm.parameters(), strict=True))


def test_lora_adapts_the_decoder_or_names_its_linear_modules(subject: Subject) -> None:
    student = Backbone(deepcopy(subject.backbone.model))
    names, lora = student.model.state_dict().keys(), Lora(rank=2)
    if missing := missing_targets(student.blocks, lora):
        with pytest.raises(StageError, match=f"have no linear module {', '.join(missing)}; they have "):
            add_lora(student.blocks, lora)
        there = {n.rpartition(".")[2] for n, m in student.blocks.named_modules() if isinstance(m, torch.nn.Linear)}
        lora = Lora(rank=2, target_modules=tuple(there))
    add_lora(student.blocks, lora)
    before = logits(subject.backbone, subject.batch)
    torch.testing.assert_close(logits(student, subject.batch), before)
    merge_lora(student.blocks)
    assert student.model.state_dict().keys() == names


def test_the_own_processors_response_mask_covers_the_answers_and_their_ends(reader: Reader) -> None:
    for encoded in reader.encoded:
        said = reader.processor.tokenizer.decode(encoded.response_ids)
        assert said == "".join(answer + TURN_END for answer in encoded.sample.responses)


def test_the_own_processor_writes_as_many_image_tokens_as_the_model_has_features(reader: Reader) -> None:
    token, each = picture_token(reader.name, reader.processor), FAMILIES[reader.name].tokens
    for encoded in reader.encoded:
        if pictures := len(encoded.sample.images):
            features = each * pictures if each else count_tokens(reader.backbone.model, encoded.extras)
            assert (encoded.input_ids == token).sum() == features


def test_what_the_own_processor_gives_runs_through_blocks_norm_and_head(reader: Reader) -> None:
    assert reader.backbone.check(reader.batch) < FLOAT_TOLERANCE
    assert_states_are_those_of_a_full_forward(reader.backbone, reader.batch)


def test_tokens_whose_places_are_told_have_the_states_that_they_have_without(reader: Reader) -> None:
    encoder = Encoder(reader.processor, Preprocessing(), positions=reader.backbone.positions)
    encoded = [encoder.encode(one.sample) for one in reader.encoded]
    told = collate(encoded, reader.processor.tokenizer.pad_token_id)
    assert ("position_ids" in told.inputs) == (reader.name in PLACED_ALONG_AXES)
    with torch.no_grad():
        found, expected = (reader.backbone.states(batch, TEACHER_LAYERS) for batch in (told, reader.batch))
    for state, without in zip((*found.targets, found.last), (*expected.targets, expected.last), strict=True):
        assert torch.equal(state, without)


def test_the_own_processors_pictures_are_seen(reader: Reader) -> None:
    pixels = next(name for name in reader.batch.inputs if name.startswith("pixel_values"))
    others = replace(reader.batch, inputs=reader.batch.inputs | {pixels: -reader.batch.inputs[pixels]})
    differs = (logits(reader.backbone, others) != logits(reader.backbone, reader.batch)).any(-1)
    pictured = torch.tensor([bool(encoded.sample.images) for encoded in reader.encoded])
    assert torch.equal(differs, pictured[reader.batch.rows])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_supported_is_refused_with_a_reason(name: str) -> None:
    assert refusal(name)


def test_the_tables_in_the_readme_are_what_the_command_prints() -> None:
    start, end = "<!-- families: python -m tests.stages.families_table -->\n", "<!-- /families -->"
    assert README.read_text().partition(start)[2].partition(end)[0] == tables()
