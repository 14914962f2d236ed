"""What a sweep found, as numbers: what its table, its figure, CSV and JSON all show."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.results import Scores, tasks_of
from pipeline.sweeps.definition import Sweep
from pipeline.sweeps.statistics import Difference, Mean, mean_of, paired_difference

OVERALL = "overall"


@dataclass(frozen=True)
class Value:
    """The scores of one trial."""

    point: str
    seed: int
    scores: Scores


@dataclass(frozen=True)
class Row:
    """One point over its seeds; the baseline has no difference."""

    point: str
    mean: Mean | None
    by_task: dict[str, Mean]
    difference: Difference | None


@dataclass(frozen=True)
class Results:
    """All values of a sweep.

    Attributes:
        name: of the sweep.
        experiment: of what the points change.
        sweep: the definition.
        points: all of them, with values or not.
        seeds: all of them.
        values: those that exist.
    """

    name: str
    experiment: str
    sweep: Sweep
    points: tuple[str, ...]
    seeds: tuple[int, ...]
    values: tuple[Value, ...]

    @property
    def tasks(self) -> list[str]:
        """Every kind of question."""
        return tasks_of([value.scores for value in self.values])

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Point and seed of every gap."""
        there = {(value.point, value.seed) for value in self.values}
        return [(p, s) for p in self.points for s in self.seeds if (p, s) not in there]

    def rows(self) -> list[Row]:
        """Every point, in the order of the table."""
        baseline = self._overall(self.sweep.baseline)
        rows = []
        for point in self.points:
            values = self._overall(point)
            difference = None if point == self.sweep.baseline else paired_difference(values, baseline)
            rows.append(Row(point, mean_of(list(values.values())), self._by_task(point), difference))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Everything, fractions as fractions."""
        rows = [asdict(row) | {"values": self._values_of(row.point)} for row in self.rows()]
        return {
            "sweep": self.name,
            "experiment": self.experiment,
            "baseline": self.sweep.baseline,
            "seeds": self.seeds,
            "points": rows,
            "missing": [{"point": point, "seed": seed} for point, seed in self.missing],
        }

    def to_csv(self) -> str:
        """A line for each value: point, seed, overall, and every kind of question."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["point", "seed", OVERALL, *self.tasks, "questions"])
        for value in self.values:
            scores = value.scores
            by_task = [scores.by_task.get(task, "") for task in self.tasks]
            writer.writerow([value.point, value.seed, scores.overall, *by_task, scores.samples])
        return file.getvalue()

    def _overall(self, point: str) -> dict[int, float]:
        return self._by_seed(point, lambda scores: scores.overall)

    def _by_task(self, point: str) -> dict[str, Mean]:
        means = {}
        for task in self.tasks:
            mean = mean_of(list(self._by_seed(point, lambda scores, task=task: scores.by_task.get(task)).values()))  # type: ignore[misc]
            if mean is not None:
                means[task] = mean
        return means

    def _by_seed(self, point: str, part: Callable[[Scores], float | None]) -> dict[int, float]:
        found = {value.seed: part(value.scores) for value in self.values if value.point == point}
        return {seed: value for seed, value in found.items() if value is not None}

    def _values_of(self, point: str) -> list[dict[str, Any]]:
        return [
            {"seed": value.seed, "overall": value.scores.overall, "by_task": value.scores.by_task}
            for value in self.values
            if value.point == point
        ]
