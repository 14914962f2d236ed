"""A shard: one Parquet file with a row per sample and a column of blobs per cached layer.

The file's own metadata says how to read the blobs and which samples of the shard were quarantined.
It is written under a temporary name and renamed, so that a shard that is there is whole.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stages.cache.codecs import CODEC_VERSION, Field, to_blobs
from stages.contract.artifact import ArtifactError
from stages.data.encoding import Encoded
from stages.data.sample import BadLine

ROW_GROUP_BYTES = 2**20
WAY_OUT = "the shard is set aside, and the next run makes it anew"
RAW_STATES = "states"
"""What the layout of captured hidden states names instead of a codec."""
_METADATA_KEY = b"vlsi"
_COLUMNS = ("id", "signature", "response_ids", "checksum")


class DamagedShard(ArtifactError):
    """A shard is not what was written."""


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
    def from_json(cls, data: dict[str, Any], path: Path) -> Layout:
        """Read back what `to_json` wrote.

        Raises:
            ArtifactError: another version of the cache wrote it.
        """
        if data["version"] != CODEC_VERSION:
            stage = "capture" if data["codec"] == RAW_STATES else "precompute"
            raise ArtifactError(
                f"{path}: codec version {data['version']}, this program reads version {CODEC_VERSION}; "
                f"rebuild with `vlsi run --force {stage}`"
            )
        fields = tuple(Field(width, getattr(torch, dtype)) for width, dtype in data["fields"])
        return cls(data["codec"], tuple(data["layers"]), fields)


@dataclass(frozen=True)
class Row:
    """One sample of a cache: what was seen of it, its response token ids and one blob per layer.

    Attributes:
        signature: of the encoded sample, to compare with another model's view of it.
    """

    id: str
    signature: str
    response_ids: tuple[int, ...]
    blobs: tuple[bytes, ...]

    @property
    def checksum(self) -> int:
        """CRC-32 over id, signature, response token ids and all blobs."""
        total = zlib.crc32(f"{self.id} {self.signature} {self.response_ids}".encode())
        for blob in self.blobs:
            total = zlib.crc32(blob, total)
        return total


@dataclass(frozen=True)
class ShardSummary:
    """What one shard holds."""

    samples: int
    rows: int
    response_tokens: int
    bytes: int
    bad: tuple[BadLine, ...]


def rows_of(samples: Sequence[Encoded], layers: Sequence[list[Tensor]], fields: Sequence[Field]) -> dict[str, Row]:
    """Cut the encoded layers of several samples into their rows.

    Args:
        samples: whose response tokens stand one after the other in the tensors.
        layers: for each cached layer one [N, width] tensor per field.
        fields: of every layer.
    """
    responses = [tuple(sample.response_ids.tolist()) for sample in samples]
    columns = [to_blobs(tensors, fields, [len(ids) for ids in responses]) for tensors in layers]
    blobs = zip(*columns, strict=True)
    return {
        s.sample.id: Row(s.sample.id, s.signature, ids, b) for s, ids, b in zip(samples, responses, blobs, strict=True)
    }


def shard_path(folder: Path, index: int) -> Path:
    """Where shard `index` of a cache lies."""
    return folder / f"shard-{index:06d}.parquet"


def write_shard(path: Path, layout: Layout, rows: list[Row], bad: list[BadLine]) -> ShardSummary:
    """Write a shard whole, and sum it up."""
    columns: dict[str, Any] = {
        "id": pa.array([row.id for row in rows], pa.string()),
        "signature": pa.array([row.signature for row in rows], pa.string()),
        "response_ids": pa.array([list(row.response_ids) for row in rows], pa.list_(pa.int32())),
        "checksum": pa.array([row.checksum for row in rows], pa.uint32()),
    }
    for index, layer in enumerate(layout.layers):
        columns[layer] = pa.array([row.blobs[index] for row in rows], pa.large_binary())
    tokens = sum(len(row.response_ids) for row in rows)
    metadata = {"layout": layout.to_json(), "response_tokens": tokens}
    return write_table(path, pa.table(columns), bad, metadata)


def write_table(path: Path, table: pa.Table, bad: list[BadLine], metadata: dict[str, Any]) -> ShardSummary:
    """Write any shard whole: a table with a column `id`, and the samples that have no row."""
    content = metadata | {"bad": [asdict(line) for line in bad]}
    checked = {"content": content, "checksum": zlib.crc32(json.dumps(content).encode())}
    temporary = path.with_suffix(".tmp")
    pq.write_table(
        table.replace_schema_metadata({_METADATA_KEY: json.dumps(checked).encode()}),
        temporary,
        compression="zstd",
        row_group_size=_rows_per_group(table),
        write_batch_size=1,
        use_dictionary=["id"],
        write_statistics=["id"],
    )
    temporary.replace(path)
    return _summary(path)


def open_shard(path: Path) -> tuple[pq.ParquetFile, Layout]:
    """Open a shard of a cache for reading by row group.

    Raises:
        DamagedShard: the file is not what was written.
        ArtifactError: another version of the cache wrote it.
    """
    file, metadata = _open(path)
    return file, Layout.from_json(metadata["layout"], path)


def summarize(path: Path) -> ShardSummary | None:
    """What the shard at `path` holds, or None if it is not there or cannot be read, and so has to be made."""
    try:
        return _summary(path) if path.is_file() else None
    except DamagedShard:
        return None


def set_aside(path: Path) -> None:
    """Take a damaged shard out of its cache, so that the next run makes this one anew."""
    with suppress(OSError):
        path.rename(path.with_suffix(".damaged"))


def _summary(path: Path) -> ShardSummary:
    file, metadata = _open(path)
    bad = tuple(BadLine(**line) for line in metadata["bad"])
    rows = file.metadata.num_rows
    return ShardSummary(rows + len(bad), rows, metadata.get("response_tokens", 0), path.stat().st_size, bad)


def _open(path: Path) -> tuple[pq.ParquetFile, dict[str, Any]]:
    try:
        file = pq.ParquetFile(path, memory_map=True)
        metadata = json.loads(file.schema_arrow.metadata[_METADATA_KEY])
        if zlib.crc32(json.dumps(metadata["content"]).encode()) != metadata["checksum"]:
            raise ValueError("its metadata is not what was written")
    except Exception as error:  # a damaged footer can make the parser raise anything
        raise DamagedShard(f"{path} cannot be read as a shard: {error}; {WAY_OUT}") from error
    return file, metadata["content"]


def read_rows(file: pq.ParquetFile, group: int, layout: Layout, path: Path) -> list[Row]:
    """The rows of one row group, verified.

    Raises:
        DamagedShard: a row is not what was written; file and sample are named.
    """
    try:
        table = file.read_row_group(group, columns=[*_COLUMNS, *layout.layers])
        table.validate(full=True)
        read = [
            (
                Row(v["id"], v["signature"], tuple(v["response_ids"]), tuple(v[layer] for layer in layout.layers)),
                v["checksum"],
            )
            for v in table.to_pylist()
        ]
    except Exception as error:  # a damaged page can make the parser raise anything
        raise DamagedShard(f"{path}: row group {group} cannot be read: {error!r}; {WAY_OUT}") from error
    for row, checksum in read:
        if row.checksum != checksum:
            raise DamagedShard(f"{path}: the checksum of sample {row.id} does not fit its data; {WAY_OUT}")
    return [row for row, _ in read]


def _rows_per_group(table: pa.Table) -> int:
    return max(1, ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes))
