"""The parts of a model are found by structure and checked against the model's own logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages.contract import StageError
from stages.contract.settings import BackbonePaths, ModelLoading, Preprocessing
from stages.contract.settings import Verbalizer as VerbalizerSettings
from stages.data.encoding import Batch, Encoder, collate
from stages.data.sample import read_samples
from stages.losses.divergence import divergence, label_target, partition
from stages.models.backbone import Backbone
from stages.models.readout import Readout
from stages.models.structure import BY_STRUCTURE, find_parts
from stages.models.verbalizer import Verbalizers
from tests.stages import tiny

FLOAT32 = ModelLoading(dtype="float32")
LAYERS = 4
FLOAT_TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["qwen2_vl", "llava_onevision"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = {"qwen2_vl": tiny.save_qwen2vl, "llava_onevision": tiny.save_llava_onevision}[request.param]
    return save(tmp_path_factory.mktemp("model"), width=16, layers=LAYERS, pad_rows=2, seed=0)


@pytest.fixture(scope="module")
def batch(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    samples, _ = read_samples(tiny.save_samples(tmp_path_factory.mktemp("data"), 4))
    encoder = Encoder(AutoProcessor.from_pretrained(checkpoint), Preprocessing())
    return collate([encoder.encode(sample) for sample in samples], encoder.pad_id)


@pytest.fixture
def backbone(checkpoint: Path) -> Backbone:
    return Backbone.load(str(checkpoint), FLOAT32)


def test_blocks_norm_head_reproduce_the_models_logits(backbone: Backbone, batch: Batch) -> None:
    assert len(backbone.blocks) == LAYERS
    assert backbone.check(batch) < FLOAT_TOLERANCE


def test_logits_that_are_not_norm_and_head_are_refused(backbone: Backbone, batch: Batch) -> None:
    change_logits(backbone.model, lambda logits: torch.tanh(logits / 3) * 3)
    with pytest.raises(StageError, match="differs from the model's logits"):
        backbone.check(batch)


def test_captured_states_are_those_of_a_full_forward(backbone: Backbone, batch: Batch) -> None:
    with torch.no_grad():
        full = backbone.model(**batch.inputs, output_hidden_states=True, use_cache=False)
        states = backbone.states(batch, [0, 2])
    for block, state in zip([0, 2], states.targets, strict=True):
        torch.testing.assert_close(state, full.hidden_states[block + 1][batch.rows, batch.positions])
    logits = full.logits[batch.rows, batch.positions]
    torch.testing.assert_close(backbone.head(states.last), logits, rtol=1e-4, atol=1e-5)


def test_the_head_never_sees_prompt_tokens(backbone: Backbone, batch: Batch) -> None:
    seen = []
    backbone.head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    backbone.states(batch, [0])
    assert seen == [0]


@pytest.mark.parametrize("target", range(LAYERS - 1))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_of_a_target_layer_reaches_its_blocks_and_no_deeper_one(
    backbone: Backbone, batch: Batch, target: int, checkpointing: bool
) -> None:
    if checkpointing:
        backbone.model.train()
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    verbalizers = Verbalizers([target], backbone.width, VerbalizerSettings())
    said = verbalizers(backbone.states(batch, [target]).targets, backbone.norm)
    head = backbone.readout.head_rows(backbone.head.weight.shape[0] - 2)
    label = label_target(torch.zeros(len(said[0]), dtype=torch.long), head)
    divergence(said[0], partition(said[0], head), label).sum().backward()
    reached = [any(p.grad is not None and p.grad.any() for p in block.parameters()) for block in backbone.blocks]
    assert reached == [index <= target for index in range(LAYERS)]
    assert backbone.head.weight.grad is None


def test_a_readout_is_rebuilt_without_the_model(backbone: Backbone, batch: Batch, tmp_path: Path) -> None:
    backbone.readout.save(tmp_path, backbone.model.config)
    readout = Readout.load(tmp_path, FLOAT32)
    with torch.no_grad():
        state = backbone.states(batch, [1]).targets[0]
        expected = backbone.head(backbone.norm(state))
        torch.testing.assert_close(readout.head(readout.norm(state)), expected)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4 * backbone.head.weight.numel() * 3


@pytest.mark.parametrize("tied", [False, True])
def test_a_readout_is_read_without_the_rest_of_the_checkpoint(tied: bool, tmp_path: Path) -> None:
    place = tiny.save_qwen2vl(tmp_path, width=16, layers=LAYERS, pad_rows=2, seed=0, tied=tied)
    whole = Backbone.load(str(place), FLOAT32).readout
    alone = Readout.of_checkpoint(str(place), FLOAT32)
    assert torch.equal(alone.head.weight, whole.head.weight)
    assert torch.equal(alone.norm.weight, whole.norm.weight)
    assert not alone.head.weight.requires_grad


def test_parts_may_be_named_by_hand(checkpoint: Path, batch: Batch) -> None:
    """Where the structure is ambiguous: a second list of as many modules."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    model.get_decoder().others = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(LAYERS))
    with pytest.raises(StageError, match=f"expected one list .* found layers of {LAYERS}, others of {LAYERS}"):
        Backbone(model)
    paths = {"layers": "model.language_model.layers", "norm": "model.language_model.norm", "head": "lm_head"}
    backbone = Backbone(model, BackbonePaths(**paths))
    assert backbone.check(batch) < FLOAT_TOLERANCE
    assert backbone.blocks is model.get_decoder().layers
    with pytest.raises(StageError, match="model.backbone.norm: .* has no module `model.nrom`"):
        Backbone(model, BackbonePaths(**paths | {"norm": "model.nrom"}))


