"""Measuring: the process of a survey. It imports what a stage's worker imports, and asks no network.

    python -m pipeline.planner.measuring < request.json

Where the teacher is small and on this machine, it rehearses capture and precompute on the chosen
samples, to see what their caches take in every codec.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from pipeline.planner.shards import RowKey
from pipeline.planner.survey import Request, Survey, SurveyError

if TYPE_CHECKING:
    from stages.data.encoding import Encoded
    from stages.data.sample import Sample

CHOSEN_SAMPLES = 512
"""That are encoded, pictures and all."""
READ_SAMPLES = 8192
"""Whose responses are tokenized: their lengths differ most."""
RUN_SAMPLES = 64
"""Neighbours among them."""
REHEARSED_FLOPS = 2e12
"""A teacher is run over the chosen samples if that takes no more."""


def measure(request: Request) -> Survey:
    """Import what a worker imports, encode the chosen samples, rehearse.

    Raises:
        SurveyError: none of the samples can be used.
    """
    from stages.data.encoding import Encoder, encode_all
    from stages.memory import peak_memory_bytes
    from stages.models.backbone import load_processor

    _import_stages()
    encoder = Encoder(load_processor(request.teacher, request.loading), request.preprocessing)
    process_bytes = peak_memory_bytes()
    file = Path(request.samples)
    total, chosen = choose(file, CHOSEN_SAMPLES)
    _, read = choose(file, READ_SAMPLES)
    encoded, bad = encode_all(encoder, chosen)
    if not encoded:
        raise SurveyError(f"no sample of {request.samples} can be used{f': {bad[0].reason}' if bad else ''}")
    found = _measured(encoded, encoder.processor, request.patch_numbers)
    found["response_tokens"] *= _length(read, encoder.processor) / _length(chosen, encoder.processor)
    tokens = sum(len(one.input_ids) for one in encoded)
    rehearsed = {}
    is_cheap = 2 * request.teacher_parameters * tokens <= REHEARSED_FLOPS and Path(request.teacher).is_dir()
    if request.rehearse and is_cheap:
        from pipeline.planner.rehearsal import rehearse

        rehearsed = rehearse(request, [one.sample for one in encoded])
    return Survey(
        samples=total,
        vocabulary=encoder.real_vocabulary,
        process_bytes=process_bytes,
        rehearsed=rehearsed,
        trained=bool(rehearsed and request.verbalization),
        **found,
    )


def choose(file: Path, count: int) -> tuple[int, list[Sample]]:
    """The number of a file's lines, and the samples on `count` of them, in order: runs of neighbours at random places.

    Neighbours, because what repeats from one to the next is stored once.
    """
    from stages.data.sample import BadSample, parse_sample

    with file.open("rb") as lines:
        total = sum(1 for _ in lines)
    runs = range(0, total, RUN_SAMPLES)
    places = set(random.Random(0).sample(runs, min(ceil(count / RUN_SAMPLES), len(runs))))
    samples = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            if number - number % RUN_SAMPLES in places:
                with suppress(ValueError, BadSample):
                    samples.append(parse_sample(json.loads(line), file.parent.resolve()))
    return total, samples


def _measured(encoded: Sequence[Encoded], processor: Any, patch_numbers: int) -> dict[str, Any]:
    image_token = getattr(processor, "image_token_id", -1)
    images = mean(int((one.input_ids == image_token).sum()) for one in encoded)
    responses = mean(len(one.response_ids) for one in encoded)
    lengths = [len(one.input_ids) for one in encoded]
    pixels = [sum(t.numel() for t in one.extras.values() if t.is_floating_point()) for one in encoded]
    patches = mean(pixels) / patch_numbers
    pictures = mean(len(one.sample.images) for one in encoded)
    return {
        "text_tokens": mean(lengths) - images - responses,
        "image_tokens": images,
        "response_tokens": responses,
        "longest_tokens": max(lengths),
        "patches": patches,
        "patches_per_picture": patches / max(1, pictures),
        "keys": tuple(_key(one) for one in encoded),
    }


def _length(samples: Sequence[Sample], processor: Any) -> float:
    """Mean length of the samples' responses as plain text, in tokens; each turn has one more that ends it."""
    turns = [processor.tokenizer(sample.responses)["input_ids"] for sample in samples]
    return mean(sum(len(ids) + 1 for ids in responses) for responses in turns)


def _key(one: Encoded) -> RowKey:
    return RowKey(one.sample.id, one.content_hash, one.signature, tuple(one.response_ids.tolist()))


def _import_stages() -> None:
    import ray.train.torch  # noqa: F401

    import stages.capture
    import stages.interaction
    import stages.precompute
    import stages.reinforcement
    import stages.verbalization  # noqa: F401


def main() -> int:
    """Read a request, print a survey."""
    request = Request.model_validate_json(sys.stdin.read())
    output = os.dup(1)
    os.dup2(2, 1)  # What libraries print is no part of the answer.
    try:
        found = measure(request)
    except Exception as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    os.write(output, json.dumps(found.model_dump()).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
