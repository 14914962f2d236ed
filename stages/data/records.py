"""Records: the raw entries of a data file, whatever kind of file it is.

JSON Lines, a JSON array, a Parquet file, or a folder of Parquet files. What a record means is not
decided here; that it cannot even be decoded is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contract import StageError
from stages.data.mixture import data_files
from stages.data.pictures import Cell

PICTURE_COLUMNS = ("images", "image")
_PARQUET_MAGIC = b"PAR1"
_ROWS_AT_ONCE = 256
_CHUNK = 2**20
_GAP = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a data file.

    Attributes:
        line: where it stands, counted from 1: a line, a place in the array, or a row of a Parquet file.
        name: what it is called if it has no id of its own.
        value: the decoded entry.
        reason: why it cannot be decoded; empty if it can.
    """

    line: int
    name: str
    value: Any = None
    reason: str = ""


def read_records(place: Path, root: Path, pictures: Sequence[str] = ()) -> Iterator[Record]:
    """The records of a file or folder, in order.

    Args:
        root: the folder below which pictures lie.
        pictures: columns of Parquet files that hold pictures besides `image` or `images`.

    Raises:
        StageError: a file is damaged as a whole.
    """
    for number, file in enumerate(data_files(place), start=1):
        with file.open("rb") as handle:
            start = handle.read(256)
        if start.startswith(_PARQUET_MAGIC):
            yield from _from_parquet(file, root, f"part {number} " if place.is_dir() else "", pictures)
        elif file.suffix != ".jsonl" and start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            yield from _from_array(file)
        else:
            yield from _from_lines(file)


def _from_lines(file: Path) -> Iterator[Record]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            name = f"line {number}"
            try:
                if line.strip():
                    yield Record(number, name, json.loads(line.decode("utf-8")))
            except UnicodeDecodeError:
                yield Record(number, name, reason="invalid UTF-8")
            except json.JSONDecodeError as error:
                yield Record(number, name, reason=f"invalid JSON: {error.msg}")


def _from_array(file: Path) -> Iterator[Record]:
    """One entry at a time, so that a file of gigabytes is never in memory whole."""
    try:
        with file.open(encoding="utf-8-sig") as handle:
            for number, entry in enumerate(_entries(handle), start=1):
                yield Record(number, f"entry {number}", entry)
    except ValueError as error:
        raise StageError(f"data: {file} begins like a JSON array but is none: {error}") from error


def _entries(handle: TextIO) -> Iterator[Any]:
    decode = json.JSONDecoder().raw_decode
    text = handle.read(_CHUNK)
    place = text.index("[") + 1
    while not text.startswith("]", place := _skip_gap(text, place)):
        try:
            entry, end = decode(text, place)
        except json.JSONDecodeError as error:
            problem, end = str(error), len(text)
        if end < len(text):
            place = end
            yield entry
        elif more := handle.read(max(_CHUNK, len(text) - place)):
            text, place = text[place:] + more, 0
        else:
            raise ValueError(problem)
    if text[place + 1 :].strip() or handle.read().strip():
        raise ValueError("something follows the end of the array; a file with one record a line is named *.jsonl")


def _skip_gap(text: str, place: int) -> int:
    gap = _GAP.match(text, place)
    return gap.end() if gap else place


def _from_parquet(file: Path, root: Path, prefix: str, more: Sequence[str]) -> Iterator[Record]:
    """Rows without the bytes of their pictures, which are left where they are; named by `prefix` and number."""
    try:
        table = pq.ParquetFile(file)
        own = next((name for name in PICTURE_COLUMNS if _holds_bytes(table, name)), None)
        columns = {name: name for name in more if _holds_bytes(table, name)} | ({own: "images"} if own else {})
        leaves = _leaves_to_read(table, {*PICTURE_COLUMNS, *more})
        number = 0
        for group in range(table.num_row_groups):
            first = number
            for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=leaves):
                counts = {column: _picture_counts(batch, column) for column in columns}
                rows = batch.drop_columns([*columns]).to_pylist()
                for place, row in enumerate(rows):
                    for column, key in columns.items():
                        cell = (file, group, number - first, column)
                        row[key] = [Cell(*cell, picture, root) for picture in range(counts[column][place])]
                    number += 1
                    yield Record(number, f"{prefix}row {number}", row)
    except pa.ArrowException as error:
        raise StageError(f"data: {file} cannot be read as Parquet: {error}") from error


def _holds_bytes(table: pq.ParquetFile, column: str) -> bool:
    """Whether a column has pictures in it, rather than paths alone."""
    return any(_is_binary(leaf) for leaf in _leaves(table) if leaf.path.split(".")[0] == column)


def _leaves_to_read(table: pq.ParquetFile, pictures: set[str]) -> list[str]:
    """All leaves without bytes, and bytes that stand alone, without which pictures could not be counted."""
    plain = [leaf.path for leaf in _leaves(table) if not _is_binary(leaf)]
    covered = {path.split(".")[0] for path in plain}
    alone = [leaf.path for leaf in _leaves(table) if leaf.path.split(".")[0] in pictures - covered]
    return plain + alone


def _leaves(table: pq.ParquetFile) -> list[Any]:
    return [table.schema.column(index) for index in range(len(table.schema))]


def _is_binary(leaf: Any) -> bool:
    return leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"


def _picture_counts(batch: pa.RecordBatch, column: str) -> list[int]:
    values = batch.column(column)
    is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    counts = pc.list_value_length(values).fill_null(0) if is_list else pc.is_valid(values).cast(pa.int32())
    return counts.to_pylist()
