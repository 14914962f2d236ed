"""A corpus of bad input through a real capture: each costs one sample and is named with its own reason."""

from __future__ import annotations

import importlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.cache.reader import CacheReader
from stages.contract import Job, StageError
from stages.contract.files import QUARANTINE_FILE, STATES_FOLDER
from stages.contract.job import execute
from tests.stages import tiny
from tests.stages.test_chain import FLOAT32

ANSWER = tiny.text("assistant", "one")
QUESTION = tiny.text("user", "Add them.")


def about(image: str, **changes: Any) -> dict[str, Any]:
    return {"images": [image], "messages": [tiny.ask("How many dots are there?"), ANSWER]} | changes


def says(*messages: Any, **changes: Any) -> dict[str, Any]:
    return {"messages": list(messages)} | changes


CORPUS: dict[str, tuple[Any, str]] = {
    "not-json": (b"{not json", "invalid JSON"),
    "cut-json": (b'{"id": "cut-json", "messages": [', "invalid JSON"),
    "not-utf8": (b'{"id": "not-utf8", "messages": "\xff\xfe"}', "invalid UTF-8"),
    "a-list": (b"[1, 2]", "needs `id` and `messages`"),
    "a-number": (b"7", "needs `id` and `messages`"),
    "no-messages": ({}, "needs `id` and `messages`"),
    "empty-messages": (says(), "`messages` is empty"),
    "messages-a-text": ({"messages": "hello"}, "`messages` has to be a list"),
    "unknown-role": (says(tiny.text("tool", "x"), ANSWER), "needs a `role` out of system, user, assistant"),
    "no-content": (says({"role": "user"}, ANSWER), "needs `content`"),
    "part-of-another-kind": (
        says({"role": "user", "content": [{"type": "video"}]}, ANSWER),
        "not one of: text, image",
    ),
    "text-not-a-text": (says({"role": "user", "content": [{"type": "text", "text": 7}]}, ANSWER), "not one of: text"),
    "image-in-an-answer": (says(QUESTION, {"role": "assistant", "content": [{"type": "image"}]}), "not one of: text"),
    "no-answer": (says(QUESTION), "a question and then an answer"),
    "no-question": (says(ANSWER), "a question and then an answer"),
    "empty-answer": (says(QUESTION, tiny.text("assistant", " \n")), "an answer is empty"),
    "image-not-given": (says(tiny.ask("x"), ANSWER), "0 images but 1 image parts"),
    "image-not-asked-about": (says(QUESTION, ANSWER, images=["images/0.png"]), "1 images but 0 image parts"),
    "images-no-list": (about("x", images="images/0.png"), "`images` has to be a list"),
    "above-the-root": (about("../secret.png"), "lies outside the folder"),
    "absolute-path": (about("/etc/passwd"), "lies outside the folder"),
    "link-out-of-the-root": (about("images/link.png"), "lies outside the folder"),
    "missing-image": (about("images/none.png"), "none.png cannot be read: FileNotFoundError"),
    "a-folder": (about("images"), "cannot be read: IsADirectoryError"),
    "empty-image": (about("images/empty.png"), "empty.png cannot be read: UnidentifiedImageError"),
    "text-as-image": (about("images/text.png"), "text.png cannot be read: UnidentifiedImageError"),
    "truncated-image": (about("images/torn.png"), "torn.png cannot be read: "),
    "large-image": (about("images/large.png"), "40 x 40 pixels, more than 1568 allowed"),
    "decompression-bomb": (about("images/bomb.png"), "bomb.png cannot be read: DecompressionBombError"),
    "too-narrow-for-the-model": (about("images/narrow.png"), "the processor refuses the sample"),
    "too-long": (says(QUESTION, tiny.text("assistant", "one two " * 100)), "more than preprocessing.max_tokens 150"),
    "control-token-in-an-answer": (
        says(QUESTION, tiny.text("assistant", "one<|im_end|>two")),
        "a text contains <|im_end|>",
    ),
    "control-token-in-a-question": (says(tiny.text("user", "<|im_start|>"), ANSWER), "contains <|im_start|>"),
    "image-token-in-a-text": (says(tiny.text("user", "<|image_pad|>"), ANSWER), "contains <|image_pad|>"),
    "half-a-character": (says(QUESTION, tiny.text("assistant", "one \ud800")), "cannot be encoded"),
    "duplicate": ({"id": "good-0", **says(QUESTION, ANSWER)}, "duplicate id"),
}
PREPROCESSING = {"max_image_pixels": 28 * 56, "max_tokens": 150, "max_bad_fraction": 1.0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return tiny.save_qwen2vl(folder, width=16, layers=2, pad_rows=2, seed=0)


def write_corpus(folder: Path) -> Path:
    """Every bad line between two good ones."""
    good = [json.loads(line) for line in tiny.save_samples(folder).read_text().splitlines()][:4]
    images = folder / "images"
    (folder.parent / "secret.png").write_bytes((images / "0.png").read_bytes())
    (images / "link.png").symlink_to(folder.parent / "secret.png")
    (images / "empty.png").write_bytes(b"")
    (images / "text.png").write_text("not a picture")
    (images / "torn.png").write_bytes((images / "0.png").read_bytes()[:200])
    Image.new("RGB", (40, 40)).save(images / "large.png")
    Image.new("RGB", (1, 300)).save(images / "narrow.png")
    (images / "bomb.png").write_bytes(png_header(60_000, 60_000))
    lines = []
    for index, (name, (line, _)) in enumerate(CORPUS.items()):
        lines.append(json.dumps(good[index % 4] | {"id": f"good-{index}"}).encode())
        lines.append(line if isinstance(line, bytes) else json.dumps({"id": name} | line).encode())
    path = folder / "samples.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def png_header(width: int, height: int) -> bytes:
    """A few bytes that promise a picture of gigabytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def capture(teacher: Path, samples: Path, output: Any, **preprocessing: Any) -> Any:
    job = Job(
        stage="capture",
        settings={
            "model": FLOAT32,
            "target_layers": [0],
            "fraction": 1.0,
            "preprocessing": PREPROCESSING | preprocessing,
            "shard_samples": 7,
        },
        inputs={"teacher": str(teacher), "samples": str(samples)},
        output=str(output),
        resources={"workers": 0},
    )
    execute(job, importlib.import_module("stages.capture").run)
    return output


@pytest.fixture(scope="module")
def captured(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    return capture(teacher, write_corpus(root / "data"), root / "captured")


@pytest.fixture(scope="module")
def quarantine(captured: Path) -> dict[int, dict[str, Any]]:
    """By the line's place in the file."""
    lines = [json.loads(line) for line in (captured / QUARANTINE_FILE).read_text().splitlines()]
    return {line["line"]: line for line in lines}


@pytest.mark.parametrize("name", CORPUS)
def test_bad_input_is_quarantined_with_its_own_reason(quarantine: dict, name: str) -> None:
    place = 2 * list(CORPUS).index(name) + 2
    assert place in quarantine, f"line {place} was not quarantined"
    assert CORPUS[name][1] in quarantine[place]["reason"]


def test_every_good_sample_is_there_and_nothing_is_lost(captured: Path, quarantine: dict) -> None:
    """Ids in = ids out + ids quarantined."""
    reader = CacheReader(captured / STATES_FOLDER)
    assert reader.ids == [f"good-{index}" for index in range(len(CORPUS))]
    assert len(quarantine) == len(CORPUS) >= 25
    summary = json.loads((captured / "manifest.json").read_text())["summary"]
    assert summary["samples"] == 2 * len(CORPUS)
    assert (summary["rows"], summary["quarantined"]) == (len(CORPUS), len(CORPUS))


def test_too_much_bad_input_stops_the_stage_and_says_how_much(teacher: Path, tmp_path: Path) -> None:
    samples = write_corpus(tmp_path / "data")
    allowed = int(0.3 * 2 * len(CORPUS))
    with pytest.raises(StageError, match=rf"samples cannot be used, preprocessing.max_bad_fraction allows {allowed}"):
        capture(teacher, samples, tmp_path / "captured", max_bad_fraction=0.3)
    assert not (tmp_path / "captured").exists()
