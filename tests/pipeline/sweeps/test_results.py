"""What a sweep found, as table, figure, CSV and JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.results import Scores
from pipeline.sweeps import screen
from pipeline.sweeps.definition import Sweep
from pipeline.sweeps.drawing import save_figure
from pipeline.sweeps.results import Results, Value

SWEEP = Sweep(title="A or B", baseline="a", points={"a": (), "b": ()})
GRID = Sweep(
    title="Sizes",
    baseline="s-to-s",
    axes={"teacher": {"s": (), "l": ()}, "student": {"s": (), "l": ()}},
)
ACCURACIES = {("a", 0): 0.5, ("a", 1): 0.6, ("a", 2): 0.7, ("b", 0): 0.6, ("b", 1): 0.8}


def results(sweep: Sweep = SWEEP, accuracies: dict[tuple[str, int], float] = ACCURACIES) -> Results:
    values = tuple(
        Value(point, seed, Scores(point, accuracy, {"add-up": accuracy / 2}, 40))
        for (point, seed), accuracy in accuracies.items()
    )
    return Results(
        "mine", "digits", sweep, tuple(sweep.points or ("s-to-s", "s-to-l", "l-to-s", "l-to-l")), (0, 1, 2), values
    )


def printed(found: Results, *, by_task: bool = False) -> str:
    console = Console(width=80, file=io.StringIO())
    screen.show_results(console, found, by_task=by_task)
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_the_table_has_means_errors_and_paired_differences() -> None:
    text = printed(results())
    assert cells(text, "a") == ["a", "60.0", "±", "5.8", "3"]
    assert cells(text, "b") == ["b", "70.0", "±", "10.0", "2", "+15.0", "-48.5", "…", "+78.5", ".205", "2"]
    assert "differences to a, paired by seed" in text
    assert "missing  b.2" in text


def test_a_point_without_values_is_a_gap() -> None:
    text = printed(results(accuracies={("a", 0): 0.5}))
    assert cells(text, "a") == ["a", "50.0", "1"]
    assert cells(text, "b") == ["b", "–", "0"]


def test_kinds_of_question_are_shown_when_asked_for() -> None:
    by_task = ["a", "30.0"]
    assert by_task in [line.split() for line in printed(results(), by_task=True).splitlines()]
    assert by_task not in [line.split() for line in printed(results()).splitlines()]


def test_two_axes_are_shown_as_a_grid() -> None:
    text = printed(results(GRID, {("s-to-s", 0): 0.5, ("l-to-s", 0): 0.6, ("l-to-l", 0): 0.7}))
    assert cells(text, "s") == ["s", "50.0", "–"]
    assert cells(text, "l") == ["l", "60.0", "70.0"]
    assert cells(text, "l-to-l") == ["l-to-l", "70.0", "1", "+20.0", "1"]


def test_csv_has_a_line_for_each_value() -> None:
    lines = results().to_csv().splitlines()
    assert lines[0] == "point,seed,overall,add-up,questions"
    assert lines[-1] == "b,1,0.8,0.4,40"
    assert len(lines) == 6


def test_json_has_everything() -> None:
    document = json.loads(json.dumps(results().to_json()))
    a, b = document["points"]
    assert document["baseline"] == "a"
    assert document["missing"] == [{"point": "b", "seed": 2}]
    assert a["difference"] is None
    assert b["difference"]["value"] == pytest.approx(0.15)
    assert (b["difference"]["count"], b["difference"]["missing"]) == (2, 1)
    assert b["means"]["overall"] == {"value": pytest.approx(0.7), "error": pytest.approx(0.1), "count": 2}
    assert b["values"][0] == {"seed": 0, "overall": 0.6, "by_task": {"add-up": 0.3}}


@pytest.mark.parametrize(
    "found",
    [results(), results(accuracies={("b", 0): 0.5}), results(GRID, {("s-to-s", 0): 0.5, ("l-to-s", 1): 0.6})],
    ids=["dots", "without a baseline", "heat map"],
)
def test_figures_are_written(found: Results, tmp_path: Path) -> None:
    files = [tmp_path / "figure.png", tmp_path / "figure.svg"]
    save_figure(found, *files)
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in files[1].read_text()
