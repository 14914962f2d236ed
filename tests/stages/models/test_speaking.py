"""Speaking: what layers say of one answer, what they say when left to themselves, and through what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.contract import StageError
from stages.contract.settings import ModelLoading, Preprocessing
from stages.contract.settings import Verbalizer as VerbalizerSettings
from stages.data.encoding import collate
from stages.data.sample import Sample
from stages.models.answering import ask, reply
from stages.models.speaking import Speaking
from stages.models.verbalizer import Verbalizers
from tests.stages import tiny

FLOAT32 = ModelLoading(dtype="float32")
WIDTH, LAYERS, TOKENS = 32, 4, 6
TARGETS = (0, 1, 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return str(tiny.save_qwen2vl(folder, width=WIDTH, layers=LAYERS, pad_rows=5, seed=0))


@pytest.fixture(scope="module")
def verbalizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """None of whose weights is at its initial value."""
    torch.manual_seed(1)
    made = Verbalizers(TARGETS, WIDTH, VerbalizerSettings(variant="stable"))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=WIDTH**-0.5)
    path = tmp_path_factory.mktemp("verbalizers") / "verbalizers.safetensors"
    made.save(path)
    return path


@pytest.fixture(scope="module")
def speaking(checkpoint: str, verbalizers: Path) -> Speaking:
    return Speaking(checkpoint, FLOAT32, Preprocessing(), verbalizers)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("data")
    tiny.save_samples(folder, count=1)
    return ask("How many dots are there?", [folder / "images" / "0.png"])


def test_every_layer_has_a_word_for_each_token_of_the_answer(speaking: Speaking, asked: Sample) -> None:
    spoken = speaking.say(reply("one two", asked))
    assert spoken.tokens[-1] == "<|im_end|>"
    assert "".join(spoken.tokens[:-1]).split() == ["one", "two"]
    assert [said.block for said in spoken.layers] == list(TARGETS)
    assert spoken.output.block == LAYERS
    for said in (*spoken.layers, spoken.output):
        assert len(said.words) == len(said.confidence) == len(spoken.tokens)
        assert all(0 < confidence <= 1 for confidence in said.confidence)


def test_the_output_is_what_the_model_says(speaking: Speaking, asked: Sample) -> None:
    said = speaking.say(reply("one two", asked)).output
    batch = collate([speaking.encoder.encode(reply("one two", asked))], speaking.encoder.pad_id)
    with torch.no_grad():
        logits = speaking.backbone.model(**batch.inputs).logits[batch.rows, batch.positions]
    expected = logits[:, : speaking.encoder.real_vocabulary].softmax(dim=1).max(dim=1)
    assert said.words == tuple(speaking.encoder.processor.tokenizer.decode([i]) for i in expected.indices.tolist())
    assert said.confidence == pytest.approx(expected.values.tolist(), abs=1e-3)


def test_without_verbalizers_it_is_the_logit_lens_of_all_blocks(checkpoint: str, asked: Sample, tmp_path: Path) -> None:
    lens = Speaking(checkpoint, FLOAT32, Preprocessing()).say(reply("one", asked))
    untrained = Verbalizers(range(LAYERS), WIDTH, VerbalizerSettings(variant="stable"))
    untrained.save(tmp_path / "untrained.safetensors")
    same = Speaking(checkpoint, FLOAT32, Preprocessing(), tmp_path / "untrained.safetensors").say(reply("one", asked))
    assert [said.words for said in lens.layers] == [said.words for said in same.layers]
    assert lens.layers[-1].words == lens.output.words
    assert lens.layers[-1].confidence == pytest.approx(lens.output.confidence, abs=1e-3)


def continue_from(speaking: Speaking, layer: int, asked: Sample, verbalizers: Path) -> list[int]:
    """Ids of `TOKENS` steps without a cache: a whole forward pass each, its last state through the verbalizer."""
    ffns = Verbalizers.load(verbalizers)
    ffn = ffns.ffns[TARGETS.index(layer)]
    head = speaking.backbone.readout.head_rows(speaking.encoder.real_vocabulary)
    inputs, chosen = speaking.encoder.encode_prompt(asked), []
    for _ in range(TOKENS):
        with torch.no_grad():
            hidden = speaking.backbone.model(**inputs, output_hidden_states=True).hidden_states[layer + 1]
            said = speaking.backbone.norm(ffn(hidden[:, -1]))
        chosen.append(int((said @ head.weight.T).argmax()))
        along = {name for name, tensor in inputs.items() if tensor.shape == inputs["input_ids"].shape}
        for name in along:
            following = {"input_ids": chosen[-1], "attention_mask": 1}.get(name, 0)
            inputs[name] = torch.cat([inputs[name], torch.tensor([[following]])], dim=1)
    return chosen


def test_a_layer_left_to_itself_reads_its_own_words(speaking: Speaking, asked: Sample, verbalizers: Path) -> None:
    spoken = speaking.decode(asked, TOKENS)
    tokenizer = speaking.encoder.processor.tokenizer
    for layer, said in zip(TARGETS[:2], spoken.layers, strict=False):
        ids = continue_from(speaking, layer, asked, verbalizers)
        ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
        assert said.words == tuple(tokenizer.decode([token]) for token in ids)
    assert len({said.words for said in spoken.layers}) > 1


def test_the_output_decodes_the_answer(speaking: Speaking, asked: Sample) -> None:
    spoken = speaking.decode(asked, TOKENS)
    tokenizer = speaking.encoder.processor.tokenizer
    special = set(tokenizer.all_special_tokens)
    said = "".join(word for word in spoken.output.words if word not in special)
    assert "".join(said.split()) == "".join(speaking.answer(asked, TOKENS).split())
    assert spoken.tokens == ()
    for said_by in (*spoken.layers, spoken.output):
        assert len(said_by.words) == len(said_by.confidence) <= TOKENS


def test_chosen_layers_speak_as_they_do_among_all(
    checkpoint: str, verbalizers: Path, speaking: Speaking, asked: Sample
) -> None:
    some = Speaking(checkpoint, FLOAT32, Preprocessing(), verbalizers, [3, 0, 3])
    every = speaking.say(reply("one", asked)).layers
    assert some.say(reply("one", asked)).layers == (every[0], every[2])
    assert [said.block for said in some.decode(asked, 2).layers] == [0, 3]


def test_layers_and_verbalizers_have_to_fit(checkpoint: str, verbalizers: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"--layers: block 2, 9 cannot speak; allowed: 0, 1, 3"):
        Speaking(checkpoint, FLOAT32, Preprocessing(), verbalizers, [0, 2, 9])
    Verbalizers((0,), 2 * WIDTH, VerbalizerSettings()).save(tmp_path / "wide.safetensors")
    with pytest.raises(StageError, match=f"has {LAYERS} blocks of width {WIDTH}; its verbalizers are for blocks 0"):
        Speaking(checkpoint, FLOAT32, Preprocessing(), tmp_path / "wide.safetensors")
