"""The verbalizer: its formula, its size, the logit lens it starts as, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stages.contract.settings import Verbalizer
from stages.models.verbalizer import Verbalizers, VerbFFN
from tests import reference

FLOAT32_TOLERANCE = 1e-5
"""Relative, worst token. Three products of width 24 in float32. Measured: at most 4e-7."""
NORM_EPS = 1e-6
"""Of the verbalizer's own norm (METHOD §1 leaves it open); Qwen2's value."""

WIDTH, TOKENS = 24, 11


def random_states(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(TOKENS, WIDTH, generator=generator).to(dtype) for _ in range(count)]


def trained(variant: str, layers: tuple[int, ...] = (2, 6, 10)) -> Verbalizers:
    """Verbalizers none of whose weights is at its initial value."""
    verbalizers = Verbalizers(layers, WIDTH, Verbalizer(variant=variant))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in verbalizers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * WIDTH**-0.5)
    return verbalizers


def final_norm() -> nn.Module:
    norm = nn.RMSNorm(WIDTH, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, WIDTH))
    return norm


def matrices(ffn: VerbFFN) -> dict[str, Tensor]:
    return {name: getattr(ffn, name).weight.detach() for name in ("gate", "up", "down")}


def test_literal_is_the_bare_formula() -> None:
    """Red if a norm, a residual, a bias or another activation is added, or the backbone's norm is applied."""
    verbalizers, states = trained("literal"), random_states(3)
    for ffn, state, ours in zip(verbalizers.ffns, states, verbalizers(states, final_norm()), strict=True):
        error = reference.error_of_worst_token(ours.detach(), reference.verb_ffn(state, **matrices(ffn)))
        assert error < FLOAT32_TOLERANCE, f"relative error {error:.1e}"


def test_stable_is_the_formula_between_two_norms_with_a_residual() -> None:
    """Red if the residual is taken after the norm, gate and up are exchanged, or the final norm is left out."""
    verbalizers, states, norm = trained("stable"), random_states(3), final_norm()
    for ffn, state, ours in zip(verbalizers.ffns, states, verbalizers(states, norm), strict=True):
        inner = reference.stable_verb_ffn(state, ffn.input_norm.weight.detach(), NORM_EPS, **matrices(ffn))
        error = reference.error_of_worst_token(ours.detach(), reference.rms_norm(inner, norm.weight.detach(), norm.eps))
        assert error < FLOAT32_TOLERANCE, f"relative error {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untrained_stable_verbalizer_is_the_logit_lens(dtype: torch.dtype) -> None:
    """Final norm of the state itself, bit for bit. Red without `W_down = 0` or without the residual."""
    verbalizers = Verbalizers((0, 4), WIDTH, Verbalizer(variant="stable")).to(dtype)
    states, norm = random_states(2, dtype), final_norm().to(dtype)
    for state, ours in zip(states, verbalizers(states, norm), strict=True):
        assert torch.equal(ours, norm(state))


def test_an_untrained_stable_verbalizer_learns_at_once() -> None:
    """`W_down = 0` stops no gradient of W_down. Red if gate or up were zero too: a dead start."""
    verbalizers = Verbalizers((0,), WIDTH, Verbalizer(variant="stable"))
    verbalizers(random_states(1), final_norm())[0].square().sum().backward()
    assert verbalizers.ffns[0].down.weight.grad.abs().max() > 0


def test_bf16_states_are_verbalized_in_the_weights_own_dtype() -> None:
    """Float32 verbalizers on a bf16 backbone. Red if the states pull the weights' precision down."""
    verbalizers = trained("stable", (0,))
    (ours,) = verbalizers(random_states(1, torch.bfloat16), final_norm())
    assert ours.dtype == verbalizers.dtype == torch.float32


def test_no_two_layers_share_a_verb_ffn() -> None:
    verbalizers = trained("stable")
    states = random_states(1) * 3
    one, other, third = verbalizers(states, final_norm())
    assert not torch.equal(one, other)
    assert not torch.equal(other, third)
    one.sum().backward()
    assert verbalizers.ffns[0].gate.weight.grad is not None
    assert all(parameter.grad is None for parameter in verbalizers.ffns[1].parameters())


def test_as_many_states_as_target_layers_are_asked_for() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        trained("stable")(random_states(2), final_norm())


@pytest.mark.parametrize(
    ("variant", "expected"), [("literal", 269_746_176), ("stable", 269_746_176 + 7 * 3584)], ids=["literal", "stable"]
)
def test_a_7b_student_with_seven_target_layers_has_the_papers_size(variant: str, expected: int) -> None:
    """7·3·3584² (paper, Table 4f: 269M); `stable` adds one norm weight a layer."""
    with torch.device("meta"):
        verbalizers = Verbalizers(range(2, 28, 4), 3584, Verbalizer(variant=variant))
    assert sum(parameter.numel() for parameter in verbalizers.parameters()) == expected


@pytest.mark.parametrize("variant", ["stable", "literal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_what_is_loaded(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Weights, target layers, variant, dtype and trainability. Red if one is left to a default."""
    verbalizers, path = trained(variant, (1, 5, 30)).to(dtype), tmp_path / "verbalizers.safetensors"
    verbalizers.save(path)
    for again in range(8):
        verbalizers.save(tmp_path / f"{again}.safetensors")
        assert (tmp_path / f"{again}.safetensors").read_bytes() == path.read_bytes()
    loaded = Verbalizers.load(path)
    assert loaded.target_layers == (1, 5, 30)
    assert loaded.variant == variant
    assert loaded.dtype == dtype
    assert loaded.state_dict().keys() == verbalizers.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in verbalizers.state_dict().items())
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())
    states, norm = random_states(3, dtype), final_norm().to(dtype)
    for ours, theirs in zip(loaded(states, norm), verbalizers(states, norm), strict=True):
        assert torch.equal(ours, theirs)
