"""The pair: teacher and student have to see every sample alike, or the student learns from noise.

What the teacher says at a token is compared with what the student says at the same token, so both
processors have to cut the same tokens and the same patches, and number them the same. How many rows
an embedding has beyond its tokens (151,936 or 152,064) is not part of that.
"""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stages.contract.settings import Preprocessing
from stages.data import BadSample
from stages.data.encoding import Encoded, Encoder, pixel_limits
from stages.data.sample import Sample

_SHOWN = 3
"""Differences of one kind that are spelled out."""
_SIZES = ((56, 84), (140, 70), (220, 300))
"""Width and height of the pictures that both look at."""
_PIXEL_TOLERANCE = 1e-3
"""Between implementations of one resize; pixel values are about 1."""
_NAMES_OF_CLASSES = ("type", "class", "map")


def differences(teacher: Any, student: Any, preprocessing: Preprocessing | None = None) -> list[str]:
    """What two processors do differently, one sentence each; nothing if they make a pair.

    Args:
        preprocessing: its limits on pixels hold for both and replace their own.
    """
    limits = preprocessing or Preprocessing()
    settings = [*_vocabulary(teacher, student), *_tokenizer(teacher, student), *_pictures(teacher, student, limits)]
    return settings or list(_views(teacher, student, limits))


def _vocabulary(teacher: Any, student: Any) -> Iterator[str]:
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    for missing, owner, other in (
        (theirs.keys() - ours.keys(), "teacher", "student"),
        (ours.keys() - theirs.keys(), "student", "teacher"),
    ):
        if missing:
            yield f"vocabulary: {_some(sorted(missing))} of the {owner} are no tokens of the {other}"
    moved = sorted(token for token in theirs.keys() & ours.keys() if theirs[token] != ours[token])
    if moved:
        ids = [f"{token!r} is {theirs[token]} for the teacher and {ours[token]} for the student" for token in moved]
        yield f"vocabulary: {len(moved)} tokens have other ids: {'; '.join(ids[:_SHOWN])}"


def _tokenizer(teacher: Any, student: Any) -> Iterator[str]:
    """How text is cut, as far as the tokenizers say it."""
    theirs, ours = _description(teacher), _description(student)
    yield from _merges(theirs.get("model", {}).pop("merges", []), ours.get("model", {}).pop("merges", []))
    tokens = (found.pop("added_tokens", []) for found in (theirs, ours))
    special = ({token["content"]: token["special"] for token in added} for added in tokens)
    yield from _compare("special tokens", *special)
    yield from _compare("tokenizer", theirs, ours)


def _merges(theirs: list[Any], ours: list[Any]) -> Iterator[str]:
    if theirs != ours:
        shorter = min(len(theirs), len(ours))
        place = next((i for i in range(shorter) if theirs[i] != ours[i]), shorter)
        first = (repr(merges[place]) if place < len(merges) else "missing" for merges in (theirs, ours))
        yield "merges: number {} is {} for the teacher and {} for the student".format(place, *first)


def _description(processor: Any) -> dict[str, Any]:
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    description = json.loads(backend.to_str()) if backend is not None else {}
    description.get("model", {}).pop("vocab", None)
    return {key: value for key, value in description.items() if key not in ("truncation", "padding")}


def _pictures(teacher: Any, student: Any, limits: Preprocessing) -> Iterator[str]:
    """How pictures are cut, as far as the processors say it."""
    theirs, ours = (_picture_settings(processor, limits) for processor in (teacher, student))
    yield from _compare("image preprocessing", theirs, ours)


def _picture_settings(processor: Any, limits: Preprocessing) -> dict[str, Any]:
    settings = processor.image_processor.to_dict() | pixel_limits(processor, limits)
    plain = json.loads(json.dumps(settings, default=str))
    return {key: value for key, value in plain.items() if key.rsplit("_", 1)[-1] not in _NAMES_OF_CLASSES}


def _compare(what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each key that both have with other values."""
    for key in sorted(theirs.keys() & ours.keys()):
        if theirs[key] != ours[key]:
            values = (json.dumps(settings[key]) for settings in (theirs, ours))
            yield "{}: {} is {} for the teacher and {} for the student".format(what, key, *values)


def _views(teacher: Any, student: Any, limits: Preprocessing) -> Iterator[str]:
    """The first conversation that both see differently: its layout, its tokens, its pixels."""
    encoders = tuple(Encoder(processor, limits, memory_bytes=0) for processor in (teacher, student))
    with tempfile.TemporaryDirectory() as folder:
        for sample in _probes(Path(folder)):
            difference = _laid_out(sample, *encoders) or _encoded(*(_view(encoder, sample) for encoder in encoders))
            if difference:
                yield f"{difference} ({sample.id})"
                return


def _probes(folder: Path) -> Iterator[Sample]:
    """Conversations in which processors of one family may differ."""
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate(_SIZES):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    hello, more = _turns("Hello, 漢字 (12.5%)!\n"), _turns("What else?")
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    yield Sample("a question and its answer", (), hello)
    yield Sample("two turns", (), hello + more)
    yield Sample("a system message", (), (system, *hello))
    for number, (width, height) in enumerate(_SIZES):
        yield Sample(f"a picture of {width} x {height} pixels", (folder / f"{number}.png",), _turns("What?", 1) + more)
    yield Sample("two pictures", (folder / "0.png", folder / "1.png"), _turns("Which?", 2))


def _turns(question: str, pictures: int = 0) -> tuple[dict[str, Any], ...]:
    asked = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
    answered = [{"type": "text", "text": "Nothing much."}]
    return {"role": "user", "content": asked}, {"role": "assistant", "content": answered}


def _view(encoder: Encoder, sample: Sample) -> Encoded | str:
    try:
        return encoder.encode(sample)
    except BadSample as error:
        return str(error)


def _laid_out(sample: Sample, teacher: Encoder, student: Encoder) -> str:
    """How the chat templates differ, line by line; empty if they do not, or if one refuses the conversation."""
    try:
        theirs, ours = (encoder.render(sample.messages).splitlines() for encoder in (teacher, student))
    except BadSample:
        return ""
    lines = difflib.unified_diff(theirs, ours, "teacher", "student", lineterm="", n=1)
    return "\n".join(["chat template:", *lines]) if theirs != ours else ""


def _encoded(teacher: Encoded | str, student: Encoded | str) -> str:
    """How two views of one sample differ; empty if they do not."""
    if isinstance(teacher, str) or isinstance(student, str):
        said = [view if isinstance(view, str) else "takes it" for view in (teacher, student)]
        return "" if said[0] == said[1] else f"the teacher: {said[0]}; the student: {said[1]}"
    if teacher.signature != student.signature:
        return f"image tokens: the teacher sees {teacher.signature}, the student {student.signature}"
    if not torch.equal(teacher.response_mask, student.response_mask):
        counts = [int(view.response_mask.sum()) for view in (teacher, student)]
        return f"responses: {counts[0]} tokens for the teacher, {counts[1]} for the student"
    for name in sorted(teacher.extras.keys() & student.extras.keys()):
        pixels = [view.extras[name].float() for view in (teacher, student)]
        if pixels[0].shape != pixels[1].shape or (pixels[0] - pixels[1]).abs().max() > _PIXEL_TOLERANCE:
            return f"image preprocessing: {name} has other values"
    return ""


def _some(tokens: list[str]) -> str:
    more = len(tokens) - _SHOWN
    return ", ".join(map(repr, tokens[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
