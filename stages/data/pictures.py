"""Pictures: where one lies, its bytes, its pixels. Nothing is read before it is needed."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.data import BadSample

_KEPT_ROW_GROUPS = 2
"""Of a picture column, in memory: neighbours of a picture that was asked for come from the same one."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture in a Parquet file: bytes, a path, or a record of both as Hugging Face writes it.

    Attributes:
        file: the Parquet file.
        row_group, row: where in the file, the row counted within its row group.
        column: `image` or `images`.
        place: which of the row's pictures.
        root: the folder below which a path in the cell has to lie.
    """

    file: Path
    row_group: int
    row: int
    column: str
    place: int
    root: Path

    @property
    def name(self) -> str:
        """What a person needs to find it."""
        return f"{self.place} of {self.file.name} row group {self.row_group} row {self.row}"


@dataclass(frozen=True, slots=True)
class Inline:
    """A picture that stands as base64 in a table of text.

    Attributes:
        name: what a person needs to find it.
        text: its file, base64.
    """

    name: str
    text: str = field(repr=False)


Picture = Path | Cell | Inline


def read_picture(picture: Picture) -> bytes:
    """The bytes of one picture, as they are stored.

    Raises:
        BadSample: there are none, or they lie outside the folder of the data.
    """
    try:
        if isinstance(picture, Inline):
            return base64.b64decode(picture.text, validate=True)
        return picture.read_bytes() if isinstance(picture, Path) else _read_cell(picture)
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        raise BadSample(f"image {picture.name} cannot be read: {type(error).__name__}") from error


def decode_picture(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """The pixels of one picture, as RGB.

    Raises:
        BadSample: it is damaged or has more than `max_pixels` pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadSample(f"image {name} has {width} x {height} pixels, more than {max_pixels} allowed")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSample(f"image {name} cannot be read: {type(error).__name__}") from error


def inside(root: Path, name: str) -> Path:
    """The absolute path of a picture that is named relative to `root`.

    Raises:
        BadSample: it lies elsewhere.
    """
    folder, last = os.path.split(os.path.join(root, name))
    try:
        path = _resolved(folder) / last
        if last == ".." or os.path.islink(path):
            path = path.resolve()
    except ValueError as error:
        raise BadSample(f"image {name!r} is no path: {error}") from error
    if not _is_below(path.parent, root) and path != root:
        raise BadSample(f"image {name} lies outside the folder of the sample file")
    return path


@lru_cache(maxsize=4096)
def _resolved(folder: str) -> Path:
    """Pictures come from few folders."""
    return Path(folder).resolve()


@lru_cache(maxsize=4096)
def _is_below(folder: Path, root: Path) -> bool:
    return folder.is_relative_to(root)


def _read_cell(cell: Cell) -> bytes:
    value = _column(cell.file, cell.row_group, cell.column)[cell.row].as_py()
    if isinstance(value, list):
        value = value[cell.place]
    if isinstance(value, dict):
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return inside(cell.root, value).read_bytes()
    raise BadSample(f"image {cell.name} has neither bytes nor a path")


@lru_cache(maxsize=_KEPT_ROW_GROUPS)
def _column(file: Path, row_group: int, column: str) -> pa.ChunkedArray:
    return pq.ParquetFile(file).read_row_group(row_group, columns=[column]).column(0)
