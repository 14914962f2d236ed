"""Rows: the raw entries of a benchmark's files, and how fields and pictures are taken out of them.

Tab-separated tables with base64 pictures (VLMEvalKit's), JSON objects of entries, and whatever
`stages.data.records` reads: JSON Lines, JSON arrays, Parquet.
"""

from __future__ import annotations

import ast
import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.contract import StageError
from stages.data import BadSample
from stages.data.pictures import Cell, Inline, Picture, inside
from stages.data.records import Record, read_records

SUFFIXES = (".parquet", ".tsv", ".json", ".jsonl")
KEY = "key"
"""Holds the name of an entry in a JSON object."""
_REFERENCE_LENGTH = 64
"""A shorter text in the picture column of a table names the row that has the picture."""
_MISSING = ("", "nan", "None")
"""How tables that pandas wrote spell that there is nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a benchmark's file.

    Attributes:
        file: where it stands.
        line: its place there, from 1.
        name: what it is called if it has no id of its own.
        values: its fields.
    """

    file: Path
    line: int
    name: str
    values: dict[str, Any]

    def text(self, *keys: str) -> str:
        """The first of these fields that holds something, as text.

        Raises:
            BadSample: none does.
        """
        if not (found := self.maybe(*keys)):
            raise BadSample(f"{' or '.join(f'`{key}`' for key in keys)} is missing")
        return found

    def maybe(self, *keys: str) -> str:
        """The same, or nothing."""
        values = (self.values.get(key) for key in keys)
        texts = (str(value).strip() for value in values if isinstance(value, str | int | float) and not _is_nan(value))
        return next((text for text in texts if text not in _MISSING), "")

    def texts(self, key: str) -> list[str]:
        """A field that holds several texts: a list, or one written as Python writes it; empty if there is nothing.

        Raises:
            BadSample: it is no list.
        """
        value = self.values.get(key)
        if isinstance(value, str) and value.strip():
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                raise BadSample(f"`{key}` is no list") from error
        if not isinstance(value or [], list | tuple):
            raise BadSample(f"`{key}` is no list")
        return [str(entry) for entry in value or []]

    def pictures(self, *keys: str, folders: Sequence[str] = ("", "images")) -> list[Picture]:
        """What the first of these fields that holds pictures has of them; a path lies below one of `folders`.

        Raises:
            BadSample: a path leads out of the benchmark's folder.
        """
        for key in keys:
            value = self.values.get(key)
            if value and isinstance(value, list) and all(isinstance(entry, Cell | Inline) for entry in value):
                return list(value)
            if isinstance(value, str) and value.strip():
                return [self._found(value.strip(), folders)]
        return []

    def _found(self, name: str, folders: Sequence[str]) -> Path:
        root = self.file.parent.resolve()
        places = [inside(root, f"{folder}/{name}" if folder else name) for folder in folders]
        return next((place for place in places if place.is_file()), places[0])


def files_of(place: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a benchmark: the one named, or those of a folder that the first fitting pattern finds.

    Raises:
        StageError: there are none.
    """
    if place.is_file():
        return [place]
    wanted = [*patterns, *(f"*{suffix}" for suffix in SUFFIXES)]
    for pattern in wanted:
        if found := sorted(path for path in place.rglob(pattern) if path.is_file()):
            return found
    what = f"holds none of {', '.join(wanted)}" if place.is_dir() else "does not exist"
    raise StageError(f"benchmark: {place} {what}; name the benchmark's file or its folder")


def read_rows(file: Path, pictures: Sequence[str]) -> Iterator[Record]:
    """The entries of one file, in order; `pictures` are the columns that may hold any besides `image`.

    Raises:
        StageError: the file is damaged as a whole.
    """
    if file.suffix == ".tsv":
        yield from _from_table(file)
    elif file.suffix == ".json" and (entries := _object_of(file)) is not None:
        for number, (name, entry) in enumerate(entries.items(), start=1):
            yield Record(number, name, {**entry, KEY: name})
    else:
        yield from (_with_image(record) for record in read_records(file, file.parent.resolve(), pictures))


def _with_image(record: Record) -> Record:
    """A record whose pictures stand under `image`, whatever kind of file it came from."""
    if isinstance(record.value, dict) and isinstance(record.value.get("images"), list):
        record.value["image"] = record.value["images"]
    return record


def _object_of(file: Path) -> dict[str, dict[str, Any]] | None:
    """A JSON object whose values are all entries; None if the file is something else."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    is_object = isinstance(found, dict) and found and all(isinstance(entry, dict) for entry in found.values())
    return found if is_object else None


def _from_table(file: Path) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle, delimiter="\t"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise StageError(f"benchmark: {file} cannot be read as a tab-separated table: {error}") from error
    written = {row.get("index"): row.get("image") or "" for row in rows}
    for number, row in enumerate(rows, start=1):
        name = f"row {number}"
        image = row.get("image") or ""
        if 0 < len(image) <= _REFERENCE_LENGTH:
            image = written.get(image) or image
        yield Record(number, name, {**row, "image": [Inline(f"of {name}", text) for text in _texts(image)]})


def _texts(image: str) -> list[str]:
    """One picture, or several in a list as Python writes it."""
    if not image.startswith("["):
        return [image] if image not in _MISSING else []
    try:
        return [str(text) for text in ast.literal_eval(image)]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return [image]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
