"""The figures of a run: what is drawn is what the artifacts say."""

from __future__ import annotations

import pytest

from pipeline import figures
from pipeline.results import Scores
from tests.pipeline.conftest import journal_of_matches, summary_of


def test_the_matching_matrix_has_a_row_for_each_student_layer() -> None:
    figure = figures.matching(summary_of("interaction"))
    start, end, _ = figure.axes
    assert (start.get_title(), end.get_title()) == ("start", "end")
    assert [tick.get_text() for tick in start.get_xticklabels()] == ["0", "1", "2"]
    assert [tick.get_text() for tick in start.get_yticklabels()] == ["0", "1"]


def test_matches_over_time_have_a_line_for_each_student_layer() -> None:
    figure = figures.matches_over_time(summary_of("interaction"), [{"step": 9}, *journal_of_matches()])
    drawn, expected = figure.axes
    assert (drawn.get_title(), expected.get_title()) == ("drawn", "expected")
    for axes, blocks in ((drawn, [[0.0, 0.5], [1.0, 2.0]]), (expected, [[0.2, 0.4], [1.4, 1.6]])):
        measured, mean = ([list(line.get_ydata()) for line in axes.lines[start::2]] for start in (0, 1))
        assert measured == blocks
        assert mean == [pytest.approx(block) for block in blocks]
    assert list(drawn.lines[0].get_xdata()) == [1, 2]
    assert [tick.get_text() for tick in drawn.get_yticklabels()] == ["0", "1", "2"]


def test_the_bars_take_any_number_of_models() -> None:
    for count in (1, 9):
        scores = [Scores(f"model-{i}", 0.5, {"a": 0.4, "b": 0.6}, 10) for i in range(count)]
        assert len(figures.accuracy_by_task(scores).axes[0].patches) == 3 * count


def test_whiskers_are_where_the_intervals_are() -> None:
    scores = [Scores("teacher", 0.5, {"a": 0.4}, 10), Scores("vlsi", 0.5, {"a": 0.6}, 10)]
    (axes,) = figures.accuracy_by_task(scores, {"vlsi": {"a": (0.3, 0.7)}}).axes
    (whisker,) = [segment for lines in axes.collections for segment in lines.get_segments()]
    assert [height for _, height in whisker] == [30.0, 70.0]


def test_the_matrix_at_one_time_shows_the_shares_it_is_given() -> None:
    shares = [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]
    (axes,) = figures.matches_at(summary_of("interaction"), shares).axes
    assert [text.get_text() for text in axes.texts] == [".25", ".75", "1.00"]
    assert axes.collections[0].get_array().tolist() == shares


def test_a_curve_leaves_out_what_is_no_number() -> None:
    journal = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": "nan"}, {"step": 3, "loss": 1.0}]
    measured = figures.loss_curves({"interaction": journal}).axes[0].lines[0]
    assert list(measured.get_xdata()) == [1, 3]
