"""Saying: the word that each verbalized layer would say in the place of each response token (teacher forcing)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stages.contract.sayings import Said
from stages.losses.divergence import CHUNK_BYTES, Head, most_probable


def what_layer_says(
    block: int, verbalized: Tensor, head: Head, tokenizer: Any, *, chunk_bytes: int = CHUNK_BYTES
) -> Said:
    """What one layer says at every response token.

    Args:
        block: the decoder block, 0-based.
        verbalized: [N, d], what the layer's verbalizer gives the head at N response tokens.
        head: the rows of the real token ids.
        tokenizer: gives the words.
        chunk_bytes: memory for one chunk of logits and what is made of it.
    """
    ids, probabilities = most_probable(verbalized, head, chunk_bytes=chunk_bytes)
    confidence = tuple(round(value, 4) for value in probabilities.tolist())
    return Said(block, spell(ids, tokenizer), confidence)


def what_layers_say(
    blocks: Sequence[int], verbalized: Sequence[Tensor], head: Head, tokenizer: Any, *, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Said, ...]:
    """The same of several layers of one model, [N, d] each."""
    pairs = zip(blocks, verbalized, strict=True)
    return tuple(what_layer_says(block, x, head, tokenizer, chunk_bytes=chunk_bytes) for block, x in pairs)


def spell(ids: Tensor, tokenizer: Any) -> tuple[str, ...]:
    """The text of every token of [N] int64 by itself, special tokens included."""
    return tuple(tokenizer.decode([token]) for token in ids.tolist())
