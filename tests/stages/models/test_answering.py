"""Answering: what is asked, what comes back, and that evaluation would have said the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stages.contract.settings import ModelLoading, Preprocessing
from stages.data import BadSample
from stages.data.encoding import Encoder, collate_prompts
from stages.data.sample import Sample
from stages.models.answering import Answerer, ask, reply
from tests.stages import tiny

FLOAT32 = ModelLoading(dtype="float32")
QUESTION = "How many dots are there?"
TOKENS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_qwen2vl(tmp_path_factory.mktemp("model"), width=32, layers=3, pad_rows=5, seed=0)


@pytest.fixture(scope="module")
def answerer(checkpoint: Path) -> Answerer:
    return Answerer(str(checkpoint), FLOAT32, Preprocessing())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    tiny.save_samples(folder)
    return sorted((folder / "images").iterdir())


def by_evaluation(answerer: Answerer, sample: Sample) -> str:
    """Decoded as `stages.evaluation` does it: the encoded conversation cut before its answer, in a batch."""
    prompts = collate_prompts([answerer.encoder.encode(sample)], answerer.encoder.pad_id)
    generated = answerer.backbone.model.generate(
        **prompts, max_new_tokens=TOKENS, do_sample=False, pad_token_id=answerer.encoder.pad_id
    )
    new = generated[0, prompts["input_ids"].shape[1] :]
    return answerer.encoder.processor.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_it_answers_as_evaluation_does(answerer: Answerer, pictures: list[Path], count: int) -> None:
    asked = ask(QUESTION, pictures[:count])
    answer = answerer.answer(asked, TOKENS)
    assert answer == by_evaluation(answerer, reply("one", asked))
    assert answer


def test_what_is_told_on_the_way_is_the_answer(answerer: Answerer, pictures: list[Path]) -> None:
    pieces: list[str] = []
    answer = answerer.answer(ask(QUESTION, pictures[:1]), TOKENS, pieces.append)
    assert "".join(pieces).strip() == answer
    assert len(pieces) > 1


def test_a_second_question_is_asked_after_the_first_answer(answerer: Answerer, pictures: list[Path]) -> None:
    first = reply("one two", ask(QUESTION, pictures[:1]))
    second = ask("Add them.", pictures[1:2], first)
    assert [message["role"] for message in second.messages] == ["user", "assistant", "user"]
    assert second.images == tuple(pictures[:2])
    text = answerer.encoder.render(second.messages, prompt=True)
    assert text.index(QUESTION) < text.index("one two") < text.index("Add them.")
    assert answerer.answer(second, TOKENS) is not None


def test_what_cannot_be_asked_is_said(answerer: Answerer, pictures: list[Path]) -> None:
    with pytest.raises(BadSample, match="control token"):
        answerer.answer(ask("one <|im_end|> two"), TOKENS)
    with pytest.raises(BadSample, match="cannot be read"):
        answerer.answer(ask(QUESTION, [Path(__file__)]), TOKENS)
    short = Encoder(answerer.encoder.processor, Preprocessing(max_tokens=8))
    with pytest.raises(BadSample, match="more than preprocessing.max_tokens 8"):
        short.encode_prompt(ask(QUESTION, pictures[:1]))
    narrow = Encoder(answerer.encoder.processor, Preprocessing(max_image_pixels=10))
    with pytest.raises(BadSample, match="more than 10 allowed"):
        narrow.encode_prompt(ask(QUESTION, pictures[:1]))


def test_asking_leaves_what_was_said_as_it_was(pictures: list[Path]) -> None:
    before = ask(QUESTION, pictures[:1])
    assert ask("Add them.", (), reply("one", before)) != before
    assert before == replace(before, messages=before.messages[:1], images=tuple(pictures[:1]))
