"""The parts of a model are found by structure and checked against the model's own logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages.contract import StageError
from stages.contract.settings import ModelLoading, Preprocessing
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
    forward = backbone.model.forward

    def soft_capped(**inputs: object) -> object:
        output = forward(**inputs)
        output.logits = torch.tanh(output.logits / 3) * 3
        return output

    backbone.model.forward = soft_capped
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


def test_what_cannot_be_found_is_named(checkpoint: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    decoder = model.get_decoder()
    decoder.norm = torch.nn.Identity()
    with pytest.raises(StageError, match="expected one final norm of width 16 .*'norm': 'Identity'.* model.backbone.norm"):
        find_parts(model, BY_STRUCTURE)
    del decoder.layers[0]
    with pytest.raises(StageError, match=f"expected one list of {LAYERS} decoder blocks .* model.backbone.layers"):
        find_parts(model, BY_STRUCTURE)
