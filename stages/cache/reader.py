"""Reading a cache by sample id."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial

import pyarrow.parquet as pq
from torch import Tensor

from stages.cache.codecs import from_blobs
from stages.cache.shard import Layout, Row, open_shard, read_rows
from stages.cache.table import DamagedShard, set_aside
from stages.contract.artifact import ArtifactError
from stages.contract.place import Place, files_below, patiently

MEMORY_BYTES = 2**28
"""Of row groups that were read last."""


class CacheReader:
    """Random access to the rows of all shards in a folder, from any thread.

    Attributes:
        layout: of every shard.
    """

    def __init__(self, folder: Place) -> None:
        """Index the shards of `folder` by sample id.

        Raises:
            ArtifactError: there is no shard, or the shards differ in layout.
        """
        self._files: list[tuple[Place, pq.ParquetFile]] = []
        self._places: dict[str, tuple[int, int, int]] = {}
        self._largest_group = 1
        layouts: list[Layout] = []
        for name in files_below(folder):
            if name.endswith(".parquet"):
                with _damaged_set_aside(folder / name):
                    file, layout = open_shard(folder / name)
                    self._index(folder / name, file)
                layouts.append(layout)
        if not layouts or any(layout != layouts[0] for layout in layouts):
            raise ArtifactError(f"{folder}: expected shards of one layout, found {len(layouts)} shards")
        self.layout = layouts[0]
        self._group = lru_cache(max(1, MEMORY_BYTES // self._largest_group))(self._read_group)
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
        counts = [len(row.key.response_ids) for row in rows]
        return [from_blobs([row.blobs[i] for row in rows], self.layout.fields, counts) for i in layers]

    def _check_alignment(self, rows: Sequence[Row], response_ids: Tensor) -> None:
        ids, start = response_ids.tolist(), 0
        for key in (row.key for row in rows):
            end = start + len(key.response_ids)
            if tuple(ids[start:end]) != key.response_ids:
                raise ArtifactError(
                    f"sample {key.id}: the teacher's response tokens {list(key.response_ids)} are not the student's "
                    f"{ids[start:end]}; both need one tokenizer and chat template"
                )
            start = end
        if start != len(ids):
            more = len(ids) - start
            raise ArtifactError(
                f"sample {rows[-1].key.id}: the student's side has {more} more response tokens than were cached"
            )

    def _index(self, place: Place, file: pq.ParquetFile) -> None:
        self._files.append((place, file))
        for group in range(file.num_row_groups):
            column = patiently(partial(file.read_row_group, group, columns=["id"]))
            ids = column["id"].to_pylist()
            self._largest_group = max(self._largest_group, file.metadata.row_group(group).total_byte_size)
            self._places |= {name: (len(self._files) - 1, group, row) for row, name in enumerate(ids)}

    def _read_group(self, file: int, group: int) -> list[Row]:
        place, parquet = self._files[file]
        with self._lock, _damaged_set_aside(place):
            return patiently(lambda: read_rows(parquet, group, self.layout, place))


@contextmanager
def _damaged_set_aside(place: Place) -> Iterator[None]:
    try:
        yield
    except DamagedShard:
        set_aside(place)
        raise
