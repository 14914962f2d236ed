"""Sayings: a training stage's verbalized layers on a few of its samples, beside the samples' pictures."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Collection, Sequence
from itertools import islice

import torch
from PIL import Image

from stages.contract.sayings import Shown, Speaker
from stages.data.encoding import Batch, Encoded, collate, encode_all
from stages.data.sample import Sample
from stages.models.backbone import default_device
from stages.models.saying import spell
from stages.training.loader import agreeing
from stages.training.objective import Objective

THUMBNAIL_PIXELS = 256
"""Of the longer side."""
MOST_PICTURES = 2
"""Of one sample."""

Speak = Callable[[Batch], Sequence[Speaker]]
"""What models say of a batch of one sample, on the CPU."""


def show_first(objective: Objective, count: int, speak: Speak) -> list[Shown]:
    """Let models speak about `count` samples: the first of each kind of question, then the first of the others."""
    firsts = set({sample.task: sample.id for sample in reversed(objective.samples)}.values())
    ordered = sorted(objective.samples, key=lambda sample: sample.id not in firsts)
    usable = (encoded for sample in ordered for encoded in _encode(sample, objective))
    return [_show(encoded, objective, speak) for encoded in islice(usable, count)]


def show_again(objective: Objective, ids: Collection[str], speak: Speak) -> list[Shown]:
    """Let models speak about the samples of these ids, as far as they can be used."""
    chosen = [sample for sample in objective.samples if sample.id in ids]
    return [_show(encoded, objective, speak) for sample in chosen for encoded in _encode(sample, objective)]


def _encode(sample: Sample, objective: Objective) -> list[Encoded]:
    """Nothing if the sample cannot be used."""
    encoded, _ = encode_all(objective.encoder, [sample])
    return encoded if objective.cache is None else agreeing(encoded, objective.cache)[0]


@torch.no_grad()
def _show(encoded: Encoded, objective: Objective, speak: Speak) -> Shown:
    sample, batch = encoded.sample, collate([encoded], objective.encoder.pad_id)
    pictures = sample.load_images(objective.preprocessing.max_image_pixels)
    with torch.autocast(default_device().type, torch.bfloat16, enabled=objective.autocast):
        models = tuple(speak(batch))
    return Shown(
        id=sample.id,
        question=sample.question,
        answer=sample.responses[-1],
        tokens=spell(batch.labels, objective.encoder.processor.tokenizer),
        pictures=tuple(map(thumbnail, pictures[:MOST_PICTURES])),
        models=models,
    )


def thumbnail(picture: Image.Image) -> str:
    """A small copy as a data URI: PNG or JPEG, whichever is shorter."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    encodings = {form: _compress(small, form) for form in ("png", "jpeg")}
    form, data = min(encodings.items(), key=lambda item: len(item[1]))
    return f"data:image/{form};base64,{b64encode(data).decode()}"


def _compress(picture: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, quality=85)
    return buffer.getvalue()
