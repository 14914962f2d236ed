"""Only response tokens carry loss. The mask is held against the decoded text, not against itself."""

from __future__ import annotations

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


WORDS = st.text(alphabet=st.sampled_from("aß漢 one\n.,!'-😀"), min_size=1, max_size=12).filter(lambda t: t.strip())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), system=st.none() | WORDS)
def test_mask_of_any_conversation(encoder: Encoder, turns: list[tuple[str, str]], system: str | None) -> None:
    messages = [] if system is None else [tiny.text("system", system)]
    for question, answer in turns:
        messages += [tiny.text("user", question), tiny.text("assistant", answer)]
    fresh = Encoder(encoder.processor, Preprocessing(), memory_bytes=0)
    encoded = fresh.encode(parse_sample({"id": "x", "messages": messages}, Path("/")))
    assert decode(encoder, encoded.response_ids) == "".join(answer + END for _, answer in turns)


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
