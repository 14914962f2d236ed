"""A backbone: any VLM seen as inputs → decoder blocks → final norm → head.

Its parts are checked once: the blocks' last output through norm and head has to give the model's
own logits. From then on the head is applied to response positions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from stages.contract.job import StageError
from stages.contract.settings import BackbonePaths, ModelLoading
from stages.data.encoding import Batch
from stages.models.readout import Readout
from stages.models.structure import BY_STRUCTURE, find_parts, head_scale, split_revision

STRUCTURE_TOLERANCE = 1e-3
"""Relative difference allowed between the model's logits and blocks → norm → head."""
_PLACED_BY = {"mm_token_type_ids", "image_grid_thw"}
"""What decides on places along several axes; a rule that takes other inputs is left to the model."""


@dataclass(frozen=True)
class States:
    """Hidden states of N response positions.

    Attributes:
        targets: one [N, d] tensor per target layer, the output of that decoder block. What some decoders add
            behind a block to the pictures' positions (deepstack) never stands at a response token.
        last: [N, d], the input of the head.
    """

    targets: tuple[Tensor, ...]
    last: Tensor


class Backbone:
    """A loaded VLM with its decoder blocks, final norm and head.

    Attributes:
        dtype: that it was loaded in.
        readout: final norm and head.
    """

    def __init__(self, model: PreTrainedModel, by_hand: BackbonePaths = BY_STRUCTURE) -> None:
        """Find the parts of `model`.

        Raises:
            StageError: a part cannot be found, or the head is not linear; the message says what was looked for.
        """
        self.model = model
        self.dtype = model.dtype
        parts = find_parts(model, by_hand)
        self.blocks, self.norm, self.head = parts
        self.readout = Readout(self.norm, self.head, head_scale(model, parts))

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
        return cls(model.eval(), loading.backbone)

    @property
    def width(self) -> int:
        """Hidden width d."""
        return self.head.weight.shape[1]

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return next(self.model.get_input_embeddings().parameters()).device

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Where the model places the tokens of one sample, [axes, 1, T] int64; None where it counts them.

        Models that place a picture's tokens along several axes work that out anew in every forward pass, in Python,
        if they are not told.
        """
        rule = getattr(self.model.base_model, "get_rope_index", None)
        kinds = inputs.get("mm_token_type_ids")
        if rule is None or kinds is None or not set(signature(rule).parameters) >= _PLACED_BY:
            return None
        return rule(inputs["input_ids"], kinds, image_grid_thw=inputs.get("image_grid_thw"))[0]

    def states(self, batch: Batch, target_layers: Sequence[int]) -> States:
        """Hidden states at the batch's response positions, with gradient where it is enabled."""
        blocks = {layer: self.blocks[layer] for layer in target_layers}
        with collect_outputs(blocks) as outputs, _stop_before(self.head) as arrived:
            self.model(**batch.inputs, use_cache=False)
        (last,) = arrived
        self._check_shapes(outputs, last, batch.inputs["input_ids"])
        at = (batch.rows, batch.positions)
        return States(tuple(_pick(outputs[layer], at) for layer in target_layers), _pick(last, at))

    def _check_shapes(self, outputs: Mapping[int, Tensor], last: Tensor, tokens: Tensor) -> None:
        """One hidden state for each token, from every block and in front of the head."""
        expected = (*tokens.shape, self.width)
        for name, output in {**{f"block {n}": output for n, output in outputs.items()}, "the last": last}.items():
            if output.shape != expected:
                raise StageError(
                    f"{type(self.model).__name__}: its blocks do not give one state for each token: {name} gives "
                    f"{list(output.shape)}, expected {list(expected)}; a decoder with several streams of states, or "
                    "whose pictures are not tokens among the text's, cannot be verbalized"
                )

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
        weight, bias = self.readout.head_rows(own.shape[-1])
        ours = nn.functional.linear(self.norm(state), weight, bias).float()
        difference = ((own - ours).abs().max() / own.abs().max()).item()
        limit = STRUCTURE_TOLERANCE if own.dtype == state.dtype else 20 * STRUCTURE_TOLERANCE
        if not difference <= limit:
            raise StageError(
                f"{type(self.model).__name__}: blocks → norm → head differs from the model's logits: by "
                f"{difference:.2e} (relative), at most {limit} is allowed; something else happens between them, "
                "or a part is not what it was taken for: name it by hand with model.backbone.layers, .norm or .head"
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
def collect_outputs(blocks: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """What each block gives, by its key, while forward passes run; each pass replaces what the one before gave."""
    outputs: dict[int, Tensor] = {}

    def keep(layer: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    handles = [block.register_forward_hook(partial(keep, layer)) for layer, block in blocks.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _stop_before(head: nn.Module) -> Iterator[list[Tensor]]:
    """What arrives at the head, which itself gets no position to work on."""
    arrived: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        arrived.append(inputs[0])
        return (inputs[0][:, :0],)

    handle = head.register_forward_pre_hook(keep)
    try:
        yield arrived
    finally:
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
