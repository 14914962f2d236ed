"""Bad lines cost one sample each, with their own reason; good ones all come through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from stages.data.sample import BadSample, parse_sample, read_samples
from tests.stages import tiny

GOOD = {"id": "good", "messages": [tiny.text("user", "Add."), tiny.text("assistant", "one")]}
ANSWER = tiny.text("assistant", "one")


def test_all_kinds_of_good_samples_are_read_in_order(tmp_path: Path) -> None:
    samples, bad = read_samples(tiny.save_samples(tmp_path))
    assert [sample.id for sample in samples] == [f"sample-{i}" for i in range(12)]
    assert not bad
    assert samples[1].responses == ["one", "one four"]
    assert samples[1].question == "Add them."
    assert [len(sample.images) for sample in samples[:4]] == [1, 1, 2, 0]
    assert [sample.line for sample in samples] == list(range(1, 13))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "invalid JSON"),
        (b'{"id": "\xff"}', "invalid UTF-8"),
        ({"id": "x"}, "needs `id` and `messages`"),
        ([], "needs `id` and `messages`"),
        (GOOD | {"messages": []}, "`messages` is empty"),
        (GOOD | {"messages": "hello"}, "`messages` has to be a list"),
        (GOOD | {"messages": [tiny.text("tool", "x"), ANSWER]}, "needs a `role` out of"),
        (GOOD | {"messages": [{"role": "user"}, ANSWER]}, "needs `content`"),
        (GOOD | {"messages": [tiny.text("user", "x")]}, "a question and then an answer"),
        (GOOD | {"messages": [ANSWER]}, "a question and then an answer"),
        (GOOD | {"messages": [tiny.text("user", "x"), tiny.text("assistant", " ")]}, "an answer is empty"),
        (GOOD | {"messages": [tiny.ask("x"), ANSWER]}, "0 images but 1 image parts"),
        (GOOD | {"images": ["a.png"]}, "1 images but 0 image parts"),
        (GOOD | {"images": ["../a.png"], "messages": [tiny.ask("x"), ANSWER]}, "outside the folder"),
        (GOOD | {"images": ["/etc/passwd"], "messages": [tiny.ask("x"), ANSWER]}, "outside the folder"),
        (GOOD | {"messages": [tiny.text("user", "x"), {"role": "assistant", "content": [{"type": "image"}]}]}, "text"),
        (GOOD, "duplicate id"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path: Path, line: object, reason: str) -> None:
    path = tmp_path / "samples.jsonl"
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + raw + b"\n")
    samples, bad = read_samples(path)
    assert [sample.id for sample in samples] == ["good"]
    assert len(bad) == 1
    assert bad[0].line == 2
    assert reason in bad[0].reason


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "large.png").read_bytes()[:60])
    cases = [("large.png", 1000, "40 x 40 pixels"), ("torn.png", 2000, "be read"), ("none.png", 2000, "be read")]
    for name, limit, reason in cases:
        sample = parse_sample(GOOD | {"images": [name], "messages": [tiny.ask("x"), ANSWER]}, tmp_path)
        with pytest.raises(BadSample, match=reason):
            sample.load_images(limit)
