"""Where a VLM keeps its decoder blocks, final norm and head: found by structure, not by class name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from stages.contract.artifact import folder_of
from stages.contract.job import StageError
from stages.contract.place import Remote, local_copy, place_of
from stages.contract.settings import ModelLoading


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


def find_head(model: PreTrainedModel) -> nn.Linear:
    """The linear map from the final hidden state to the vocabulary."""
    head = model.get_output_embeddings()
    if not isinstance(getattr(head, "weight", None), Tensor) or head.weight.ndim != 2:
        raise StageError(f"{type(model).__name__}: get_output_embeddings() gives no linear head but {head!r}")
    return head


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks: the text decoder's list of `num_hidden_layers` modules."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList)]
    fitting = [blocks for blocks in lists if len(blocks) == count]
    if len(fitting) != 1:
        raise StageError(
            f"{type(model).__name__}: expected one list of {count} decoder blocks in "
            f"{type(model.get_decoder()).__name__}, found lists of {[len(blocks) for blocks in lists]}"
        )
    return fitting[0]


def find_norm(model: PreTrainedModel) -> nn.Module:
    """The final norm: the decoder's own child with one weight vector of the hidden width."""
    width = find_head(model).weight.shape[1]
    fitting = [
        (name, child)
        for name, child in model.get_decoder().named_children()
        if [tuple(parameter.shape) for parameter in child.parameters()] in ([(width,)], [(width,), (width,)])
    ]
    if len(fitting) != 1:
        raise StageError(
            f"{type(model).__name__}: expected one final norm of width {width} in "
            f"{type(model.get_decoder()).__name__}, found {[name for name, _ in fitting]}"
        )
    return fitting[0][1]
