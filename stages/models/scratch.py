"""Small genuine Qwen2-VL checkpoints from nothing: a processor made for one text corpus, models of any small size.

What comes out is what `from_pretrained` expects of a downloaded model: a `Qwen2VLForConditionalGeneration`, a
`Qwen2VLProcessor` with Qwen's special tokens and chat layout, and a generation config that stops at `<|im_end|>`.
Teacher and backbone share a tokenizer and differ in padded vocabulary rows, as 72B and 2B do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

if TYPE_CHECKING:
    from stages.contract.settings import ScratchModel

END_OF_TEXT = "<|endoftext|>"
TURN_END = "<|im_end|>"
IMAGE_TOKEN = "<|image_pad|>"
VIDEO_TOKEN = "<|video_pad|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    TURN_END,
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    IMAGE_TOKEN,
    VIDEO_TOKEN,
)
"""In Qwen's order; their ids follow those of the ordinary tokens."""

RESPONSE_START = "<|im_start|>assistant\n"

CHAT_TEMPLATE = """\
{%- set pictures = namespace(seen=0) -%}
{%- set videos = namespace(seen=0) -%}
{%- for message in messages -%}
    {%- if loop.first and message['role'] != 'system' -%}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
                {%- set pictures.seen = pictures.seen + 1 -%}
                {%- if add_vision_id -%}{{- 'Picture ' ~ pictures.seen ~ ': ' -}}{%- endif -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part['type'] == 'video' or 'video' in part -%}
                {%- set videos.seen = videos.seen + 1 -%}
                {%- if add_vision_id -%}{{- 'Video ' ~ videos.seen ~ ': ' -}}{%- endif -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""Lays a conversation out exactly as Qwen2-VL's own template does, its default system message included."""

_CHAT_WORDS = ("system\nYou are a helpful assistant.\n", "user\n", "assistant\n")
_MAX_ORDINARY_TOKENS = 8192
_MAX_POSITIONS = 4096
_PAD_ROWS_TO = 64


def build_processor(corpus: Iterable[str]) -> Qwen2VLProcessor:
    """A processor whose tokenizer has one token for every word of `corpus`; images as Qwen2-VL cuts them.

    Byte-level BPE, so that any other text can be written too. The same corpus gives the same tokenizer.
    """
    tokenizer = _train_tokenizer([*_CHAT_WORDS, *corpus])
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(settings: ScratchModel, processor: Qwen2VLProcessor, *, seed: int) -> Qwen2VLForConditionalGeneration:
    """A randomly initialised float32 model for this processor's tokens and patches."""
    config = build_config(settings, processor)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=processor.tokenizer.convert_tokens_to_ids(TURN_END),
        pad_token_id=processor.tokenizer.convert_tokens_to_ids(END_OF_TEXT),
    )
    return model


def build_config(settings: ScratchModel, processor: Qwen2VLProcessor) -> Qwen2VLConfig:
    """The configuration of a small Qwen2-VL.

    Weights start at `width ** -0.5`: at the usual 0.02 a model this narrow does not learn to see.
    """
    token_id = processor.tokenizer.convert_tokens_to_ids
    head_width = settings.width // settings.heads
    rope = {"rope_type": "default", "rope_theta": settings.rope_theta, "mrope_section": _mrope_section(head_width)}
    images = processor.image_processor
    return Qwen2VLConfig(
        text_config={
            "vocab_size": padded_vocab_size(len(processor.tokenizer), settings.extra_vocab_rows),
            "hidden_size": settings.width,
            "intermediate_size": settings.mlp_width,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "num_key_value_heads": settings.key_value_heads,
            "max_position_embeddings": _MAX_POSITIONS,
            "initializer_range": settings.width**-0.5,
            "rope_parameters": rope,
            "bos_token_id": token_id(END_OF_TEXT),
            "eos_token_id": token_id(TURN_END),
            "tie_word_embeddings": settings.tied,
        },
        vision_config={
            "depth": settings.vision_layers,
            "embed_dim": settings.vision_width,
            "num_heads": settings.vision_heads,
            "mlp_ratio": settings.vision_mlp_ratio,
            "hidden_size": settings.width,
            "patch_size": images.patch_size,
            "temporal_patch_size": images.temporal_patch_size,
            "spatial_merge_size": images.merge_size,
            "initializer_range": settings.vision_width**-0.5,
        },
        image_token_id=token_id(IMAGE_TOKEN),
        video_token_id=token_id(VIDEO_TOKEN),
        vision_start_token_id=token_id(VISION_START),
        vision_end_token_id=token_id(VISION_END),
        tie_word_embeddings=settings.tied,
    )


def padded_vocab_size(num_tokens: int, extra_rows: int) -> int:
    """Rows of embedding and head: the next multiple of 64, and `extra_rows` that no token uses."""
    return -(-num_tokens // _PAD_ROWS_TO) * _PAD_ROWS_TO + extra_rows


def _mrope_section(head_width: int) -> list[int]:
    """How many rotary frequencies go to time, height and width: 2 : 3 : 3, as in Qwen2-VL."""
    frequencies = head_width // 2
    spatial = frequencies * 3 // 8
    return [frequencies - 2 * spatial, spatial, spatial]


def _train_tokenizer(corpus: list[str]) -> Qwen2Tokenizer:
    """Qwen2's tokenizer (normalizer, word splitting, byte alphabet) with merges learned from `corpus`."""
    qwen = Qwen2Tokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = qwen.normalizer, qwen.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_MAX_ORDINARY_TOKENS, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(corpus, trainer)
    learned = json.loads(trained.to_str())["model"]
    special = {token: len(learned["vocab"]) + position for position, token in enumerate(SPECIAL_TOKENS)}
    merges: Any = [tuple(pair) for pair in learned["merges"]]  # pairs, whatever Qwen2Tokenizer's annotation says
    return Qwen2Tokenizer(
        vocab=learned["vocab"] | special,
        merges=merges,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=_MAX_POSITIONS,
    )
