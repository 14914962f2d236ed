"""How fast codecs encode and decode.

Encoding is from inputs of the teacher's head to a row's blobs, decoding from blobs to targets, both for
the heads of Qwen2-VL-7B and 2B with random numbers in them. A moment is encoded, and a hidden state is
decoded, by one product with each head, which is what their times are. Speeds are megabytes a second of
the states as bfloat16; those of what is stored stand in the details. The baseline is the plain bytes of
the states.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from stages.cache.codecs import Codec, from_blobs, make_codec, to_blobs
from stages.losses.divergence import Head
from tests.bench.cache_codecs import CODECS
from tests.bench.results import Finding

MEGABYTE = 1e6


class Sizes(NamedTuple):
    """Of the heads and of one layer's states."""

    teacher_width: int = 3_584
    student_width: int = 1_536
    vocabulary: int = 151_936
    tokens: int = 128


QUICK = Sizes(96, 48, 500, 8)


def compare(quick: bool) -> Iterator[Finding]:
    """Both directions of each codec, for one layer's states."""
    sizes = QUICK if quick else Sizes()
    generator = torch.Generator().manual_seed(0)
    teacher, student = (_random_head(sizes.vocabulary, width) for width in sizes[:2])
    states = torch.randn(sizes.tokens, sizes.teacher_width, generator=generator)
    uniform = torch.rand(sizes.tokens, dtype=torch.float64, generator=generator)
    megabytes = 2 * states.numel() / MEGABYTE
    raw = _plain_bytes(states)
    bare = {"encode": _seconds(partial(_plain_bytes, states)), "decode": _seconds(partial(_of_plain_bytes, raw))}
    for name in CODECS:
        codec = make_codec(name, torch.bfloat16, teacher, student)
        blobs = _encode(codec, states, uniform)
        seconds = {
            "encode": _seconds(partial(_encode, codec, states, uniform)),
            "decode": _seconds(partial(_decode, codec, blobs, sizes.tokens, student)),
        }
        for direction, taken in seconds.items():
            yield Finding(
                f"{direction}-{name}",
                f"{direction} one layer's states of width {sizes.teacher_width} against their plain bytes",
                megabytes / taken,
                megabytes / bare[direction],
                "MB/s",
                details={"stored MB/s": len(blobs[0]) / MEGABYTE / taken, "seconds": taken},
            )


def _random_head(rows: int, width: int) -> Head:
    weight = torch.empty(rows, width).normal_(generator=torch.Generator().manual_seed(width))
    return Head(weight.mul_(width**-0.5))


def _encode(codec: Codec, states: Tensor, uniform: Tensor) -> list[bytes]:
    return to_blobs(codec.encode(states, uniform), codec.fields, [len(states)])


def _decode(codec: Codec, blobs: list[bytes], tokens: int, student: Head) -> None:
    codec.decode(from_blobs([blobs[0]], codec.fields, [tokens]), student)


def _plain_bytes(states: Tensor) -> bytes:
    return states.bfloat16().view(torch.uint8).numpy().tobytes()


def _of_plain_bytes(raw: bytes) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).float()


def _seconds(action: Callable[[], object]) -> float:
    """The median of three calls, after one to warm up."""
    action()
    return median(timeit.repeat(action, number=1, repeat=3))
