"""A readout: final norm and head, all that turns a hidden state into a distribution over words.

A stage that needs what a teacher's layer says, but not the teacher, needs only this. Capture keeps
the teacher's readout beside its states.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.contract.settings import ModelLoading
from stages.models.structure import find_head, find_norm, skeleton

READOUT_FILE = "readout.safetensors"


class Readout:
    """Final norm and head of one model, frozen."""

    def __init__(self, norm: nn.Module, head: nn.Linear) -> None:
        """Both modules stay the model's own; nothing is copied."""
        self.norm = norm
        self.head = head

    def weight(self, vocabulary: int) -> Tensor:
        """[V, d], the head's rows of the real token ids; padding rows are left out."""
        return self.head.weight.detach()[:vocabulary]

    def bias(self, vocabulary: int) -> Tensor | None:
        """[V], the head's bias at the real token ids, or None."""
        bias = getattr(self.head, "bias", None)
        return None if bias is None else bias.detach()[:vocabulary]

    def save(self, folder: Path) -> None:
        """Write `readout.safetensors`."""
        parts = {"norm": self.norm, "head": self.head}
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        save_file(tensors, folder / READOUT_FILE)

    @classmethod
    def load(cls, folder: Path, place: str, loading: ModelLoading) -> Readout:
        """Rebuild the readout kept in `folder` with the modules that the checkpoint at `place` has."""
        model = skeleton(place, loading)
        tensors = load_file(folder / READOUT_FILE)
        return cls(*(_filled(find(model), tensors, part) for part, find in (("norm", find_norm), ("head", find_head))))

    def to(self, device: torch.device) -> Readout:
        """The same readout with its weights on another device."""
        return Readout(self.norm.to(device), self.head.to(device))


def _filled(module: nn.Module, tensors: dict[str, Tensor], part: str) -> nn.Module:
    prefix = f"{part}."
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False)
