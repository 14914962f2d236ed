"""A readout: final norm and head, all that turns a hidden state into a distribution over words.

A stage that needs what a teacher's layer says, but not the teacher, needs only this. Capture keeps
the teacher's readout beside its states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig
from transformers.utils import logging

from stages.contract.settings import ModelLoading
from stages.losses.divergence import Head
from stages.models.structure import find_parts, head_scale, skeleton, split_revision

READOUT_FILE = "readout.safetensors"
SCALE = "scale"
"""Of the readout file's tensors, the one beside those of norm and head."""


class Readout:
    """Final norm and head of one model, frozen.

    Attributes:
        scale: what the model multiplies the head's output by; it is folded into the rows of the head.
    """

    def __init__(self, norm: nn.Module, head: nn.Linear, scale: float = 1.0) -> None:
        """Both modules stay the model's own; nothing is copied."""
        self.norm = norm
        self.head = head
        self.scale = scale

    def head_rows(self, vocabulary: int) -> Head:
        """The head's rows of the `vocabulary` real token ids, without gradient; padding rows are left out."""
        weight, bias = self.trained_head()
        return Head(weight.detach()[:vocabulary], None if bias is None else bias.detach()[:vocabulary])

    def trained_head(self) -> Head:
        """All rows of the head, with gradient."""
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        if self.scale == 1:
            return Head(weight, bias)
        return Head(self.scale * weight, None if bias is None else self.scale * bias)

    def save(self, folder: Path, config: PretrainedConfig) -> None:
        """Write `readout.safetensors`, and the model's `config.json` to rebuild the modules from."""
        config.save_pretrained(folder)
        parts = {"norm": self.norm, "head": self.head}
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        save_file(tensors | {SCALE: torch.tensor(self.scale, dtype=torch.float64)}, folder / READOUT_FILE)

    @classmethod
    def load(cls, folder: Path, loading: ModelLoading) -> Readout:
        """Read what `save` wrote; the rest of the model is never built."""
        _, norm, head = find_parts(skeleton(str(folder), loading), loading.backbone)
        tensors = load_file(folder / READOUT_FILE)
        _fill(norm, tensors, "norm")
        _fill(head, tensors, "head")
        return cls(norm, head, tensors[SCALE].item())

    @classmethod
    def of_checkpoint(cls, place: str, loading: ModelLoading) -> Readout:
        """Read norm and head of a checkpoint (a folder or hub id), and of its decoder no more than one block."""
        name, revision = split_revision(place)
        trust = loading.trust_remote_code
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust)
        config.get_text_config().num_hidden_layers = 1
        with _without_load_report():
            model = AutoModelForImageTextToText.from_pretrained(
                name, revision=revision, config=config, dtype=getattr(torch, loading.dtype), trust_remote_code=trust
            )
        parts = find_parts(model, loading.backbone)
        scale = head_scale(model, parts)
        return cls(parts.norm.requires_grad_(False), parts.head.requires_grad_(False), scale)

    def to(self, device: torch.device) -> Readout:
        """The same readout with its weights on another device."""
        return Readout(self.norm.to(device), self.head.to(device), self.scale)


def save_head(head: Head, path: Path) -> None:
    """Write a head's rows."""
    tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    save_file({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def load_head(path: Path, device: torch.device) -> Head:
    """Read what `save_head` wrote."""
    tensors = load_file(path, device=str(device))
    return Head(tensors["weight"], tensors.get("bias"))


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Transformers lists every weight of the other blocks as unexpected, which here it is not."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _fill(module: nn.Module, tensors: dict[str, Tensor], part: str) -> None:
    prefix = f"{part}."
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False)
