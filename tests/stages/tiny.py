"""Tiny random checkpoints of genuine classes, and a small sample file; loaded as a user's would be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from stages.models.scratch import CHAT_TEMPLATE, build_processor

WORDS = "zero one two three four five six seven eight nine".split()
CORPUS = [*WORDS, "How many dots are there?", "Add them.", "Which is larger, the first or the second?"]
LLAVA_TEMPLATE = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\\n")


def text_config(width: int, layers: int, vocabulary: int) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "initializer_range": width**-0.5,
    }


def save_qwen2vl(folder: Path, *, width: int, layers: int, pad_rows: int, seed: int, tied: bool = False) -> Path:
    processor = build_processor(CORPUS)
    token_id = processor.tokenizer.convert_tokens_to_ids
    head_width = width // 2
    section = [head_width // 2 - 2 * (head_width // 8), head_width // 8, head_width // 8]
    config = Qwen2VLConfig(
        text_config=text_config(width, layers, len(processor.tokenizer) + pad_rows)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}},
        vision_config={
            "depth": 1,
            "embed_dim": 16,
            "num_heads": 2,
            "mlp_ratio": 2,
            "hidden_size": width,
            "initializer_range": 0.25,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    return _save(Qwen2VLForConditionalGeneration, config, processor, folder, seed)


def save_llava_onevision(folder: Path, *, width: int, layers: int, pad_rows: int, seed: int) -> Path:
    tokenizer = build_processor(CORPUS).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    token_id = tokenizer.convert_tokens_to_ids
    side, patch = 28, 14
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size={"height": side, "width": side}, image_grid_pinpoints=[[side, side], [side, 2 * side]]
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size={"height": side, "width": side}),
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaOnevisionConfig(
        text_config=text_config(width, layers, len(tokenizer) + pad_rows) | {"model_type": "qwen2"},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": patch,
            "vision_use_head": False,
        },
        image_token_index=token_id("<image>"),
        image_token_id=token_id("<image>"),
        video_token_id=token_id("<video>"),
        video_token_index=token_id("<video>"),
        image_grid_pinpoints=[[side, side], [side, 2 * side]],
    )
    return _save(LlavaOnevisionForConditionalGeneration, config, processor, folder, seed)


def _save(model_class: type, config: object, processor: object, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = model_class(config)
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def text(role: str, value: str) -> dict:
    return {"role": role, "content": [{"type": "text", "text": value}]}


def ask(value: str, images: int = 1) -> dict:
    return {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": value}]}


def save_samples(folder: Path, count: int = 12) -> Path:
    """Single and several turns, one and two pictures, and text only."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(4):
        pixels = random.integers(0, 255, (28, 28 * (1 + index % 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    path = folder / "samples.jsonl"
    path.write_text("".join(json.dumps(_sample(index)) + "\n" for index in range(count)))
    return path


def _sample(index: int) -> dict:
    one, other = WORDS[index % 10], WORDS[(index * 3 + 1) % 10]
    picture, second = f"images/{index % 4}.png", f"images/{(index + 1) % 4}.png"
    kinds = [
        ("count", [picture], [ask("How many dots are there?"), text("assistant", one)]),
        (
            "turns",
            [picture],
            [
                ask("How many dots are there?"),
                text("assistant", one),
                text("user", "Add them."),
                text("assistant", f"{one} {other}"),
            ],
        ),
        (
            "compare",
            [picture, second],
            [ask("Which is larger, the first or the second?", 2), text("assistant", f"{other} {one}")],
        ),
        ("text", [], [text("user", "Add them."), text("assistant", other)]),
    ]
    task, images, messages = kinds[index % 4]
    return {"id": f"sample-{index}", "images": images, "messages": messages, "task": task}
