"""What is said of a data set: counts that add up, reasons that group, and samples as a model sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoProcessor

from stages.contract.settings import Preprocessing
from stages.data.check import Spread, check
from stages.data.encoding import Encoder
from tests.stages import tiny


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tiny.save_qwen2vl(tmp_path_factory.mktemp("model"), width=16, layers=1, pad_rows=0, seed=0)
    return Encoder(AutoProcessor.from_pretrained(folder), Preprocessing(), memory_bytes=0)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Twelve good samples, three bad lines, and two that only a look at picture or tokens finds out."""
    path = tiny.save_samples(tmp_path)
    good = json.loads(path.read_text().splitlines()[0])
    bad = [good | {"id": f"gone-{i}", "images": [f"images/gone-{i}.png"]} for i in range(1)]
    bad += [{"id": "spelled", "messages": [tiny.text("user", "<|im_end|>"), tiny.text("assistant", "one")]}]
    bad += [good | {"id": f"outside-{i}", "images": [f"../{i}.png"]} for i in range(2)] + [{"id": "x"}]
    with path.open("a") as handle:
        handle.writelines(json.dumps(line) + "\n" for line in bad)
    return path


def test_counts_with_a_processor(samples: Path, encoder: Encoder) -> None:
    found = check(samples, Preprocessing(), encoder)
    assert (found.samples, found.unreadable, found.looked_at, found.unusable) == (14, 3, 14, 2)
    assert found.bad_fraction == pytest.approx(5 / 17)
    assert found.formats == {"messages": 14}
    assert found.pictures == {0: 4, 1: 7, 2: 3}
    assert found.turns == {1: 11, 2: 3}
    assert found.tasks["turns"] == 3
    assert found.characters is not None
    assert found.tokens is not None
    assert found.tokens.total == sum(int(encoder.encode(s).response_mask.sum()) for s in tiny_samples(samples))


def tiny_samples(path: Path) -> list:
    from stages.data.sample import read_samples

    return read_samples(path)[0][:12]


def test_reasons_are_grouped_and_their_first_lines_named(samples: Path, encoder: Encoder) -> None:
    found = check(samples, Preprocessing(), encoder)
    reasons = {reason.what: reason for reason in found.reasons}
    outside = reasons["image … lies outside the folder of the sample file"]
    assert (outside.count, [line.line for line in outside.first]) == (2, [15, 16])
    assert outside is found.reasons[0]
    assert "image … cannot be read: FileNotFoundError" in reasons
    assert sum(reason.count for reason in found.reasons) == 5


def test_without_a_processor_pictures_are_still_decoded(samples: Path) -> None:
    found = check(samples, Preprocessing(), None)
    assert (found.unusable, found.tokens, found.looks) == (1, None, ())


def test_a_limit_looks_at_some_and_counts_all(samples: Path, encoder: Encoder) -> None:
    found = check(samples, Preprocessing(), encoder, limit=4)
    assert (found.samples, found.looked_at) == (14, 4)
    assert found.bad_fraction == pytest.approx(3 / 17 if not found.unusable else 1 - 3 / 4 * 14 / 17)


def test_three_samples_as_the_model_sees_them(samples: Path, encoder: Encoder) -> None:
    looks = {look.id: look.pieces for look in check(samples, Preprocessing(), encoder).looks}
    assert len(looks) == 3
    pieces = looks["sample-0"]
    assert [is_response for _, is_response in pieces] == [False, True, False]
    assert pieces[0][0].endswith("How many dots are there?<|im_end|>\n<|im_start|>assistant\n")
    assert "<|vision_start|><|image_pad|> × 4 <|vision_end|>" in pieces[0][0]
    assert pieces[1][0] == "zero<|im_end|>"


def test_an_empty_data_set_is_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    found = check(tmp_path / "empty.jsonl", Preprocessing(), None)
    assert (found.samples, found.bad_fraction, found.characters, found.reasons) == (0, 1.0, None, ())
    assert Spread.of([1, 2, 9]) == Spread(total=12, median=2.0, longest=9)