@pytest.mark.parametrize("scale", [0.0625, 7.0])
def test_a_logit_scale_is_measured_and_folded_into_the_head(backbone: Backbone, batch: Batch, scale: float) -> None:
    """Weight and bias. Red if the scale of the frozen or of the trained head is left out."""
    model = backbone.model
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, len(model.lm_head.weight)))
    change_logits(model, lambda logits: scale * logits)
    scaled = Backbone(model)
    assert scaled.readout.scale == scale
    assert scaled.check(batch) < FLOAT_TOLERANCE
    weight, bias = scaled.readout.trained_head()
    torch.testing.assert_close(weight, scale * model.lm_head.weight)
    torch.testing.assert_close(bias, scale * model.lm_head.bias)
    assert bias.requires_grad
    weight.sum().backward()
    assert (model.lm_head.weight.grad == scale).all()
    assert not any(part.requires_grad for part in scaled.readout.head_rows(5))


def test_a_soft_capped_head_is_refused_when_it_is_loaded(backbone: Backbone) -> None:
    change_logits(backbone.model, lambda logits: 30 * torch.tanh(logits / 30))
    with pytest.raises(StageError, match="head is not linear: where the head gives -1000 .* makes -30 .* soft-capping"):
        Backbone(backbone.model)


def test_measuring_the_scale_leaves_the_model_as_it_was(backbone: Backbone, batch: Batch) -> None:
    model = backbone.model
    names, before = list(model.state_dict()), model(**batch.inputs).logits
    Backbone(model)
    assert list(model.state_dict()) == names
    assert torch.equal(model(**batch.inputs).logits, before)


def change_logits(model: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    forward = model.forward

    def changed(**inputs: object) -> object:
        output = forward(**inputs)
        output.logits = change(output.logits)
        return output

    model.forward = changed


def test_what_cannot_be_found_is_named(checkpoint: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    decoder = model.get_decoder()
    decoder.norm = torch.nn.Identity()
    with pytest.raises(StageError, match="expected one norm of width 16 .* norm .Identity.* model.backbone.norm"):
        find_parts(model, BY_STRUCTURE)
    del decoder.layers[0]
    with pytest.raises(StageError, match=f"expected one list of {LAYERS} decoder blocks .* model.backbone.layers"):
        find_parts(model, BY_STRUCTURE)
