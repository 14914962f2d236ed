"""A shard of a cache: a row per sample and a column of blobs per cached layer.

The file's own metadata says how to read the blobs. Every row says what it was made from: a hash of
the sample's content, and what the model saw of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stages.cache.codecs import CODEC_VERSION, Field, to_blobs
from stages.cache.table import WAY_OUT, DamagedShard, described, open_table, raise_damaged
from stages.contract.artifact import ArtifactError
from stages.contract.place import Place
from stages.data.encoding import Encoded
from stages.data.sample import BadLine

RAW_STATES = "states"
"""What the layout of captured hidden states names instead of a codec."""
_KEY_COLUMNS = ("id", "content_hash", "signature", "response_ids")


@dataclass(frozen=True)
class Layout:
    """How the blobs of a cache are to be read.

    Attributes:
        codec: name of the codec, or `RAW_STATES`.
        layers: column names in order, one per cached layer; the last one is the head's input.
        fields: the arrays of every blob.
    """

    codec: str
    layers: tuple[str, ...]
    fields: tuple[Field, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for the file's metadata."""
        fields = [[field.width, str(field.dtype).removeprefix("torch.")] for field in self.fields]
        return {"codec": self.codec, "version": CODEC_VERSION, "layers": list(self.layers), "fields": fields}

    @classmethod
    def from_json(cls, data: dict[str, Any], place: Place) -> Layout:
        """Read back what `to_json` wrote.

        Raises:
            ArtifactError: another version of the cache wrote it.
        """
        if data["version"] != CODEC_VERSION:
            stage = "capture" if data["codec"] == RAW_STATES else "precompute"
            raise ArtifactError(
                f"{place}: codec version {data['version']}, this program reads version {CODEC_VERSION}; "
                f"rebuild with `vlsi run --force {stage}`"
            )
        fields = tuple(Field(width, getattr(torch, dtype)) for width, dtype in data["fields"])
        return cls(data["codec"], tuple(data["layers"]), fields)


@dataclass(frozen=True)
class Key:
    """What a row says of its sample.

    Attributes:
        id: of the sample.
        content_hash: of its pictures and messages, and of the processor that encoded them.
        signature: of the encoded sample, to compare with another model's view of it.
        response_ids: the response tokens.
    """

    id: str
    content_hash: str
    signature: str
    response_ids: tuple[int, ...]

    @classmethod
    def of(cls, encoded: Encoded) -> Key:
        """Of a sample as a model sees it."""
        return cls(encoded.sample.id, encoded.content_hash, encoded.signature, tuple(encoded.response_ids.tolist()))


@dataclass(frozen=True)
class Row:
    """One sample of a cache: its key and one blob per layer."""

    key: Key
    blobs: tuple[bytes | memoryview, ...]

    @property
    def checksum(self) -> int:
        """CRC-32 over the key and all blobs."""
        key = self.key
        total = zlib.crc32(f"{key.id} {key.content_hash} {key.signature} {key.response_ids}".encode())
        for blob in self.blobs:
            total = zlib.crc32(blob, total)
        return total


def rows_of(keys: Sequence[Key], layers: Sequence[list[Tensor]], fields: Sequence[Field]) -> dict[str, Row]:
    """Cut the encoded layers of several samples into their rows, by sample id.

    Args:
        keys: of the samples whose response tokens stand one after the other in the tensors.
        layers: for each cached layer one [N, width] tensor per field.
        fields: of every layer.
    """
    counts = [len(key.response_ids) for key in keys]
    columns = [to_blobs(tensors, fields, counts) for tensors in layers]
    return {key.id: Row(key, blobs) for key, blobs in zip(keys, zip(*columns, strict=True), strict=True)}


def make_table(layout: Layout, rows: Sequence[Row], bad: Sequence[BadLine]) -> pa.Table:
    """The table of a shard, ready to be written."""
    keys = [row.key for row in rows]
    columns: dict[str, Any] = {
        "id": pa.array([key.id for key in keys], pa.string()),
        "content_hash": pa.array([key.content_hash for key in keys], pa.string()),
        "signature": pa.array([key.signature for key in keys], pa.string()),
        "response_ids": pa.array([list(key.response_ids) for key in keys], pa.list_(pa.int32())),
        "checksum": pa.array([row.checksum for row in rows], pa.uint32()),
    }
    for index, layer in enumerate(layout.layers):
        columns[layer] = pa.array([row.blobs[index] for row in rows], pa.large_binary())
    tokens = sum(len(key.response_ids) for key in keys)
    return described(pa.table(columns), bad, {"layout": layout.to_json(), "response_tokens": tokens})


def open_shard(place: Place) -> tuple[pq.ParquetFile, Layout]:
    """Open a shard of a cache for reading by row group.

    Raises:
        DamagedShard: the file is not what was written.
        ArtifactError: another version of the cache wrote it.
    """
    file, metadata = open_table(place)
    return file, Layout.from_json(metadata["layout"], place)


def read_rows(file: pq.ParquetFile, group: int, layout: Layout, place: Place) -> list[Row]:
    """The rows of one row group, verified.

    Raises:
        DamagedShard: a row is not what was written; file and sample are named.
    """
    try:
        table = file.read_row_group(group, columns=[*_KEY_COLUMNS, "checksum", *layout.layers])
        table.validate(full=True)
        blobs = zip(*([blob.as_buffer() for blob in table[layer]] for layer in layout.layers), strict=True)
        keys = table.select([*_KEY_COLUMNS, "checksum"]).to_pylist()
        read = [(_row(values, own), values["checksum"]) for values, own in zip(keys, blobs, strict=True)]
    except Exception as error:  # a damaged page can make the parser raise anything
        raise_damaged(f"{place}: row group {group} cannot be read: {error!r}", error)
    for row, checksum in read:
        if row.checksum != checksum:
            raise DamagedShard(f"{place}: the checksum of sample {row.key.id} does not fit its data; {WAY_OUT}")
    return [row for row, _ in read]


def _row(values: dict[str, Any], blobs: Sequence[pa.Buffer]) -> Row:
    """Its blobs are the row group's own memory; nothing is copied."""
    name, content_hash, signature, response_ids = (values[column] for column in _KEY_COLUMNS)
    key = Key(name, content_hash, signature, tuple(response_ids))
    return Row(key, tuple(memoryview(blob).cast("B") for blob in blobs))
