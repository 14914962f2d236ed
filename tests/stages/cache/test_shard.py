"""A shard: there whole or not at all, and no damage to its data goes unnoticed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stages.cache import shard
from stages.cache import table as tables
from stages.cache.codecs import Field, from_blobs, to_blobs
from stages.cache.shard import Key, Layout, Row, make_table, open_shard, read_rows, rows_of
from stages.cache.table import ROW_GROUP_BYTES, ShardSummary, shard_path, summarize, write_table
from stages.contract.artifact import ArtifactError
from stages.data.encoding import Encoded
from stages.data.sample import BadLine, Sample

FIELDS = (Field(16, torch.bfloat16), Field(1, torch.float32))
LAYOUT = Layout("moment", ("block_002", "block_006", "last"), FIELDS)
BAD = [BadLine("broken", 7, "image 3.png cannot be read: OSError"), BadLine("line 9", 9, "invalid UTF-8")]
FLIP_EVERY = 7
"""One byte in so many is flipped, each in a copy of its own: about 600 damaged files in two seconds."""


def make_row(name: str, tokens: int, *, layout: Layout = LAYOUT) -> Row:
    """Random blobs that depend on the name; response ids 100, 101, …"""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    blobs = []
    for _ in layout.layers:
        tensors = [torch.randn(tokens, field.width, generator=generator) for field in layout.fields]
        blobs += to_blobs(tensors, layout.fields, [tokens])
    return Row(make_key(name, tokens), tuple(blobs))


def make_key(name: str, tokens: int) -> Key:
    return Key(name, "0123-4567", f"{tokens} tokens", tuple(range(100, 100 + tokens)))


def write_shard(place: Path, layout: Layout, rows: list[Row], bad: list[BadLine]) -> ShardSummary:
    return write_table(place, make_table(layout, rows, bad))


def make_rows(*names: str) -> list[Row]:
    """Of 2, 3, 4, … tokens."""
    return [make_row(name, index + 2) for index, name in enumerate(names)]


def decode(row: Row, layer: int, *, layout: Layout = LAYOUT) -> list[torch.Tensor]:
    """One layer of a row, by the codec alone."""
    return from_blobs([row.blobs[layer]], layout.fields, [len(row.key.response_ids)])


def read_all(path: Path) -> list[Row]:
    file, layout = open_shard(path)
    return [row for group in range(file.num_row_groups) for row in read_rows(file, group, layout, path)]


def flips(path: Path, region: range | None = None) -> Iterator[tuple[int, Path]]:
    """Copies of a shard with one byte flipped."""
    data = path.read_bytes()
    damaged = path.with_name("shard-000001.parquet")
    for place in region or range(0, len(data), FLIP_EVERY):
        damaged.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        yield place, damaged


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = shard_path(tmp_path, 0)
    write_shard(place, LAYOUT, make_rows("a", "b", "c"), BAD)
    return place


def test_rows_and_layout_come_back(path: Path) -> None:
    assert path.name == "shard-000000.parquet"
    assert open_shard(path)[1] == LAYOUT
    assert read_all(path) == make_rows("a", "b", "c")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    layout = Layout("states", ("last",), (Field(4, dtype),))
    row = make_row("a", 3, layout=layout)
    write_shard(tmp_path / "shard.parquet", layout, [row], [])
    assert open_shard(tmp_path / "shard.parquet")[1] == layout
    assert read_all(tmp_path / "shard.parquet") == [row]


def test_the_summary_counts_what_is_there_and_keeps_the_quarantined_lines(path: Path) -> None:
    """A shard that is taken up again has to say what was left out, and why. Red if only rows are counted."""
    summary = summarize(path)
    assert summary is not None
    assert (summary.samples, summary.rows, summary.response_tokens) == (5, 3, 2 + 3 + 4)
    assert summary.bytes == path.stat().st_size
    assert summary.bad == tuple(BAD)


def test_a_shard_in_which_nothing_could_be_used_is_still_a_shard(tmp_path: Path) -> None:
    summary = write_shard(tmp_path / "shard.parquet", LAYOUT, [], BAD)
    assert (summary.samples, summary.rows, summary.response_tokens) == (2, 0, 0)
    assert read_all(tmp_path / "shard.parquet") == []


def test_no_shard_has_no_summary(tmp_path: Path) -> None:
    assert summarize(tmp_path / "shard.parquet") is None


def test_a_write_that_dies_leaves_the_old_shard_or_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the bytes are written, then the process dies. Red if the final name is written to directly."""
    before = path.read_bytes()

    def die(table: pa.Table, place: Path, **_: object) -> None:
        Path(place).write_bytes(before[: len(before) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(tables.pq, "write_table", die)
    for place in (path, shard_path(path.parent, 1)):
        with pytest.raises(KeyboardInterrupt):
            write_shard(place, LAYOUT, make_rows("x"), [])
    assert path.read_bytes() == before
    assert sorted(path.parent.glob("*.parquet")) == [path]


def test_nothing_temporary_stays(path: Path) -> None:
    assert list(path.parent.iterdir()) == [path]


def test_samples_are_cut_out_of_the_batch_they_were_encoded_in() -> None:
    """Three samples of 2, 1 and 3 tokens. Red if a row gets a neighbour's tokens or another layer's blob."""

    def encoded(name: str, ids: list[int]) -> Encoded:
        prompt = [1, 1]
        mask = torch.tensor([False] * len(prompt) + [True] * len(ids))
        return Encoded(Sample(name, (), ()), torch.tensor(prompt + ids), mask, {})

    samples = [encoded("a", [5, 6]), encoded("b", [7]), encoded("c", [8, 9, 10])]
    layers = [[torch.arange(6.0)[:, None].expand(6, 16) + 10 * layer, torch.arange(6.0)[:, None]] for layer in (0, 1)]
    rows = rows_of([Key.of(sample) for sample in samples], layers, FIELDS)
    assert {name: row.key.response_ids for name, row in rows.items()} == {"a": (5, 6), "b": (7,), "c": (8, 9, 10)}
    assert [decode(rows["c"], layer)[0][:, 0].tolist() for layer in (0, 1)] == [[3, 4, 5], [13, 14, 15]]
    assert decode(rows["b"], 0)[1].tolist() == [[2.0]]


def test_a_shard_of_several_megabytes_is_read_in_parts(tmp_path: Path) -> None:
    """Random access reads one row group. Red if a whole shard became one group."""
    layout = Layout("states", ("last",), (Field(2048, torch.float32),))
    path = tmp_path / "shard.parquet"
    rows = [make_row(f"sample-{index}", 32, layout=layout) for index in range(16)]
    write_shard(path, layout, rows, [])
    groups = open_shard(path)[0].num_row_groups
    assert groups >= path.stat().st_size // (2 * ROW_GROUP_BYTES), f"{groups} row groups"
    assert read_all(path) == rows


def test_another_version_of_the_codecs_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "CODEC_VERSION", 1)
    write_shard(path, LAYOUT, make_rows("a"), [])
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"shard-000000\.parquet: codec version 1, .* --force precompute`"):
        open_shard(path)


