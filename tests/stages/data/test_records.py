"""The same records out of every kind of file; pictures in Parquet are left in their file until they are wanted."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.contract import StageError
from stages.data import BadSample, pictures
from stages.data.pictures import Cell, read_picture
from stages.data.sample import read_samples

LLAVA = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": "red"}]
TEXT_ONLY = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
CHAT = [
    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which colour?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
]


def png(shade: int) -> bytes:
    """A picture whose size and first pixel tell which one it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (8 + shade, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def shades(path: Path) -> list[list[int]]:
    samples, bad = read_samples(path)
    assert bad == []
    return [[image.size[0] - 8 for image in sample.load_images(10_000)] for sample in samples]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.anything"])
def test_lines_and_arrays_hold_the_same_samples(tmp_path: Path, name: str) -> None:
    records = [{"id": i, "image": f"{i}.png", "conversations": LLAVA} for i in range(3)]
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    path = tmp_path / name
    path.write_text("\n\n".join(map(json.dumps, records)) if name == "data.jsonl" else json.dumps(records, indent=1))
    assert shades(path) == [[0], [1], [2]]
    assert [(sample.id, sample.line) for sample in read_samples(path)[0]] == [
        (str(i), 2 * i + 1 if name == "data.jsonl" else i + 1) for i in range(3)
    ]


def test_an_array_of_which_one_entry_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(
        json.dumps([7, {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}])
    )
    samples, bad = read_samples(path)
    assert [sample.id for sample in samples] == ["entry 2"]
    assert [(line.id, line.line) for line in bad] == [("entry 1", 1)]


@pytest.mark.parametrize(
    "column",
    [
        {"images": [{"bytes": png(3), "path": None}, {"bytes": png(4), "path": "four.png"}]},
        {"images": [png(3), png(4)]},
        {"images": ["3.png", "4.png"]},
        {"images": [{"bytes": None, "path": "3.png"}, {"bytes": None, "path": "4.png"}]},
    ],
    ids=["records", "bytes", "paths", "records of paths"],
)
def test_two_pictures_a_row_in_every_layout(tmp_path: Path, column: dict[str, Any]) -> None:
    for shade in (3, 4):
        (tmp_path / f"{shade}.png").write_bytes(png(shade))
    two = [{**CHAT[0], "content": [CHAT[0]["content"][0], *CHAT[0]["content"]]}, CHAT[1]]
    schema = pa.schema(
        [
            pa.field("messages", pa.Table.from_pylist([{"m": two}]).schema.field("m").type),
            pa.field("images", pa.Table.from_pylist([column]).schema.field("images").type),
        ]
    )
    if isinstance(column["images"][0], dict):
        record = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        schema = schema.set(1, pa.field("images", pa.list_(record)))
    pq.write_table(pa.Table.from_pylist([{"messages": two, **column}], schema), tmp_path / "data.parquet")
    assert shades(tmp_path / "data.parquet") == [[3, 4]]


@pytest.mark.parametrize("image", [png(5), {"bytes": png(5), "path": None}, "5.png"], ids=["bytes", "record", "path"])
def test_one_picture_a_row_in_every_layout(tmp_path: Path, image: Any) -> None:
    (tmp_path / "5.png").write_bytes(png(5))
    rows = [{"conversations": LLAVA, "image": image}]
    if isinstance(image, dict):
        rows[0]["image"] = {**image, "path": "inside.png"}
    assert shades(write(tmp_path / "data.parquet", rows)) == [[5]]


def test_a_row_without_a_picture_among_others(tmp_path: Path) -> None:
    rows = [
        {"conversations": LLAVA, "images": [{"bytes": png(1), "path": "x"}]},
        {"conversations": TEXT_ONLY, "images": None},
        {"conversations": TEXT_ONLY, "images": []},
    ]
    assert shades(write(tmp_path / "data.parquet", rows)) == [[1], [], []]


class TestShards:
    """A folder of Parquet files is one data set."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for shard in range(2):
            rows = [
                {"messages": CHAT, "images": [{"bytes": png(10 * shard + row), "path": f"{row}.png"}]}
                for row in range(5)
            ]
            write(tmp_path / f"train-{shard:05d}-of-00002.parquet", rows, row_group_size=2)
        return tmp_path

    def test_rows_are_found_again_in_their_row_groups(self, folder: Path) -> None:
        assert shades(folder) == [[10 * shard + row] for shard in range(2) for row in range(5)]
        ids = [sample.id for sample in read_samples(folder)[0]]
        assert ids[6] == "part 2 row 2"

    def test_a_picture_is_read_in_any_order_and_process(self, folder: Path) -> None:
        samples = pickle.loads(pickle.dumps(read_samples(folder)[0]))
        assert [sample.load_images(10_000)[0].size[0] for sample in reversed(samples)][:3] == [22, 21, 20]

    def test_reading_samples_reads_no_picture(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pictures, "_column", lambda *_: pytest.fail("a picture was read"))
        samples, _ = read_samples(folder)
        assert len(pickle.dumps(samples)) < 10 * 1000
        assert all(isinstance(sample.images[0], Cell) for sample in samples)

    def test_bytes_are_not_in_what_is_read_of_a_row(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[list[str]] = []
        original = pq.ParquetFile.iter_batches

        def spy(self: pq.ParquetFile, *args: Any, **options: Any) -> Any:
            asked.append(options["columns"])
            return original(self, *args, **options)

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
        read_samples(folder)
        assert asked
        assert not any(leaf.endswith("bytes") for leaves in asked for leaf in leaves)


def test_a_cell_that_leads_out_of_the_folder_or_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(png(1))
    cells = [{"bytes": None, "path": name} for name in ("../secret.png", "none.png", None)]
    cells.append({"bytes": b"x", "path": "x"})
    rows = [{"conversations": LLAVA, "images": [cell]} for cell in cells]
    samples, _ = read_samples(write(tmp_path / "data" / "data.parquet", rows))
    reasons = ["outside the folder", "cannot be read: FileNotFoundError", "neither bytes nor a path"]
    for sample, reason in zip(samples, reasons, strict=False):
        with pytest.raises(BadSample, match=reason):
            read_picture(sample.images[0])
    with pytest.raises(BadSample, match="0 of data.parquet row group 0 row 3 cannot be read: UnidentifiedImageError"):
        samples[3].load_images(100)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.jsonl", None, "none.jsonl does not exist"),
        ("cut.json", b'[{"id": 1},', "cut.json begins like a JSON array but is none"),
        ("cut.parquet", b"PAR1 and then nothing", "cut.parquet cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_damaged_as_a_whole(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError, match=reason):
        read_samples(tmp_path / name)


def test_a_folder_without_parquet(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"holds no \*.parquet"):
        read_samples(tmp_path)


def test_ids_are_those_of_pictures_in_llava_and_of_samples_in_ours(tmp_path: Path) -> None:
    """LLaVA's own files repeat an id for every conversation about one picture."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"id": "7", "conversations": TEXT_ONLY}] * 2))
    assert [sample.id for sample in read_samples(path)[0]] == ["7", "7 (entry 2)"]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps([{"id": "7", "messages": messages}] * 2))
    samples, bad = read_samples(path)
    assert (len(samples), [line.reason for line in bad]) == (1, ["duplicate id"])


def test_a_format_can_be_stated_behind_the_place(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"conversations": LLAVA, "image": None, "images": ["a.png"]}]))
    assert read_samples(Path(f"{path}#sharegpt"))[0][0].format == "sharegpt"
    assert "`messages` to be messages" in read_samples(Path(f"{path}#messages"))[1][0].reason
