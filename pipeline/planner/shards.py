"""What a cache takes on disk: a shard of made-up rows is written as the real ones are, and weighed.

How well vectors compress depends on how they are spread. Made-up ones are Gaussian and no two are
alike, which is the least that real ones compress: outlying channels leave fewer levels to the others
of an int8 vector, and a layer that is sure of a word says the same vector each time. What real states
take instead is measured on a few of them (`rehearsal`), and a prediction is scaled by that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

CODECS = ("hidden", "hidden-int8", "moment", "moment-int8", "sampled")
STATES = "states"
"""Stands for the captured states among the codecs."""
NEEDED_AT_TRAINING = {"hidden": "teacher's head", "hidden-int8": "teacher's head"}
EXACT = {
    "hidden": "any student",
    "hidden-int8": "half a level",
    "moment": "this student",
    "moment-int8": "half a level",
    "sampled": "on average",
}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "uint8": 1}
WRITTEN_BYTES = 2**24
"""A shard of up to so many bytes is written whole; of a larger one some row groups."""
ROW_GROUP_BYTES = 2**20
INT8_LEVELS = 127


@dataclass(frozen=True)
class Array:
    """Numbers of one token in a blob."""

    width: int
    dtype: str

    @property
    def bytes(self) -> int:
        """Of one token."""
        return self.width * BYTES[self.dtype]


SCALAR = Array(1, "float32")


@dataclass(frozen=True)
class RowKey:
    """What a row of a cache says beside its blobs."""

    id: str
    content_hash: str
    signature: str
    response_ids: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """What a cache holds.

    Attributes:
        layers: cached layers, the head's input among them.
        arrays: what each of them keeps of a token.
        keys: of some rows; the others are like them.
    """

    layers: int
    arrays: tuple[Array, ...]
    keys: tuple[RowKey, ...]

    @property
    def token_bytes(self) -> int:
        """Of one token and layer, before compression."""
        return sum(array.bytes for array in self.arrays)

    @property
    def row_bytes(self) -> float:
        """Of a row's blobs, before compression."""
        return self.layers * self.token_bytes * float(np.mean([len(key.response_ids) for key in self.keys]))


def codec_arrays(
    codec: str, teacher_width: int, student_width: int, dtype: str, vocabulary: int, samples: int
) -> tuple[Array, ...]:
    """What a codec keeps of a token and layer; heads have no bias.

    Args:
        codec: one of `CODECS`.
        teacher_width, student_width: of the hidden states.
        dtype: of vectors that are not int8.
        vocabulary: real token ids.
        samples: ids that `sampled` keeps.
    """
    kind, _, packing = codec.partition("-")
    if kind == "sampled":
        return (Array(-(-samples * (vocabulary - 1).bit_length() // 8), "uint8"), SCALAR)
    width = teacher_width if kind == "hidden" else student_width
    vector = (Array(width, "int8"), SCALAR) if packing == "int8" else (Array(width, dtype),)
    return vector if kind == "hidden" else (SCALAR, *vector)


def cache_bytes(contents: Contents, samples: float, shard_samples: int) -> float:
    """Of all shards of a cache of so many samples."""
    whole, rest = divmod(round(samples), shard_samples)
    size = whole * shard_bytes(contents, shard_samples) if whole else 0.0
    return size + (shard_bytes(contents, rest) if rest else 0.0)


@cache
def shard_bytes(contents: Contents, rows: int) -> float:
    """Of one shard. A large one is not written: it grows evenly with its row groups, and those with their layers."""
    if rows * contents.row_bytes <= WRITTEN_BYTES:
        return _written(contents, rows)
    few = ceil(ROW_GROUP_BYTES * contents.layers / contents.row_bytes)
    if 2 * few < contents.layers:  # so that one row fills a row group still
        return _grown(lambda layers: _long_shard(replace(contents, layers=layers), rows), few, contents.layers)
    return _long_shard(contents, rows)


def _long_shard(contents: Contents, rows: int) -> float:
    in_group = max(1, int(ROW_GROUP_BYTES // contents.row_bytes))
    if rows <= 2 * in_group:
        return _written(contents, rows)
    return _grown(lambda count: _written(contents, count), in_group, rows)


def _grown(size: Callable[[int], float], few: int, count: int) -> float:
    """The size at `count` of what grows evenly, from those at `few` and twice as many."""
    small, large = size(few), size(2 * few)
    return small + (count - few) * (large - small) / few


def _written(contents: Contents, rows: int) -> int:
    """Of a shard of made-up blobs, written by the stages' own writer."""
    import pyarrow as pa

    random = np.random.default_rng(0)
    keys = [_key(contents.keys, index) for index in range(rows)]
    columns: dict[str, Any] = {
        "id": pa.array([key.id for key in keys], pa.string()),
        "content_hash": pa.array([key.content_hash for key in keys], pa.string()),
        "signature": pa.array([key.signature for key in keys], pa.string()),
        "response_ids": pa.array([key.response_ids for key in keys], pa.list_(pa.int32())),
        "checksum": pa.array(random.integers(2**32, size=rows), pa.uint32()),
    }
    # Columns are compressed one by one, so that all layers can hold the same.
    blobs = pa.array([make_blob(contents.arrays, len(key.response_ids), random) for key in keys], pa.large_binary())
    columns |= {f"block_{layer:03d}": blobs for layer in range(contents.layers)}
    fields = [[array.width, array.dtype] for array in contents.arrays]
    layout = {"codec": "moment", "version": 1, "layers": list(columns)[5:], "fields": fields}
    with tempfile.TemporaryDirectory() as folder:
        return write_shard(Path(folder) / "shard.parquet", pa.table(columns), {"layout": layout})


def write_shard(path: Path, table: pa.Table, metadata: dict[str, Any]) -> int:
    """Write a table as the stages do; returns the file's bytes."""
    from stages.cache.table import described, write_table

    return write_table(path, described(table, [], metadata)).bytes


def _key(keys: Sequence[RowKey], index: int) -> RowKey:
    """The known rows, over and over, each time under other ids."""
    key, turn = keys[index % len(keys)], index // len(keys)
    return key if turn == 0 else RowKey(f"{key.id}-{turn}", key.content_hash, key.signature, key.response_ids)


def make_blob(arrays: Sequence[Array], tokens: int, random: np.random.Generator) -> bytes:
    """A made-up blob: byte planes of each array, one array after the other."""
    return b"".join(_planes(_numbers(array, tokens, random)) for array in arrays)


def _numbers(array: Array, tokens: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """[tokens, width] numbers: Gaussian vectors, at int8 with the largest at ±127; ids of any kind."""
    shape = (tokens, array.width)
    if array.dtype == "uint8":
        return random.integers(256, size=shape, dtype=np.uint8)
    numbers = random.standard_normal(shape, np.float32)
    if array.dtype == "int8":
        return np.rint(numbers / np.abs(numbers).max(axis=1, keepdims=True) * INT8_LEVELS).astype(np.int8)
    if array.dtype == "bfloat16":
        return ((numbers.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    return numbers.astype(array.dtype)


def _planes(numbers: np.ndarray[Any, Any]) -> bytes:
    return np.ascontiguousarray(numbers.reshape(-1, 1).view(np.uint8).T).tobytes()
