"""Models as sizes: what a checkpoint's `config.json` says of parameters and operations.

A product of matrices [n, k] and [k, m] counts as 2 n k m operations; whatever else a model computes is
not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisionSize:
    """A vision tower with what leads from it to the decoder.

    Attributes:
        layers, width, mlp_width: of its blocks.
        parameters: all of them, the connector's included.
        patch_numbers: pixels that make up one patch, over channels and frames.
        connector_products: weights that an image token is multiplied with on its way to the decoder.
        picture_tokens, picture_patches: of a picture of 640 x 480 pixels.
        attended_patches: that attend to each other; None for all of a picture.
    """

    layers: int
    width: int
    mlp_width: int
    parameters: int
    patch_numbers: int
    connector_products: int
    picture_tokens: int
    picture_patches: int
    attended_patches: int | None = None

    def forward_flops(self, patches: float, patches_per_picture: float, image_tokens: float) -> float:
        """Embedding, blocks and connector; a patch attends to those of its own picture."""
        block = 4 * self.width**2 + 2 * self.width * self.mlp_width
        weights = patches * (self.patch_numbers * self.width + self.layers * block)
        attention = 2 * self.layers * patches * patches_per_picture * self.width
        return 2 * (weights + attention + image_tokens * self.connector_products)


@dataclass(frozen=True)
class ModelSize:
    """A vision language model: a decoder of the Qwen2 kind behind a vision tower.

    Attributes:
        layers, width, mlp_width, heads, key_value_heads: of the decoder.
        rows: of embedding and head, padding included.
        tokens: real token ids, as far as the configuration says; else as many as there are rows.
        tied: whether the head is the embedding.
        vision: its vision tower.
    """

    layers: int
    width: int
    mlp_width: int
    heads: int
    key_value_heads: int
    rows: int
    tokens: int
    tied: bool
    vision: VisionSize

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelSize:
        """Read a checkpoint's `config.json`; the decoder's settings stand in `text_config` or at the top.

        Raises:
            ValueError: the architecture is not known.
        """
        readers = {"qwen2_vl": _qwen2_vl_tower, "llava_onevision": _siglip_tower}
        kind = config.get("model_type")
        if kind not in readers:
            raise ValueError(f"model_type {kind!r} cannot be planned; known: {', '.join(readers)}")
        text = config.get("text_config") or config
        return cls(
            layers=text["num_hidden_layers"],
            width=text["hidden_size"],
            mlp_width=text["intermediate_size"],
            heads=text["num_attention_heads"],
            key_value_heads=text["num_key_value_heads"],
            rows=text["vocab_size"],
            tokens=config.get("tokens", text["vocab_size"]),
            tied=config.get("tie_word_embeddings") or text.get("tie_word_embeddings") or False,
            vision=readers[kind](config["vision_config"], text["hidden_size"]),
        )

    @property
    def key_value_width(self) -> int:
        """Of one token's keys, and of its values."""
        return self.width // self.heads * self.key_value_heads

    @property
    def block_products(self) -> int:
        """Weights of a decoder block that a token is multiplied with."""
        attention = 2 * self.width**2 + 2 * self.width * self.key_value_width
        return attention + 3 * self.width * self.mlp_width

    @property
    def block_parameters(self) -> int:
        """Of one decoder block: the products, biases of query, key and value, two norms."""
        return self.block_products + self.width + 2 * self.key_value_width + 2 * self.width

    @property
    def head_parameters(self) -> int:
        """Of the head, which may be the embedding."""
        return self.rows * self.width

    @property
    def word_parameters(self) -> int:
        """Of embedding and head together."""
        return self.head_parameters * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.layers * self.block_parameters + self.width + self.word_parameters + self.vision.parameters

    def lora_parameters(self, rank: int) -> int:
        """Of adapters on all linear layers of all decoder blocks."""
        ends = 9 * self.width + 2 * self.key_value_width + 3 * self.mlp_width
        return self.layers * rank * ends

    def verbalizer_parameters(self, targets: int) -> int:
        """Of one verb-FFN for each target layer: three square matrices and a norm."""
        return targets * (3 * self.width**2 + self.width)

    def decoder_flops(self, tokens: float, tokens_per_sample: float) -> float:
        """All blocks, forward. A token attends to all of its sample: the mask that cuts off half saves nothing."""
        return 2 * self.layers * tokens * (self.block_products + 2 * tokens_per_sample * self.width)


def _qwen2_vl_tower(config: Mapping[str, Any], width: int) -> VisionSize:
    """Blocks with fused query-key-value; four neighbouring patches become one token in the merger.

    A picture keeps its shape: 640 x 480 pixels are rounded to 23 x 17 squares of 28 pixels, a token each.
    """
    layers, own = config.get("depth", 32), config.get("embed_dim", 1280)
    mlp = own * config.get("mlp_ratio", 4)
    channels = config.get("in_channels", config.get("in_chans", 3))
    patch = config.get("patch_size", 14) ** 2 * config.get("temporal_patch_size", 2) * channels
    merged = own * config.get("spatial_merge_size", 2) ** 2
    block = 4 * own**2 + 4 * own + 2 * own * mlp + mlp + own + 4 * own
    merger = merged**2 + merged * width
    return VisionSize(
        layers=layers,
        width=own,
        mlp_width=mlp,
        parameters=patch * own + layers * block + merger + merged + width + 2 * own,
        patch_numbers=patch,
        connector_products=merger,
        picture_tokens=23 * 17,
        picture_patches=46 * 34,
    )


def _siglip_tower(config: Mapping[str, Any], width: int) -> VisionSize:
    """SigLIP without its pooling head, two linear layers to the decoder, one vector that ends a row of patches.

    A picture is seen whole and in tiles: 640 x 480 pixels in 2 x 2 of them, of whose 54 rows of patches 40
    show the picture.
    """
    layers, own, mlp = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    patch = config["patch_size"] ** 2 * config.get("num_channels", 3)
    positions = (config["image_size"] // config["patch_size"]) ** 2
    block = 4 * own**2 + 4 * own + 2 * own * mlp + mlp + own + 4 * own
    projector = own * width + width**2
    return VisionSize(
        layers=layers,
        width=own,
        mlp_width=mlp,
        parameters=patch * own + own + positions * own + layers * block + 2 * own + projector + 2 * width + width,
        patch_numbers=patch,
        connector_products=projector,
        picture_tokens=positions + 40 * (54 + 1),
        picture_patches=5 * positions,
        attended_patches=positions,
    )
