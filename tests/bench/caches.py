"""Caches as the stages write them, of what a benchmark puts into them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from stages.cache.shard import Key, Layout, Row, make_table, rows_of
from stages.cache.table import shard_path, write_table
from stages.data.encoding import Encoded

Piece = tuple[Sequence[Encoded], Sequence[list[Tensor]]]
"""Samples, and for each cached layer one [N, width] tensor per field."""


def save_cache(folder: Path, layout: Layout, pieces: Iterable[Piece]) -> Path:
    """Write a cache of one shard, and say where it lies."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = {}
    for samples, layers in pieces:
        rows |= rows_of([Key.of(sample) for sample in samples], layers, layout.fields)
    place = shard_path(folder, 0)
    write_table(place, make_table(layout, list(rows.values()), []))
    return place
