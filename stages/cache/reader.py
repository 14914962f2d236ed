"""Reading a cache by sample id."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from stages.cache.codecs import from_blob
from stages.cache.shard import DamagedShard, Layout, Row, open_shard, read_rows, set_aside
from stages.contract.artifact import ArtifactError

ROW_GROUPS_IN_MEMORY = 256


class CacheReader:
    """Random access to the rows of all shards in a folder, from any thread.

    Attributes:
        layout: of every shard.
    """

    def __init__(self, folder: Path) -> None:
        """Index the shards of `folder` by sample id.

        Raises:
            ArtifactError: there is no shard, or the shards differ in layout.
        """
        self._files: list[tuple[Path, pq.ParquetFile]] = []
        self._places: dict[str, tuple[int, int, int]] = {}
        layouts: list[Layout] = []
        for path in sorted(folder.glob("*.parquet")):
            with _damaged_set_aside(path):
                file, layout = open_shard(path)
                self._index(path, file)
            layouts.append(layout)
        if not layouts or any(layout != layouts[0] for layout in layouts):
            raise ArtifactError(f"{folder}: expected shards of one layout, found {len(layouts)} shards")
        self.layout = layouts[0]
        self._group = lru_cache(ROW_GROUPS_IN_MEMORY)(self._read_group)
        self._lock = threading.Lock()

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def ids(self) -> list[str]:
        """All sample ids, in the order of the shards."""
        return list(self._places)

    def read(self, sample_id: str) -> Row:
        """The row of one sample.

        Raises:
            KeyError: the cache has no such sample.
        """
        file, group, row = self._places[sample_id]
        return self._group(file, group)[row]

    def fields(self, sample_ids: Sequence[str], response_ids: Tensor) -> list[list[Tensor]]:
        """The fields of several samples, their tokens one after the other.

        Args:
            sample_ids: of the samples of a batch.
            response_ids: [N] int64, the batch's response tokens; they have to be the cached ones.

        Returns:
            For each layer, one [N, width] tensor per field.

        Raises:
            ArtifactError: a sample's cached tokens are not those of the batch; it is named.
        """
        rows = [self.read(sample_id) for sample_id in sample_ids]
        self._check_alignment(rows, response_ids)
        layers = range(len(self.layout.layers))
        pieces = [[from_blob(row.blobs[i], self.layout.fields, len(row.response_ids)) for row in rows] for i in layers]
        return [[torch.cat(field) for field in zip(*layer, strict=True)] for layer in pieces]

    def _check_alignment(self, rows: Sequence[Row], response_ids: Tensor) -> None:
        ids, start = response_ids.tolist(), 0
        for row in rows:
            end = start + len(row.response_ids)
            if tuple(ids[start:end]) != row.response_ids:
                raise ArtifactError(
                    f"sample {row.id}: the teacher's response tokens {list(row.response_ids)} are not the student's "
                    f"{ids[start:end]}; both need one tokenizer and chat template"
                )
            start = end
        if start != len(ids):
            raise ArtifactError(
                f"sample {rows[-1].id}: the student's side has {len(ids) - start} more response tokens than were cached"
            )

    def _index(self, path: Path, file: pq.ParquetFile) -> None:
        self._files.append((path, file))
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["id"])["id"].to_pylist()
            self._places |= {name: (len(self._files) - 1, group, row) for row, name in enumerate(ids)}

    def _read_group(self, file: int, group: int) -> list[Row]:
        path, parquet = self._files[file]
        with self._lock, _damaged_set_aside(path):
            return read_rows(parquet, group, self.layout, path)


@contextmanager
def _damaged_set_aside(path: Path) -> Iterator[None]:
    try:
        yield
    except DamagedShard:
        set_aside(path)
        raise
