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
from stages.models.structure import find_head, find_norm, skeleton, split_revision

READOUT_FILE = "readout.safetensors"


class Readout:
    """Final norm and head of one model, frozen."""

    def __init__(self, norm: nn.Module, head: nn.Linear) -> None:
        """Both modules stay the model's own; nothing is copied."""
        self.norm = norm
        self.head = head

    def head_rows(self, vocabulary: int) -> Head:
        """The head's rows of the `vocabulary` real token ids, without gradient; padding rows are left out."""
        bias = getattr(self.head, "bias", None)
        return Head(self.head.weight.detach()[:vocabulary], None if bias is None else bias.detach()[:vocabulary])

    def trained_head(self) -> Head:
        """All rows of the head, with gradient."""
        return Head(self.head.weight, getattr(self.head, "bias", None))

    def save(self, folder: Path, config: PretrainedConfig) -> None:
        """Write `readout.safetensors`, and the model's `config.json` to rebuild the modules from."""
        config.save_pretrained(folder)
        parts = {"norm": self.norm, "head": self.head}
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        save_file(tensors, folder / READOUT_FILE)

    @classmethod
    def load(cls, folder: Path, loading: ModelLoading) -> Readout:
        """Read what `save` wrote; the rest of the model is never built."""
        model = skeleton(str(folder), loading)
        tensors = load_file(folder / READOUT_FILE)
        norm, head = find_norm(model), find_head(model)
        _fill(norm, tensors, "norm")
        _fill(head, tensors, "head")
        return cls(norm, head)

    @classmethod
    def of_checkpoint(cls, place: str, loading: ModelLoading) -> Readout:
        """Read norm and head of a checkpoint (a folder or hub id), and of its decoder no more than one block."""
        name, revision = split_revision(place)
        trust = loading.trust_remote_code
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust)
        text = config.get_text_config()
        text.num_hidden_layers = 1
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:1]
        with _without_load_report():
            model = AutoModelForImageTextToText.from_pretrained(
                name, revision=revision, config=config, dtype=getattr(torch, loading.dtype), trust_remote_code=trust
            )
        norm, head = find_norm(model).requires_grad_(False), find_head(model).requires_grad_(False)
        return cls(norm, head)

    def to(self, device: torch.device) -> Readout:
        """The same readout with its weights on another device."""
        return Readout(self.norm.to(device), self.head.to(device))


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
