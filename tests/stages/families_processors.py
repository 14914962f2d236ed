"""The families' own processors, made small and offline: a tiny tokenizer with every token that they look for.

The model's configuration takes over how many tokens there are, and which of them stands for a picture.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from stages.models.scratch import CHAT_TEMPLATE, IMAGE_TOKEN, build_processor
from tests.stages.families import FAMILIES
from tests.stages.families_build import PICTURE_FIELDS, Family, merge
from tests.stages.tiny import CORPUS

NAMED = {
    "bos_token": "<bos>",
    "image_token": "<image>",
    "video_token": "<video>",
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
    "image_start_token": "[IMG_START]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
    "video_start_token": "[VIDEO_START]",
    "video_end_token": "[VIDEO_END]",
}
"""Tokens that processors ask the tokenizer for by name."""
SPELLED = [
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE_GLOBAL"),
    *("<IMG_START>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
    *("[IMG]", "<imgpad>", "]<]image[>[", "]<]start of image[>[", "]<]end of image[>["),
    *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
    *("<im_patch>", "<im_start>", "<im_end>", "<im_col>", "<im_low>", "<low_res_im_start>"),
]
"""Tokens that processors spell out."""


@dataclass(frozen=True)
class Own:
    """What a family's own processor needs.

    Attributes:
        images: options of its image processor.
        options: other options of the processor.
        repeated: the token that is repeated for a picture, where the processor's `image_token` is another.
        changes: fields of the model's configuration beside those in `FAMILIES`, nested as there.
        text_alone: False if a batch needs pictures in every text.
    """

    images: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    repeated: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    text_alone: bool = True


def square(side: int) -> dict[str, int]:
    """A size in pixels."""
    return {"height": side, "width": side}


QWEN = Own({"size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}})
CLIP = {"size": {"shortest_edge": 28}, "crop_size": square(28)}
PATCHED = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
ANYRES = Own(CLIP | {"image_grid_pinpoints": [[28, 28], [28, 56]]}, PATCHED)
PIXTRAL = Own(
    {"size": {"longest_edge": 56}, "patch_size": square(7)},
    {"patch_size": 7, "spatial_merge_size": 2},
    changes={"vision_config": {"image_size": 56, "patch_size": 7}},
)

OWN: dict[str, Own] = {
    "aria": Own(
        options={"size_conversion": {980: 2}},
        changes={"projector_patch_to_query_dict": {"49": 2}, "vision_config": {"image_size": 980, "patch_size": 140}},
    ),
    "aya_vision": Own(
        {"size": square(28)}, {"img_size": 28, "patch_size": 14, "downsample_factor": 2}, "<|IMG_PATCH|>"
    ),
    "cohere2_vision": Own({"size": square(28), "patch_size": 1}),
    "deepseek_ocr2": Own(),
    "deepseek_vl": Own({"size": square(28)}, {"num_image_tokens": 4}),
    "deepseek_vl_hybrid": Own({"size": square(28), "high_res_size": square(64)}, {"num_image_tokens": 4}),
    "ernie4_5_vl_moe": QWEN,
    "exaone4_5": QWEN,
    "gemma3": Own({"size": square(28)}, {"image_seq_length": 4}, "<image>"),
    "glm46v": QWEN,
    "glm4v": QWEN,
    "glm4v_moe": QWEN,
    "got_ocr2": Own(
        {"size": square(64)}, changes={"vision_config": {"image_size": 64, "patch_size": 1}}, text_alone=False
    ),
    "granite4_vision": Own(
        {"size": {"shortest_edge": 56}, "crop_size": square(56), "image_grid_pinpoints": [[56, 56]]},
        PATCHED | {"downsample_rate": "1/2"},
    ),
    "hyperclovax_vision_v2": QWEN,
    "idefics3": Own({"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}}, {"image_seq_len": 4}),
    "internvl": Own({"size": square(28)}, {"image_seq_length": 1}),
    "janus": Own({"size": square(28)}, {"num_image_tokens": 4}),
    "kimi_k25": Own(),
    "lfm2_vl": Own({"encoder_patch_size": 14, "tile_size": 56, "min_image_tokens": 1, "max_image_tokens": 4}),
    "lfm3_vl": QWEN,
    "lighton_ocr": PIXTRAL,
    "llava": Own(CLIP, PATCHED),
    "llava_next": ANYRES,
    "llava_next_video": ANYRES,
    "llava_onevision": Own(
        {"size": square(28), "image_grid_pinpoints": [[28, 28], [28, 56]]},
        {"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
    ),
    "minimax_m3_vl": QWEN,
    "mistral3": PIXTRAL,
    "mllama": Own({"size": square(28), "max_image_tiles": 4}, text_alone=False),
    "molmo2": Own(
        {"size": square(56), "overlap_margins": [0, 0], "max_crops": 1},
        {},
        "<im_patch>",
        {"vision_config": {"image_size": [56, 56], "num_position_embeddings": 16}},
    ),
    "ovis2": Own({"size": square(28)}, {"image_seq_length": 4}, "<IMG_ATOM>"),
    "paddleocr_vl": QWEN,
    "perception_lm": Own({"tile_size": 28, "max_num_tiles": 1}, {"patch_size": 14, "pooling_ratio": 1}),
    "qianfan_ocr": Own({"size": square(28)}, {"image_seq_length": 1, "image_placeholder_token": "<IMG_CONTEXT>"}),
    "qwen2_5_vl": QWEN,
    "qwen2_vl": QWEN,
    "qwen3_5": QWEN,
    "qwen3_5_moe": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_vl_moe": QWEN,
    "step3p7": Own({"size": square(56), "patch_size": 56}),
    "video_llama_3": QWEN,
    "video_llava": Own(CLIP, PATCHED),
    "vipllava": Own(CLIP, PATCHED),
}
"""Families whose own processor the tests use."""


def own_processor(name: str) -> Any:
    """The family's own processor, with a chat template in Qwen's layout that writes what it expands for a picture."""
    kind = of_family(PROCESSOR_MAPPING_NAMES, name)
    pictures = of_family(IMAGE_PROCESSOR_MAPPING_NAMES, name)(**OWN[name].images)
    parts = {"tokenizer": tiny_tokenizer(), "image_processor": pictures}
    if "video_processor" in inspect.signature(kind).parameters:
        parts["video_processor"] = of_family(VIDEO_PROCESSOR_MAPPING_NAMES, name)()
    processor = kind(**parts, **OWN[name].options)
    processor.chat_template = "{{- bos_token -}}" + CHAT_TEMPLATE.replace(IMAGE_TOKEN, processor.image_token)
    return processor


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer for the samples' words, with the tokens of every family."""
    tokenizer = build_processor(CORPUS).tokenizer
    tokenizer.add_special_tokens({"extra_special_tokens": SPELLED}, replace_extra_special_tokens=False)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return type(tokenizer).from_pretrained(folder, extra_special_tokens=NAMED)


def of_family(kinds: dict[str, Any], name: str) -> type:
    """A family's class in one of transformers' tables; a mixture of experts has that of its dense sibling."""
    kind = kinds.get(name) or kinds[name.removesuffix("_moe")]
    return getattr(transformers, kind if isinstance(kind, str) else next(iter(kind.values())))


def picture_token(name: str, processor: Any) -> int:
    """The id of the token that is repeated for a picture."""
    return processor.tokenizer.convert_tokens_to_ids(OWN[name].repeated or processor.image_token)


def family_for(name: str, processor: Any) -> Family:
    """The family with the processor's tokens."""
    config = CONFIG_MAPPING[name]().to_dict()
    known = {key: getattr(processor, key) for key in config if key.endswith("token_id") and hasattr(processor, key)}
    pictured = dict.fromkeys(PICTURE_FIELDS & config.keys(), picture_token(name, processor))
    changes = {**known, **pictured, "text_config": {"vocab_size": len(processor.tokenizer)}}
    return replace(FAMILIES[name], changes=merge(merge(FAMILIES[name].changes, changes), OWN[name].changes))
