"""Tiny copies of public benchmarks in the file formats that they are published in."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(shade: int = 0, side: int = 28) -> bytes:
    """The file of a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def cell(shade: int = 0) -> dict[str, Any]:
    """A picture as Hugging Face writes it into Parquet."""
    return {"bytes": picture(shade), "path": f"{shade}.png"}


def base64_picture(shade: int = 0) -> str:
    """A picture as VLMEvalKit writes it into a table."""
    return base64.b64encode(picture(shade)).decode()


def write_table(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A tab-separated table with a header, quoted as pandas does."""
    with file.open("w", newline="") as handle:
        table = csv.DictWriter(handle, list(rows[0]), delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return file


def write_parquet(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file


def write_json(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_picture(file: Path, shade: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(shade))
    return file


def mmbench_row(index: int, answer: str = "B", image: str = "", **changes: Any) -> dict[str, Any]:
    row = {"index": index, "question": "What is it?", "hint": "", "A": "a dog", "B": "a cat", "C": "a horse", "D": ""}
    return {**row, "answer": answer, "category": "identity", "image": image or base64_picture(index % 256), **changes}
