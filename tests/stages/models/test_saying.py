"""What a layer says: the most probable word of its distribution over the real vocabulary."""

from __future__ import annotations

import pytest
import torch

from stages.contract.sayings import Said
from stages.losses.divergence import Head, most_probable
from stages.models.saying import what_layer_says, what_layers_say

WORDS, WIDTH, TOKENS = 50, 8, 7


class Numbers:
    """A tokenizer whose words are their own ids."""

    def decode(self, ids: list[int]) -> str:
        return f"w{ids[0]}"


def random_head(bias: bool) -> Head:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WORDS, WIDTH, generator=generator)
    return Head(weight, torch.randn(WORDS, generator=generator) if bias else None)


def states() -> torch.Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
def test_the_word_is_the_argmax_and_its_confidence_the_softmax_however_it_is_cut(bias: bool, chunk_bytes: int) -> None:
    head, x = random_head(bias), states()
    logits = x.double() @ head.weight.double().T + (0 if head.bias is None else head.bias.double())
    dense = logits.softmax(dim=1)
    ids, probabilities = most_probable(x, head, chunk_bytes=chunk_bytes)
    assert ids.tolist() == dense.argmax(dim=1).tolist()
    assert torch.allclose(probabilities.double(), dense.amax(dim=1), atol=1e-6)


def test_half_precision_inputs_are_widened_first() -> None:
    head, x = random_head(bias=False), states()
    half = Head(head.weight.bfloat16())
    exact = (x.bfloat16().float() @ half.weight.float().T).softmax(dim=1).amax(dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        _, probabilities = most_probable(x.bfloat16(), half)
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities, exact, atol=1e-6)


def test_a_layer_says_one_word_for_each_response_token() -> None:
    head, x = random_head(bias=False), states()
    said = what_layer_says(4, x, head, Numbers())
    ids, probabilities = most_probable(x, head)
    assert said.block == 4
    assert said.words == tuple(f"w{token}" for token in ids.tolist())
    assert said.confidence == pytest.approx(probabilities.tolist(), abs=1e-4)
    assert what_layers_say([4, 6], [x, x], head, Numbers()) == (said, Said(6, said.words, said.confidence))
