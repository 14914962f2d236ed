"""`vlsi data check`: what it prints, how it ends, and what it does not need."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.pipeline.conftest import Command
from tests.stages import tiny


@pytest.fixture
def check(world: Path, call_vlsi: Command) -> Command:
    """Call `vlsi data check`; exit code and everything printed."""
    return partial(call_vlsi, "data", "check")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_samples(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_qwen2vl(tmp_path_factory.mktemp("model"), width=16, layers=1, pad_rows=0, seed=0)


def test_a_path_alone_needs_no_model(check: Command, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.commands.data._encoder", lambda _: pytest.fail("a model was asked for"))
    code, text = check(str(samples))
    assert code == 0
    for expected in ("samples", "12", "none", "12 messages", "3 with 0, 6 with 1, 3 with 2", "3 turns", "in all"):
        assert expected in text


def test_with_a_processor_samples_are_shown(check: Command, samples: Path, checkpoint: Path) -> None:
    code, text = check(str(samples), f"student.path={checkpoint}")
    assert code == 0
    assert "response tokens" in text
    assert "<|image_pad|> × 4 <|vision_end|>How many dots are there?<|im_end|>" in text


def test_too_much_bad_data_ends_with_one_and_says_where(check: Command, samples: Path, tmp_path: Path) -> None:
    shutil.copytree(samples.parent, tmp_path / "data")
    path = tmp_path / "data" / "samples.jsonl"
    path.write_text(path.read_text() + "{not json\n")
    code, text = check(str(path))
    assert code == 1
    assert "invalid JSON" in text
    assert "line 13" in text
    assert "max_bad_fraction allows 1.0%" in text
    code, _ = check(str(path), "data.preprocessing.max_bad_fraction=0.1")
    assert code == 0


def test_json_is_for_programs(check: Command, samples: Path) -> None:
    code, text = check(str(samples), "--json")
    (found,) = json.loads(text)
    assert (code, found["samples"], found["formats"], found["pictures"]) == (
        0,
        12,
        {"messages": 12},
        {"0": 3, "1": 6, "2": 3},
    )


def test_the_experiment_s_own_data_without_a_path(check: Command, world: Path) -> None:
    code, text = check()
    assert code == 1, "the pictures of the tiny world are no pictures"
    assert text.count("prepared/digits/") >= 2
    assert "is not on this machine: tokens are not counted" in text
    assert "train.png cannot be read" not in text, "reasons leave out what differs"


def test_data_that_is_not_there_is_named(check: Command, world: Path) -> None:
    assert check(str(world / "none.json")) == (2, f"not valid  data: {world / 'none.json'} does not exist\n")
