"""The journal: one whole JSON object a line, no step twice, followed line by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.contract.journal import JOURNAL_FILE, Follower, Journal, read_journal


def write_steps(folder: Path, steps: range, *, start: int = 0, **numbers: object) -> None:
    journal = Journal(folder, total=10, unit="steps", start=start)
    for step in steps:
        journal.write(step, **numbers)


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_journal(folder)]


def test_a_line_says_where_it_stands_and_what_was_measured(tmp_path: Path) -> None:
    Journal(tmp_path, total=7, unit="shards").write(3, loss=0.5, ce=[2.0, 1.0], note="x")
    (line,) = read_journal(tmp_path)
    assert line.pop("time") > 1e9
    assert line == {"step": 3, "total": 7, "unit": "shards", "loss": 0.5, "ce": [2.0, 1.0], "note": "x"}


def test_no_journal_has_no_lines(tmp_path: Path) -> None:
    assert read_journal(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_keep_the_line_json(tmp_path: Path, value: float) -> None:
    """Red if Python's own `NaN` is written: no other program reads it."""
    write_steps(tmp_path, range(1, 2), loss=value)
    text = (tmp_path / JOURNAL_FILE).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] == str(value)


def test_numbers_in_lists_that_are_not_finite_keep_the_line_json(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 2), ce_student=[1.0, float("nan")])
    text = (tmp_path / JOURNAL_FILE).read_text()
    try:
        json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    except ValueError as error:
        pytest.fail(f"{error} in {text}")


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    """A kill in the middle of a write. Red if it raises, or half a line counts."""
    write_steps(tmp_path, range(1, 4))
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(path.read_bytes()[:-9])
    assert steps(tmp_path) == [1, 2]


def test_a_resumed_stage_cuts_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    """Torn in step 6, checkpoint at step 3. Red if a step stands twice or is glued to the torn one."""
    write_steps(tmp_path, range(1, 7), loss=1.0)
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(path.read_bytes()[:-9])
    write_steps(tmp_path, range(4, 9), start=3, loss=2.0)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["loss"] for line in read_journal(tmp_path)] == [1.0] * 3 + [2.0] * 5


def test_a_stage_from_the_beginning_starts_an_empty_journal(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    write_steps(tmp_path, range(1, 2))
    assert steps(tmp_path) == [1]


def test_a_resumed_journal_keeps_its_lines_as_they_were(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4), loss=0.1 + 0.2, ce=[1e-12])
    before = read_journal(tmp_path)
    Journal(tmp_path, total=10, unit="steps", start=3)
    assert read_journal(tmp_path) == before


def test_following_gives_each_line_once(tmp_path: Path) -> None:
    """A poller's three looks: two lines, none, one. Red if a look starts from the beginning again."""
    follower = Follower()
    assert list(follower.new_lines(tmp_path)) == []
    journal = Journal(tmp_path, total=10, unit="steps")
    journal.write(1)
    journal.write(2)
    assert [line["step"] for line in follower.new_lines(tmp_path)] == [1, 2]
    assert list(follower.new_lines(tmp_path)) == []
    journal.write(3)
    assert [line["step"] for line in follower.new_lines(tmp_path)] == [3]


def test_a_line_that_is_being_written_comes_when_it_is_whole(tmp_path: Path) -> None:
    """Red if the half is given, or skipped for ever."""
    write_steps(tmp_path, range(1, 3))
    path, follower = tmp_path / JOURNAL_FILE, Follower()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert [line["step"] for line in follower.new_lines(tmp_path)] == [1]
    path.write_bytes(whole)
    assert [line["step"] for line in follower.new_lines(tmp_path)] == [2]


def test_a_stage_that_began_again_is_heard_where_it_has_something_new(tmp_path: Path) -> None:
    """The new journal is shorter than what was read. Red if a step is given twice, or the new ones never."""
    write_steps(tmp_path, range(1, 9))
    follower = Follower()
    assert len(list(follower.new_lines(tmp_path))) == 8
    write_steps(tmp_path, range(1, 3))
    assert [line["step"] for line in follower.new_lines(tmp_path)] == []
    write_steps(tmp_path, range(1, 11))
    assert [line["step"] for line in follower.new_lines(tmp_path)] == [9, 10]


def test_a_follower_survives_a_resume_that_overtakes_it(tmp_path: Path) -> None:
    """A worker restarts from step 3 and is past the old end before the next look. Red if half a line is parsed."""
    write_steps(tmp_path, range(1, 7), loss=1.0)
    follower = Follower()
    assert len(list(follower.new_lines(tmp_path))) == 6
    write_steps(tmp_path, range(4, 10), start=3, loss=1.23456789)
    assert 9 in [line["step"] for line in follower.new_lines(tmp_path)]
