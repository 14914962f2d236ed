"""Reading by sample id: the right rows, in the order of the batch, or an error with a name in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.cache import reader as module
from stages.cache.codecs import Field
from stages.cache.reader import CacheReader
from stages.cache.shard import Layout, Row
from stages.cache.table import shard_path
from stages.contract.artifact import ArtifactError
from tests.stages.cache.test_shard import FIELDS, LAYOUT, decode, make_row, make_rows, write_shard

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def rows() -> dict[str, Row]:
    return {row.key.id: row for row in make_rows(*NAMES)}


@pytest.fixture
def folder(tmp_path: Path, rows: dict[str, Row]) -> Path:
    """Five samples in two shards; the second was written first."""
    write_shard(shard_path(tmp_path, 1), LAYOUT, [rows["d"], rows["e"]], [])
    write_shard(shard_path(tmp_path, 0), LAYOUT, [rows["a"], rows["b"], rows["c"]], [])
    return tmp_path


def response_ids(*rows: Row) -> torch.Tensor:
    return torch.tensor([token for row in rows for token in row.key.response_ids])


def test_every_sample_of_every_shard_is_found(folder: Path, rows: dict[str, Row]) -> None:
    reader = CacheReader(folder)
    assert len(reader) == 5
    assert reader.ids == list(NAMES)
    assert reader.layout == LAYOUT
    for name in reversed(NAMES):
        assert name in reader
        assert reader.read(name) == rows[name]


def test_an_unknown_sample_is_not_there(folder: Path) -> None:
    reader = CacheReader(folder)
    assert "x" not in reader
    with pytest.raises(KeyError, match="x"):
        reader.read("x")


def test_samples_are_found_in_any_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of one or two rows, few of them in memory at a time. Red if a place is counted over the file."""
    monkeypatch.setattr("stages.cache.table.ROW_GROUP_BYTES", 400)
    monkeypatch.setattr(module, "MEMORY_BYTES", 1000)
    rows = make_rows(*"abcdefghijkl")
    write_shard(shard_path(tmp_path, 0), LAYOUT, rows, [])
    reader = CacheReader(tmp_path)
    assert reader._files[0][1].num_row_groups > 4
    for row in [*rows, *reversed(rows)]:
        assert reader.read(row.key.id) == row


def test_a_batch_stands_in_its_own_order(folder: Path, rows: dict[str, Row]) -> None:
    """Samples of both shards, shuffled. Red if tokens follow the files instead of the batch."""
    batch = [rows["e"], rows["a"], rows["d"]]
    layers = CacheReader(folder).fields([row.key.id for row in batch], response_ids(*batch))
    assert len(layers) == len(LAYOUT.layers)
    for layer, fields in enumerate(layers):
        assert len(fields) == len(FIELDS)
        for index, ours in enumerate(fields):
            assert ours.dtype == FIELDS[index].dtype
            assert torch.equal(ours, torch.cat([decode(row, layer)[index] for row in batch]))


def test_other_response_tokens_are_refused_and_the_sample_named(folder: Path, rows: dict[str, Row]) -> None:
    """One id of the second sample differs. Red if only lengths are compared: training would be on noise."""
    batch = [rows["a"], rows["c"], rows["d"]]
    ids = response_ids(*batch)
    ids[len(rows["a"].key.response_ids) + 2] = 7
    with pytest.raises(ArtifactError) as error:
        CacheReader(folder).fields([row.key.id for row in batch], ids)
    message = str(error.value)
    assert message.startswith("sample c: the teacher's response tokens [100, 101, 102, 103]"), message
    assert "[100, 101, 7, 103]" in message, message


@pytest.mark.parametrize("count", [-1, -2])
def test_a_batch_that_ends_early_is_refused(folder: Path, rows: dict[str, Row], count: int) -> None:
    batch = [rows["a"], rows["b"]]
    with pytest.raises(ArtifactError, match="sample b: the teacher's response tokens"):
        CacheReader(folder).fields([row.key.id for row in batch], response_ids(*batch)[:count])


def test_a_batch_with_more_tokens_than_the_cache_is_refused(folder: Path, rows: dict[str, Row]) -> None:
    """The student's template adds a token at the end; without a check it fails far away, on a shape."""
    batch = [rows["a"], rows["b"]]
    ids = torch.cat([response_ids(*batch), torch.tensor([103])])
    with pytest.raises(ArtifactError, match="sample b"):
        CacheReader(folder).fields([row.key.id for row in batch], ids)


@pytest.mark.parametrize(
    "other",
    [
        Layout("hidden", LAYOUT.layers, FIELDS),
        Layout("moment", ("block_002", "last"), FIELDS),
        Layout("moment", ("block_006", "block_002", "last"), FIELDS),
        Layout("moment", LAYOUT.layers, (Field(17, torch.bfloat16), FIELDS[1])),
        Layout("moment", LAYOUT.layers, (Field(16, torch.float16), FIELDS[1])),
    ],
    ids=["codec", "layers", "order of layers", "width", "dtype"],
)
def test_shards_of_different_layouts_are_refused(folder: Path, other: Layout) -> None:
    write_shard(shard_path(folder, 2), other, [make_row("f", 2, layout=other)], [])
    with pytest.raises(ArtifactError, match="expected shards of one layout, found 3 shards"):
        CacheReader(folder)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shard-000000.tmp").write_bytes(b"half of a shard")
    with pytest.raises(ArtifactError, match="found 0 shards"):
        CacheReader(tmp_path)


def test_a_row_group_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if each sample of a batch reads its group from disk again."""
    reads = []
    read_rows = module.read_rows
    monkeypatch.setattr(module, "read_rows", lambda *args: reads.append(args[1]) or read_rows(*args))
    reader = CacheReader(folder)
    for _ in range(3):
        for name in NAMES:
            reader.read(name)
    assert len(reads) == 2


def test_a_damaged_shard_is_set_aside_and_a_shard_of_another_version_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a version that an older program wrote is thrown away as if it were torn."""
    torn = shard_path(folder, 1)
    torn.write_bytes(torn.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=r"shard-000001\.parquet .* set aside, and the next run makes it anew"):
        CacheReader(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["shard-000000.parquet", "shard-000001.parquet.damaged"]
    monkeypatch.setattr("stages.cache.shard.CODEC_VERSION", 99)
    with pytest.raises(ArtifactError, match="codec version 3, this program reads version 99"):
        CacheReader(folder)
    assert shard_path(folder, 0).exists()
