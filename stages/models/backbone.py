"""A backbone: any VLM seen as inputs → decoder blocks → final norm → head.

Its parts are checked once: the blocks' last output through norm and head has to give the model's
own logits. From then on the head is applied to response positions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from stages.contract.job import StageError
from stages.contract.settings import ModelLoading
from stages.data.encoding import Batch
from stages.models.readout import Readout
from stages.models.structure import find_blocks, find_head, find_norm, split_revision

STRUCTURE_TOLERANCE = 1e-3
"""Relative difference allowed between the model's logits and blocks → norm → head."""


@dataclass(frozen=True)
class States:
    """Hidden states of N response positions.

    Attributes:
        targets: one [N, d] tensor per target layer, the output of that decoder block.
        last: [N, d], the input of the head.
    """

    targets: tuple[Tensor, ...]
    last: Tensor


class Backbone:
    """A loaded VLM with its decoder blocks, final norm and head.

    Attributes:
        dtype: that it was loaded in.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the parts of `model`.

        Raises:
            StageError: a part cannot be found; the message says what was looked for.
        """
        self.model = model
        self.dtype = model.dtype
        self.blocks = find_blocks(model)
        self.norm = find_norm(model)
        self.head = find_head(model)

    @classmethod
    def load(cls, place: str, loading: ModelLoading, device: torch.device | None = None) -> Backbone:
        """Load a checkpoint folder or hub id (`id` or `id@revision`) as any user of transformers would.

        It goes where `loading.device_map` says, else to `device`, else to the first GPU, else to the CPU.
        """
        name, revision = split_revision(place)
        model = AutoModelForImageTextToText.from_pretrained(
            name,
            revision=revision,
            dtype=getattr(torch, loading.dtype),
            attn_implementation=loading.attn_implementation,
            device_map=loading.device_map,
            quantization_config=_quantization(loading),
            trust_remote_code=loading.trust_remote_code,
        )
        placed = loading.device_map is not None or loading.quantization is not None
        if not placed:
            model.to(device or default_device())  # type: ignore[arg-type]
        return cls(model.eval())

    @property
    def readout(self) -> Readout:
        """Final norm and head."""
        return Readout(self.norm, self.head)

    @property
    def width(self) -> int:
        """Hidden width d."""
        return self.head.weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return next(self.model.get_input_embeddings().parameters()).device

    def states(self, batch: Batch, target_layers: Sequence[int]) -> States:
        """Hidden states at the batch's response positions, with gradient where it is enabled."""
        with _collect(self.blocks, target_layers) as outputs:
            last = self.model.base_model(**batch.inputs, use_cache=False).last_hidden_state
        at = (batch.rows, batch.positions)
        return States(tuple(_pick(outputs[layer], at) for layer in target_layers), _pick(last, at))

    @torch.no_grad()
    def check(self, batch: Batch) -> float:
        """Compare blocks → norm → head with the model's own logits.

        Returns:
            The largest difference relative to the largest logit.

        Raises:
            StageError: they differ by more than `STRUCTURE_TOLERANCE`.
        """
        own = _pick(self.model(**batch.inputs, use_cache=False).logits, (batch.rows, batch.positions)).float()
        state = self.states(batch, [len(self.blocks) - 1]).targets[0]
        ours = self.head(self.norm(state)).float()
        difference = ((own - ours).abs().max() / own.abs().max()).item()
        limit = STRUCTURE_TOLERANCE if own.dtype == state.dtype else 20 * STRUCTURE_TOLERANCE
        if not difference <= limit:
            raise StageError(
                f"{type(self.model).__name__}: blocks → norm → head differs from the model's logits by "
                f"{difference:.2e} (relative), at most {limit} is allowed; a scaled or "
                "soft-capped head cannot be verbalized with the `moment` codec"
            )
        return difference


def load_processor(place: str, loading: ModelLoading) -> Any:
    """The checkpoint's own processor."""
    name, revision = split_revision(place)
    return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=loading.trust_remote_code)


def default_device() -> torch.device:
    """This process's first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _collect(blocks: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    outputs: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [blocks[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _pick(states: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
    return states[at[0].to(states.device), at[1].to(states.device)]


def _quantization(loading: ModelLoading) -> Any:
    if loading.quantization is None:
        return None
    from transformers import BitsAndBytesConfig

    if loading.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=getattr(torch, loading.dtype))
