"""Where a VLM keeps its decoder blocks, final norm and head: found by structure, not by class name.

Blocks are the one outermost list of `num_hidden_layers` modules, the norm is the module beside them
whose only parameters are vectors of the head's width. What cannot be told apart this way is refused
with what was looked for, and can be named by hand (`model.backbone.layers`, `.norm`, `.head`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from stages.contract.artifact import folder_of
from stages.contract.job import StageError
from stages.contract.place import Remote, local_copy, place_of
from stages.contract.settings import BackbonePaths, ModelLoading

PROBE = 1000.0
"""Outputs of a head that are tried reach from -PROBE to PROBE: soft-capping has to show."""
PROBE_TOLERANCE = 1e-2
"""Relative deviation from a scaled output that a model may round to."""
EXAMPLES = {"layers": "model.language_model.layers", "norm": "model.language_model.norm", "head": "lm_head"}
"""What naming a part by hand looks like."""
BY_STRUCTURE = BackbonePaths()
"""Nothing is named by hand."""


class Parts(NamedTuple):
    """Where hidden states leave a decoder and become logits."""

    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Linear


def split_revision(place: str) -> tuple[str, str | None]:
    """Name and revision of a folder, a hub id, or `id@revision`; what lies in an object store is copied here."""
    if isinstance(place_of(place), Remote):
        return str(local_copy(folder_of(place))), None
    name, _, revision = (place, "", "") if Path(place).exists() else place.partition("@")
    return name, revision or None


def skeleton(place: str, loading: ModelLoading) -> PreTrainedModel:
    """The model's structure without its weights (on the meta device)."""
    name, revision = split_revision(place)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=loading.trust_remote_code)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=loading.trust_remote_code)


def find_parts(model: PreTrainedModel, by_hand: BackbonePaths) -> Parts:
    """Decoder blocks, final norm and head; those named `by_hand` are taken as named.

    Raises:
        StageError: a part is not there or cannot be told from others; the message says what was looked for.
    """
    if model.config.is_encoder_decoder:
        raise StageError(
            f"{type(model).__name__}: it is an encoder-decoder; prompt and response have to be one sequence"
        )
    head = _find_head(model, by_hand.head)
    blocks = _find_blocks(model, by_hand.layers)
    norm = _find_norm(model, by_hand.norm, blocks, width=head.weight.shape[1])
    return Parts(blocks, norm, head)


@torch.no_grad()
def head_scale(model: PreTrainedModel, parts: Parts) -> float:
    """What the model multiplies the head's output by.

    It is asked, on one token, without its blocks, and with known numbers in place of the head's
    output. Names in a configuration do not tell: of two families with `logits_scaling` one divides
    by it and one multiplies, and Cohere's VLMs leave out the `logit_scale` of their language model.

    Raises:
        StageError: it does something else to the output, such as soft-capping.
    """
    probe = torch.linspace(-PROBE, PROBE, parts.head.weight.shape[0])
    answer = _answer(model, parts, probe)
    probe = probe[: len(answer)]
    scale = (answer[0] / probe[0]).item()
    errors = (answer - scale * probe).abs()
    if not (errors <= PROBE_TOLERANCE * (1 + (scale * probe).abs())).all():
        worst = int(errors.argmax())
        raise StageError(
            f"{type(model).__name__}: its head is not linear: where the head gives {probe[0]:.0f} and "
            f"{probe[worst]:.0f}, the model makes {answer[0]:.4g} and {answer[worst]:.4g} of it, as a final "
            "soft-capping or a mask of some words does; verbalizers, all codecs and all losses need logits that are "
            "a linear map of the hidden state, so take another model"
        )
    return scale


def _answer(model: PreTrainedModel, parts: Parts, probe: Tensor) -> Tensor:
    """[V or less] float32: the model's logits where its head gives `probe`."""
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.get_input_embeddings().parameters()).device)
    handle = parts.head.register_forward_hook(lambda _head, _, output: probe.to(output.device).repeat(1, 1, 1))
    try:
        with _without_blocks(parts.blocks):
            logits = model(input_ids=token, attention_mask=torch.ones_like(token), use_cache=False).logits
    except Exception as error:
        raise StageError(f"{type(model).__name__}: it cannot be run on a text without a picture: {error}") from error
    finally:
        handle.remove()
    return logits[0, -1].float().cpu()


@contextmanager
def _without_blocks(blocks: nn.ModuleList) -> Iterator[None]:
    kept = list(blocks)
    del blocks[:]
    try:
        yield
    finally:
        blocks.extend(kept)


def _find_head(model: PreTrainedModel, by_hand: str | None) -> nn.Linear:
    """The linear map from the final hidden state to the vocabulary, if need be the only one to so many words."""
    if by_hand:
        return cast(nn.Linear, _named(model, by_hand, "head"))
    head = model.get_output_embeddings()
    if isinstance(getattr(head, "weight", None), Tensor):
        return cast(nn.Linear, head)
    words = model.config.get_text_config().vocab_size
    fitting = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == words}
    if len(fitting) != 1:
        raise _not_found(model, "head", f"linear map to {words} words", list(fitting))
    return next(iter(fitting.values()))


def _find_blocks(model: PreTrainedModel, by_hand: str | None) -> nn.ModuleList:
    """The text decoder's outermost list of `num_hidden_layers` modules."""
    if by_hand:
        return cast(nn.ModuleList, _named(model, by_hand, "layers"))
    count = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder()
    lists = _outermost_lists(decoder)
    fitting = [blocks for blocks in lists.values() if len(blocks) == count]
    if len(fitting) != 1:
        found = [f"{name} of {len(blocks)}" for name, blocks in lists.items()]
        raise _not_found(model, "layers", f"list of {count} decoder blocks in {type(decoder).__name__}", found)
    return fitting[0]


def _outermost_lists(module: nn.Module) -> dict[str, nn.ModuleList]:
    """Module lists by dotted name, without those inside of another list."""
    found: dict[str, nn.ModuleList] = {}
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(child, nn.ModuleList) and not inside:
            found[name] = child
    return found


def _find_norm(model: PreTrainedModel, by_hand: str | None, blocks: nn.ModuleList, width: int) -> nn.Module:
    """The one module beside the blocks whose parameters are one or two vectors of the hidden width."""
    if by_hand:
        return _named(model, by_hand, "norm")
    owner = next(module for module in model.modules() if any(child is blocks for child in module.children()))
    beside = dict(owner.named_children())
    fitting = [child for child in beside.values() if _shapes(child) in ([(width,)], [(width,), (width,)])]
    if len(fitting) == 1:
        return fitting[0]
    found = [f"{name} ({type(child).__name__})" for name, child in beside.items()]
    raise _not_found(model, "norm", f"norm of width {width} beside the blocks in {type(owner).__name__}", found)


def _shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]


def _named(model: PreTrainedModel, path: str, field: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise StageError(f"model.backbone.{field}: {type(model).__name__} has no module `{path}` ({error})") from error


def _not_found(model: PreTrainedModel, field: str, wanted: str, found: list[str]) -> StageError:
    parts = {"layers": "decoder blocks", "norm": "final norm", "head": "head"}
    return StageError(
        f"{type(model).__name__}: its {parts[field]} cannot be told by structure: expected one {wanted}, found "
        f"{', '.join(found) or 'none'}; name it by hand with model.backbone.{field}, a dotted path such as "
        f"`{EXAMPLES[field]}`"
    )
