"""`vlsi verbalize`: what it prints and writes, and how mistakes end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.conftest import Command, Question
from tests.stages import tiny


@pytest.fixture
def real(tmp_path: Path) -> list[str]:
    """Options that name a real model and a picture."""
    tiny.save_samples(tmp_path / "data", count=1)
    model = tiny.save_qwen2vl(tmp_path / "model", width=32, layers=2, pad_rows=3, seed=0)
    return ["--model", str(model), "--image", str(tmp_path / "data" / "images" / "0.png"), "--question", "Add them."]


def test_a_checkpoint_speaks_through_the_lens_and_that_is_said(vlsi: Command, real: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, text = vlsi("verbalize", *real, "--answer", "one two", "--html", str(page), width=300)
    assert code == 0
    assert "has no verbalizers: its layers speak through the logit lens" in text
    assert [name in text for name in ("block 0", "block 1", "block 2", "output")] == [True, True, False, True]
    assert "data:image/" in page.read_text()
    code, text = vlsi("verbalize", *real, "--decode", "--layers", "1", "--max-new-tokens", "4", width=300)
    assert (code, "block 0" in text, "block 1" in text) == (0, False, True)


def test_json_is_one_document(vlsi: Command, ask_vlsi: Question, real: list[str]) -> None:
    code, (saying,) = ask_vlsi("verbalize", *real, "--answer", "one two")
    assert (code, saying["answer"], saying["through"]) == (0, "one two", "logit lens")
    assert [said["block"] for said in saying["layers"]] == [0, 1]
    assert len(saying["output"]["words"]) == len(saying["tokens"])
    json.dumps(saying)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--layers", "0,x"], "--layers: '0,x' is no list of blocks"),
        (["--layers", "7", "--answer", "one"], "--layers: block 7 cannot speak; allowed: 0, 1"),
        (["--answer", "one", "--decode"], "choose one"),
        (["--answer", "  "], "is empty; give one with --answer"),
        (["--answer", "one <|im_end|>"], "control token"),
        (["a", "b"], "name one run, not 2"),
        (["--image", "none.png"], "--image: none.png is no file"),
    ],
)
def test_a_mistake_is_one_sentence(vlsi: Command, real: list[str], options: list[str], sentence: str) -> None:
    code, text = vlsi("verbalize", *real, *options, width=300)
    assert (code, sentence in text) == (2, True)


def test_what_was_not_made_is_named(vlsi: Command, world: Path) -> None:
    code, text = vlsi("verbalize", "--question", "Which?", "--model", "teacher", width=300)
    assert (code, "digits has no capture that is up to date: run `vlsi run" in text) == (2, True)
