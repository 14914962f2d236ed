"""The verbalizer: a verb-FFN on each target layer, in front of the backbone's own frozen readout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.contract.settings import Verbalizer as VerbalizerSettings

METADATA_KEY = "verbalizers"
"""The only one: safetensors writes several in an order of its own."""


class VerbFFN(nn.Module):
    """`W_down(SiLU(W_gate x) * W_up x)` at constant width, no bias (paper §3; METHOD §1).

    `literal` is that alone. `stable` normalises its input, adds the result to it and starts with
    `W_down = 0`, so that an untrained verbalizer followed by the final norm is the logit lens.
    """

    def __init__(self, width: int, variant: str) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(width, eps=1e-6) if variant == "stable" else None
        self.gate = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)
        if variant == "stable":
            nn.init.zeros_(self.down.weight)

    def forward(self, state: Tensor) -> Tensor:
        """[N, d] → [N, d]."""
        x = state if self.input_norm is None else self.input_norm(state)
        update = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return update if self.input_norm is None else state + update


class Verbalizers(nn.Module):
    """One verb-FFN per target layer of one model, none shared.

    Attributes:
        target_layers: the block indices, increasing.
    """

    def __init__(self, target_layers: Sequence[int], width: int, settings: VerbalizerSettings) -> None:
        super().__init__()
        self.target_layers = tuple(target_layers)
        self.variant = settings.variant
        self.ffns = nn.ModuleList(VerbFFN(width, settings.variant) for _ in target_layers)

    def forward(self, states: Sequence[Tensor], final_norm: nn.Module) -> list[Tensor]:
        """What each target layer gives the head.

        Args:
            states: one [N, d] tensor per target layer, a decoder block's output.
            final_norm: the backbone's; frozen. `literal` goes to the head without it.

        Returns:
            One [N, d] tensor per target layer, an input of the head.
        """
        verbalized = []
        for ffn, state in zip(self.ffns, states, strict=True):
            output = ffn(state.to(self.dtype))
            verbalized.append(final_norm(output) if self.variant == "stable" else output)
        return verbalized

    def only(self, layers: Sequence[int]) -> Verbalizers:
        """Those of some of the target layers; the verb-FFNs are the same objects."""
        with torch.device("meta"):
            chosen = Verbalizers(layers, self.width, VerbalizerSettings(variant=self.variant))
        chosen.ffns = nn.ModuleList(self.ffns[self.target_layers.index(layer)] for layer in layers)
        return chosen

    @property
    def width(self) -> int:
        """Hidden width d."""
        return self.ffns[0].gate.weight.shape[1]  # type: ignore[union-attr, index, return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def save(self, path: Path) -> None:
        """Write weights, target layers and variant as one safetensors file; the same ones give the same bytes."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        described = json.dumps({"target_layers": self.target_layers, "variant": self.variant})
        save_file(tensors, path, metadata={METADATA_KEY: described})

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Verbalizers:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            described = json.loads(file.metadata()[METADATA_KEY])
        tensors = load_file(path, device=str(device))
        width = tensors["ffns.0.gate.weight"].shape[0]
        with torch.device("meta"):
            settings = VerbalizerSettings(variant=described["variant"])
            verbalizers = cls(described["target_layers"], width, settings)
        verbalizers.load_state_dict(tensors, assign=True)
        return verbalizers
