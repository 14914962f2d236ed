"""Tables in shards: one Parquet file with a row per sample, there whole or not at all.

The file's own metadata says which samples of the shard were quarantined. A shard is written under a
temporary name, read back, and only then given its name (on this machine a rename, in an object store
one put). Pages carry checksums, so that a shard that reads well is the one that was written.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from stages.contract.artifact import ArtifactError
from stages.contract.place import Place, Remote, is_transient, open_file, patiently, size_of, staged
from stages.data.sample import BadLine

ROW_GROUP_BYTES = 2**20
WAY_OUT = "the shard is set aside, and the next run makes it anew"
_METADATA_KEY = b"vlsi"


class DamagedShard(ArtifactError):
    """A shard is not what was written."""


@dataclass(frozen=True)
class ShardSummary:
    """What one shard holds."""

    samples: int
    rows: int
    response_tokens: int
    bytes: int
    sha256: str
    bad: tuple[BadLine, ...]


def shard_path(folder: Place, index: int) -> Place:
    """Where shard `index` lies."""
    return folder / f"shard-{index:06d}.parquet"


def described(table: pa.Table, bad: Sequence[BadLine], metadata: Mapping[str, Any]) -> pa.Table:
    """A table with a column `id`, told which samples have no row in it and how it is to be read."""
    content = {**metadata, "bad": [asdict(line) for line in bad]}
    checked = {"content": content, "checksum": zlib.crc32(json.dumps(content).encode())}
    return table.replace_schema_metadata({_METADATA_KEY: json.dumps(checked).encode()})


def write_table(place: Place, table: pa.Table) -> ShardSummary:
    """Write a described table as a shard, whole, and sum it up."""
    with staged(place) as path:
        pq.write_table(
            table,
            path,
            compression="zstd",
            row_group_size=_rows_per_group(table),
            write_batch_size=1,
            use_dictionary=["id"],
            write_statistics=["id"],
            write_page_checksum=True,
        )
        return _checked(path)


def summarize(place: Place) -> ShardSummary | None:
    """What the shard at `place` holds, or None if it is not there or not whole, and so has to be made."""
    try:
        return _checked(place) if size_of(place) else None
    except DamagedShard:
        return None


def open_table(place: Place) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """Open a shard for reading by row group; returns its metadata too.

    Raises:
        DamagedShard: the file is not what was written.
    """
    try:
        # Who reads rows verifies their own checksums.
        return patiently(lambda: _parse(open_file(place), pre_buffer=isinstance(place, Remote)))
    except Exception as error:  # a damaged footer can make the parser raise anything
        raise_damaged(f"{place} cannot be read as a shard: {error}", error)


def raise_damaged(message: str, error: Exception) -> NoReturn:
    """Say that a shard is damaged, unless it was only the way to it."""
    if is_transient(error):
        raise error
    raise DamagedShard(f"{message}; {WAY_OUT}") from error


def set_aside(place: Place) -> None:
    """Take a damaged shard out of its folder, so that the next run makes this one anew."""
    with suppress(OSError):
        damaged = place.parent / f"{place.name}.damaged"
        place.move_to(damaged) if isinstance(place, Remote) else place.rename(damaged)  # type: ignore[arg-type]


def _checked(place: Place) -> ShardSummary:
    """Read all of a shard."""
    data = pa.py_buffer(place.read_bytes()) if isinstance(place, Remote) else open_file(place).read_buffer()
    try:
        file, metadata = _parse(pa.BufferReader(data), page_checksum_verification=True)
        for group in range(file.num_row_groups):
            file.read_row_group(group)
    except Exception as error:
        raise DamagedShard(f"{place} cannot be read as a shard: {error}; {WAY_OUT}") from error
    bad = tuple(BadLine(**line) for line in metadata["bad"])
    rows, tokens = file.metadata.num_rows, metadata.get("response_tokens", 0)
    return ShardSummary(rows + len(bad), rows, tokens, data.size, hashlib.sha256(data).hexdigest(), bad)


def _parse(source: pa.NativeFile, **options: Any) -> tuple[pq.ParquetFile, dict[str, Any]]:
    file = pq.ParquetFile(source, **options)
    metadata = json.loads(file.schema_arrow.metadata[_METADATA_KEY])
    if zlib.crc32(json.dumps(metadata["content"]).encode()) != metadata["checksum"]:
        raise ValueError("its metadata is not what was written")
    return file, metadata["content"]


def _rows_per_group(table: pa.Table) -> int:
    return max(1, ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes))