def test_a_changed_byte_of_a_blob_is_found_and_its_sample_named(path: Path) -> None:
    """Changed and written again, so that Parquet itself has nothing to complain of. Red without the checksum."""
    table = pq.read_table(path)
    column = table.schema.get_field_index("block_006")
    blobs = table["block_006"].to_pylist()
    blobs[1] = blobs[1][:-1] + bytes([blobs[1][-1] ^ 1])
    pq.write_table(table.set_column(column, "block_006", pa.array(blobs, pa.large_binary())), path)
    with pytest.raises(ArtifactError, match=r"shard-000000\.parquet: the checksum of sample b does not fit its data"):
        read_all(path)


def test_exchanged_blobs_are_found(path: Path) -> None:
    """Two layers of equal size exchanged. Red if the checksum ignores the order of layers."""
    table = pq.read_table(path)
    names = table.column_names
    one, other = names.index("block_002"), names.index("block_006")
    names[one], names[other] = names[other], names[one]
    pq.write_table(table.rename_columns(names).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(ArtifactError, match="sample a"):
        read_all(path)


def test_a_flipped_byte_on_disk_is_found_and_its_sample_named(tmp_path: Path) -> None:
    """In the middle of sample b's first blob: bytes that do not compress lie in the file as they are."""
    source = random.Random(0)
    rows = [Row(make_key(name, 2), tuple(source.randbytes(300) for _ in LAYOUT.layers)) for name in "abc"]
    path = shard_path(tmp_path, 0)
    write_shard(path, LAYOUT, rows, [])
    place = path.read_bytes().index(rows[1].blobs[0]) + 150
    _, damaged = next(flips(path, range(place, place + 1)))
    with pytest.raises(ArtifactError, match=rf"{damaged.name}: the checksum of sample b does not fit"):
        read_all(damaged)


def test_no_flipped_byte_anywhere_gives_other_numbers(path: Path) -> None:
    """Header, pages, footer: an error, or the same blobs. Red if damage can reach the training."""
    blobs = [row.blobs for row in read_all(path)]
    found = 0
    for place, damaged in flips(path):
        try:
            assert [row.blobs for row in read_all(damaged)] == blobs, f"byte {place}"
        except AssertionError:
            raise
        except Exception:
            found += 1
    assert found > 100, f"only {found} of the flips were noticed"


def test_damage_anywhere_is_an_artifact_error_that_names_the_file(path: Path) -> None:
    for _, damaged in flips(path):
        try:
            read_all(damaged)
        except ArtifactError as error:
            if damaged.name not in str(error):
                raise


@pytest.mark.parametrize("column", ["id", "response_ids"])
def test_a_changed_id_is_found(path: Path, column: str) -> None:
    """A row that says it is another sample's gives wrong targets for it, without a word."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[1] = "x" if column == "id" else [values[1][0] + 1, *values[1][1:]]
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, table.schema.field(column).type)), path)
    with pytest.raises(ArtifactError):
        read_all(path)


@pytest.mark.parametrize("keep", [0, 3, 0.5, -1])
def test_a_torn_shard_is_refused_by_readers_and_made_anew_by_its_stage(path: Path, keep: float) -> None:
    """Nothing, four bytes less than a header, half, all but one byte."""
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ArtifactError, match=r"shard-000000\.parquet cannot be read as a shard"):
        open_shard(path)
    assert summarize(path) is None


def test_a_parquet_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ArtifactError, match=r"other\.parquet cannot be read as a shard"):
        open_shard(tmp_path / "other.parquet")
