"""Answering: a checkpoint that is asked about pictures and answers greedily, telling its words as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from stages.contract.settings import ModelLoading, Preprocessing
from stages.data.encoding import Encoder
from stages.data.sample import Sample
from stages.models.backbone import Backbone, load_processor

Told = Callable[[str], None]
"""Is told of the next piece of an answer."""

BEGINNING = Sample("conversation", (), ())
"""Nothing has been said yet."""


def ask(question: str, pictures: Sequence[Path] = (), after: Sample = BEGINNING) -> Sample:
    """A conversation that goes on with a question, about pictures that stand in front of it."""
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    turn = {"role": "user", "content": content}
    return replace(after, images=(*after.images, *pictures), messages=(*after.messages, turn))


def reply(answer: str, after: Sample) -> Sample:
    """A conversation that goes on with an answer."""
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return replace(after, messages=(*after.messages, turn))


class Answerer:
    """A model with its processor, on this process's device."""

    def __init__(self, place: str, loading: ModelLoading, preprocessing: Preprocessing) -> None:
        """Load a checkpoint folder or hub id."""
        self.encoder = Encoder(load_processor(place, loading), preprocessing, memory_bytes=0)
        self.backbone = Backbone.load(place, loading)

    @torch.no_grad()
    def answer(self, conversation: Sample, max_new_tokens: int, told: Told = lambda text: None) -> str:
        """What the model says next, as evaluation decodes it.

        Args:
            conversation: it ends with a question.
            max_new_tokens: the answer is cut off there.
            told: gets the answer in pieces, while it is made.

        Raises:
            BadSample: a picture cannot be used, or the conversation is too long.
        """
        inputs = self.encoder.encode_prompt(conversation)
        tokenizer = self.encoder.processor.tokenizer
        generated = self.backbone.model.generate(  # type: ignore[operator]
            **{name: tensor.to(self.backbone.device) for name, tensor in inputs.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.encoder.pad_id,
            streamer=_Teller(tokenizer, told),
        )
        new = generated[0, inputs["input_ids"].shape[1] :]
        return tokenizer.decode(new, skip_special_tokens=True).strip()


class _Teller(TextStreamer):
    """Whole words as soon as they are whole."""

    def __init__(self, tokenizer: Any, told: Told) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._told = told

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass a piece on instead of printing it."""
        if text:
            self._told(text)
