"""Tiny random models of any image-text-to-text family of transformers, and a picture with two texts for them.

A family's own default configuration is shrunk by the names of its fields. Pictures are tensors in the
shape that the family's processor would give them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from stages.data.encoding import Batch

WORDS = 128
IMAGE_TOKEN = WORDS - 1
LAYERS = 4
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 12,
}
ANYWHERE = {
    "max_position_embeddings": 512,
    **dict.fromkeys(("num_experts", "n_routed_experts", "moe_num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"), 32),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("depth", "linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("out_hidden_size", "projector_hidden_size", "projection_hidden_size"), 64),
    **dict.fromkeys(("text_hidden_size", "projection_dim", "adapter_out_dim"), 64),
    **dict.fromkeys(("alignment_intermediate_size", "mlp_dim", "ffn_dim"), 32),
    **dict.fromkeys(("encoder_hidden_size", "embed_dim"), 48),
    **dict.fromkeys(("d_model", "d_kv", "d_ff"), 48),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "shared_experts_intermediate_size"), 32),
    **dict.fromkeys(("linear_num_heads", "index_n_heads"), 2),
    **dict.fromkeys(("linear_head_dim", "index_head_dim"), 32),
    "vocab_size_per_layer_input": WORDS,
    "output_dim": 64,
    "num_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "sliding_window": 64,
}
"""Sizes by the name of a configuration's field; None stays None."""
PICTURE_FIELDS = {"image_token_id", "image_token_index", "image_patch_id"}
"""Fields with the token that stands for a picture."""
PER_LAYER = ("layer_types", "mlp_layer_types", "per_layer_config", "id2label", "label2id")
"""Fields that a configuration makes itself for its number of layers."""
GRID = torch.tensor([[1, 4, 4]])
"""Patches of a picture in time, height and width."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """What a family needs beside its shrunk configuration.

    Attributes:
        changes: fields of its configuration, nested as there.
        picture: the tensors of one picture; None makes them from the signature of `forward`.
        tokens: image tokens of that picture; None asks `get_image_features`.
        tower: another vision tower, for a family whose own needs a package that is not installed.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    picture: Callable[[], Inputs] | None = None
    tokens: int | None = None
    tower: PreTrainedConfig | None = None


def build(name: str, family: Family, seed: int = 0) -> PreTrainedModel:
    """A random model of the family, in evaluation mode."""
    settings = CONFIG_MAPPING[name]
    values = merge(shrink(settings().to_dict(), ANYWHERE | TEXT), family.changes)
    config = settings.from_dict({key: value for key, value in values.items() if key != "model_type"})
    if family.tower:
        vars(config)["vision_config"] = family.tower
    torch.manual_seed(seed)
    return AutoModelForImageTextToText.from_config(config).eval()


def shrink(config: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """The same configuration with small sizes and token ids."""
    small = {}
    for name, value in config.items():
        if name in PER_LAYER:
            continue
        if isinstance(value, dict) and "model_type" in value:
            small[name] = shrink(value, ANYWHERE | (TEXT if name in ("text_config", "decoder") else VISION))
        elif name in PICTURE_FIELDS:
            small[name] = IMAGE_TOKEN
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int):
            small[name] = 3 + len(small) % 20
        else:
            small[name] = sizes[name] if name in sizes and isinstance(value, int) else value
    if "mrope_section" in (small.get("rope_parameters") or {}):
        small["rope_parameters"] = small["rope_parameters"] | {"mrope_section": [8, 4, 4]}
    return small


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes` at their places."""
    merged = dict(values)
    for name, change in changes.items():
        both = isinstance(change, dict) and isinstance(values.get(name), dict)
        merged[name] = merge(values[name], change) if both else change
    return merged


def batch_of(family: Family, model: PreTrainedModel) -> Batch:
    """A text with a picture, and a shorter text alone."""
    accepted = inspect.signature(type(model).forward).parameters
    picture = family.picture() if family.picture else picture_for(model)
    count = count_tokens(model, picture) if family.tokens is None else family.tokens
    words = torch.randint(30, 100, (18,), generator=torch.Generator().manual_seed(1))
    length = 10 + count
    ids = torch.full((2, length), 30)
    ids[0] = torch.cat([words[:3], torch.full((count,), IMAGE_TOKEN), words[3:10]])
    ids[1, :8] = words[10:]
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, **picture}
    for kinds in {"mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"} & accepted.keys():
        inputs[kinds] = (ids == IMAGE_TOKEN).long()
    rows = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    positions = torch.tensor([*range(length - 5, length - 1), 4, 5, 6])
    return Batch(("picture", "text"), inputs, rows, positions, ids[rows, positions + 1])


def picture_for(model: PreTrainedModel) -> Inputs:
    """One picture: flattened patches where the model takes grids, else pixels."""
    vision = getattr(model.config, "vision_config", model.config)
    accepted = inspect.signature(type(model).forward).parameters
    if "image_grid_thw" in accepted:
        channels = getattr(vision, "in_channels", getattr(vision, "num_channels", 3))
        width = channels * getattr(vision, "temporal_patch_size", 1) * vision.patch_size**2
        return {"pixel_values": noise(16, width), "image_grid_thw": GRID}
    sizes = {"image_sizes": torch.tensor([[28, 28]])} if "image_sizes" in accepted else {}
    return {"pixel_values": noise(1, 3, 28, 28), **sizes}


@torch.no_grad()
def count_tokens(model: PreTrainedModel, picture: Inputs) -> int:
    """How many positions the picture takes."""
    look = (model.base_model if hasattr(model.base_model, "get_image_features") else model).get_image_features
    accepted = inspect.signature(look).parameters
    features = look(**{name: tensor for name, tensor in picture.items() if name in accepted or "args" in accepted})
    pooled = features if isinstance(features, list | tuple) else features.pooler_output
    pooled = features.last_hidden_state if pooled is None else pooled
    return sum(part.numel() // part.shape[-1] for part in ([pooled] if torch.is_tensor(pooled) else pooled))


def pixels(*shape: int, **others: Tensor) -> Callable[[], Inputs]:
    """A picture of another shape, with what the model takes beside it."""
    return lambda: {"pixel_values": noise(*shape), **others}


def noise(*shape: int) -> Tensor:
    """The same numbers at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
