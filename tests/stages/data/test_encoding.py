"""Only response tokens carry loss. The mask is held against the decoded text, not against itself."""

from __future__ import annotations

import re
import unicodedata
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages.contract.settings import Preprocessing
from stages.data.encoding import Encoder, collate, collate_prompts, encode_all
from stages.data.sample import BadSample, Sample, parse_sample, read_samples
from tests.stages import tiny

END = "<|im_end|>"


@pytest.fixture(scope="module", params=["qwen2_vl", "llava_onevision"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save = {"qwen2_vl": tiny.save_qwen2vl, "llava_onevision": tiny.save_llava_onevision}[request.param]
    return save(tmp_path_factory.mktemp("model"), width=16, layers=2, pad_rows=2, seed=0)


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    return Encoder(AutoProcessor.from_pretrained(checkpoint), Preprocessing())


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return read_samples(tiny.save_samples(tmp_path_factory.mktemp("data")))[0]


def decode(encoder: Encoder, ids: torch.Tensor) -> str:
    return encoder.processor.tokenizer.decode(ids)


def test_masked_tokens_decode_to_the_responses_and_their_ends(encoder: Encoder, samples: list[Sample]) -> None:
    for sample in samples:
        encoded = encoder.encode(sample)
        assert decode(encoder, encoded.response_ids) == "".join(text + END for text in sample.responses)


def test_unmasked_tokens_hold_the_questions_and_no_answer(encoder: Encoder, samples: list[Sample]) -> None:
    for sample in samples:
        encoded = encoder.encode(sample)
        rest = decode(encoder, encoded.input_ids[~encoded.response_mask])
        assert sample.question in rest
        assert rest.count("assistant\n") == len(sample.responses)
        assert not any(f"assistant\n{text}" in rest for text in sample.responses)


ANY_TEXT = st.text(max_size=24) | st.text(alphabet=st.sampled_from("aß漢é\u0301 one\n\t.,!'-<|>😀👩‍👩‍👧"), max_size=24)
LOOK_ALIKE = st.sampled_from(["<|im_end|", "|im_start|>", "<|im_ end|>", "<|IM_END|>", "assistant\n", "<|user|>"])
CONTROL = re.compile(r"<\|(im|vision|image|video|endof)\w+\|>|<image>|<video>")
TEXTS = (
    st.lists(ANY_TEXT | LOOK_ALIKE, min_size=1, max_size=3)
    .map("".join)
    .filter(lambda text: text.strip() and not CONTROL.search(text))
)
CONVERSATIONS = st.tuples(st.none() | TEXTS, st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))


def conversation(system: str | None, turns: list[tuple[str, str]]) -> Sample:
    messages = [] if system is None else [tiny.text("system", system)]
    for question, answer in turns:
        messages += [tiny.text("user", question), tiny.text("assistant", answer)]
    return parse_sample({"id": "x", "messages": messages}, Path("/"))


def with_marked_responses(encoder: Encoder) -> Encoder:
    """The same template with a `{% generation %}` block round each response, as newer checkpoints have it."""
    template = encoder.processor.chat_template
    head, end = "{{- '<|im_start|>' + message['role'] + '\\n' -}}", "{{- '<|im_end|>\\n' -}}"
    middle = template[template.index(head) + len(head) : template.index(end)]
    response = "{%- generation -%}" + middle + "{{- '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}"
    either = "{%- if message['role'] == 'assistant' -%}" + response + "{%- else -%}" + middle + end + "{%- endif -%}"
    marked = deepcopy(encoder.processor)
    marked.chat_template = template.replace(middle + end, either)
    return Encoder(marked, Preprocessing(), memory_bytes=0)


@pytest.fixture(scope="module", params=["found", "marked"])
def unremembering(request: pytest.FixtureRequest, encoder: Encoder) -> Encoder:
    """Encoders that find responses themselves, and by the marks of the template."""
    if request.param == "marked":
        return with_marked_responses(encoder)
    return Encoder(encoder.processor, Preprocessing(), memory_bytes=0)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(CONVERSATIONS)
def test_mask_of_any_conversation(unremembering: Encoder, drawn: tuple[str | None, list[tuple[str, str]]]) -> None:
    """Masked tokens decode to the responses and their ends, character by character; the others to all the rest."""
    sample = conversation(*drawn)
    encoded = unremembering.encode(sample)
    composed = [unicodedata.normalize("NFC", answer) for answer in sample.responses]
    assert decode(unremembering, encoded.response_ids) == "".join(answer + END for answer in composed)
    rest = decode(unremembering, encoded.input_ids[~encoded.response_mask])
    assert rest.count("<|im_start|>") == len(sample.messages) + (drawn[0] is None)
    assert rest.count(END) == len(sample.messages) - len(composed) + (drawn[0] is None)


def test_marked_and_found_responses_are_the_same(encoder: Encoder, samples: list[Sample]) -> None:
    marked = with_marked_responses(encoder)
    for sample in samples:
        found, seen = encoder.encode(sample), marked.encode(sample)
        assert torch.equal(found.input_ids, seen.input_ids)
        assert torch.equal(found.response_mask, seen.response_mask)


def test_a_template_that_marks_too_much_is_refused(encoder: Encoder, samples: list[Sample]) -> None:
    greedy = deepcopy(encoder.processor)
    greedy.chat_template = "{%- generation -%}" + greedy.chat_template + "{%- endgeneration -%}"
    with pytest.raises(BadSample, match="the response tokens decode to"):
        Encoder(greedy, Preprocessing()).encode(samples[1])


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_text_that_spells_a_control_token_is_refused(encoder: Encoder, role: str) -> None:
    """It would be read as the end of a turn, or as a picture."""
    texts = dict.fromkeys(("system", "user", "assistant"), "Hello") | {role: "Hello<|im_end|>"}
    sample = conversation(texts["system"], [(texts["user"], texts["assistant"])])
    with pytest.raises(BadSample, match=r"a text contains <\|im_end\|>, which is a control token of the model"):
        encoder.encode(sample)


def test_a_batch_predicts_each_response_token_from_the_position_before(encoder: Encoder, samples: list[Sample]) -> None:
    encoded = [encoder.encode(sample) for sample in samples[:4]]
    batch = collate(encoded, encoder.pad_id)
    following = batch.inputs["input_ids"][batch.rows, batch.positions + 1]
    assert torch.equal(following, batch.labels)
    assert batch.labels.tolist() == [token for sample in encoded for token in sample.response_ids.tolist()]
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [len(sample.input_ids) for sample in encoded]


def test_padding_changes_no_hidden_state(checkpoint: Path, encoder: Encoder, samples: list[Sample]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    encoded = [encoder.encode(sample) for sample in samples[:4]]
    with torch.no_grad():
        together = collate(encoded, encoder.pad_id)
        padded = model(**together.inputs).logits[together.rows, together.positions]
        alone = [collate([sample], encoder.pad_id) for sample in encoded]
        single = torch.cat([model(**batch.inputs).logits[batch.rows, batch.positions] for batch in alone])
    torch.testing.assert_close(padded, single, rtol=1e-3, atol=1e-4)


def test_prompts_end_where_the_last_answer_begins(encoder: Encoder, samples: list[Sample]) -> None:
    encoded = [encoder.encode(sample) for sample in samples[:2]]
    prompts = collate_prompts(encoded, encoder.pad_id)
    for row, attention, sample in zip(prompts["input_ids"], prompts["attention_mask"], samples[:2], strict=True):
        text = decode(encoder, row[attention.bool()])
        assert text.endswith("<|im_start|>assistant\n")
        assert text.count("assistant\n") == len(sample.responses)
        assert attention[-1] == 1
    assert decode(encoder, prompts["input_ids"][1]).count(samples[1].responses[0]) == 1


def test_too_long_and_unusable_samples_are_named(encoder: Encoder, samples: list[Sample], tmp_path: Path) -> None:
    short = Encoder(encoder.processor, Preprocessing(max_tokens=8))
    missing = Sample("gone", (tmp_path / "gone.png",), samples[0].messages, line=7)
    good, bad = encode_all(encoder, [samples[0], missing])
    assert [sample.sample.id for sample in good] == [samples[0].id]
    assert (bad[0].id, bad[0].line) == ("gone", 7)
    with pytest.raises(BadSample, match="more than preprocessing.max_tokens 8"):
        short.encode(samples[0])


def test_a_template_that_rewrites_earlier_turns_is_refused(encoder: Encoder, samples: list[Sample]) -> None:
    template = encoder.processor.chat_template
    encoder.processor.chat_template = template.replace("{{- message['content'] -}}", "").replace(
        "{%- for message in messages -%}", "{{- messages | length }}{%- for message in messages -%}"
    )
    try:
        with pytest.raises(BadSample, match="renders a turn differently"):
            Encoder(encoder.processor, Preprocessing()).encode(samples[1])
    finally:
        encoder.processor.chat_template = template


def test_the_memory_is_bounded(encoder: Encoder, samples: list[Sample]) -> None:
    size = encoder.encode(samples[0]).num_bytes
    small = Encoder(encoder.processor, Preprocessing(), memory_bytes=size)
    first = small.encode(samples[0])
    assert small.encode(samples[0]) is first
    assert small.encode(samples[1]) is not small.encode(samples[1])


def test_threads_share_what_was_encoded_and_no_processor(encoder: Encoder, samples: list[Sample]) -> None:
    """Red if two threads use one tokenizer at a time, which transformers does not allow."""
    mine = Encoder(encoder.processor, Preprocessing())
    other = mine.for_another_thread()
    assert other.processor is not mine.processor
    assert other.encode(samples[0]) is mine.encode(samples[0])


@pytest.mark.parametrize("checkpoint", ["qwen2_vl"], indirect=True)
def test_limits_on_pixels_replace_the_checkpoint_s_own(encoder: Encoder, samples: list[Sample]) -> None:
    """One picture in 4, 1 and 16 tokens, each of 4 patches. LLaVA has fixed sizes: see test_pair.py."""
    for limits, patches in (({}, 16), ({"min_pixels": 784, "max_pixels": 784}, 4), ({"min_pixels": 12_544}, 64)):
        limited = Encoder(encoder.processor, Preprocessing.model_validate(limits), memory_bytes=0)
        assert int(limited.encode(samples[0]).extras["image_grid_thw"].prod()) == patches, limits
