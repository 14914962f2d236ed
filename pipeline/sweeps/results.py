"""What a sweep found, as numbers: what its table, its figure, CSV and JSON all show."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.results import OVERALL, Scores, tasks_of
from pipeline.sweeps.definition import Sweep, pair_name
from pipeline.sweeps.statistics import Difference, Mean, mean_of, paired_difference


@dataclass(frozen=True)
class Value:
    """The scores of one trial."""

    point: str
    seed: int
    scores: Scores

    def accuracy(self, kind: str) -> float | None:
        """Of one kind of question or overall, a fraction."""
        return self.scores.overall if kind == OVERALL else self.scores.by_task.get(kind)


@dataclass(frozen=True)
class Row:
    """One point over its seeds.

    Attributes:
        point: its name.
        means: overall and by kind of question; what has no value is not in it.
        difference: to the baseline, overall; None for the baseline itself and without a common seed.
    """

    point: str
    means: dict[str, Mean]
    difference: Difference | None

    @property
    def overall(self) -> Mean | None:
        """The mean over all questions."""
        return self.means.get(OVERALL)


@dataclass(frozen=True)
class Results:
    """All values of a sweep.

    Attributes:
        name: of the sweep.
        experiment: what the points change.
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
    def kinds(self) -> list[str]:
        """Every kind of question, in the order of first appearance."""
        return tasks_of([value.scores for value in self.values])

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Point and seed of every gap."""
        there = {(value.point, value.seed) for value in self.values}
        return [(point, seed) for point in self.points for seed in self.seeds if (point, seed) not in there]

    def rows(self) -> list[Row]:
        """Every point, in the order of the table."""
        return [Row(point, self._means(point), self._difference(point)) for point in self.points]

    def grid(self) -> dict[str, dict[str, Mean | None]]:
        """Overall means by row and column, where the points are the pairs of two axes."""
        if not self.sweep.axes:
            return {}
        by_point = {row.point: row.overall for row in self.rows()}
        rows, columns = self.sweep.axes.values()
        return {row: {column: by_point[pair_name(row, column)] for column in columns} for row in rows}

    def to_json(self) -> dict[str, Any]:
        """Everything, accuracies as fractions."""
        return {
            "sweep": self.name,
            "experiment": self.experiment,
            "baseline": self.sweep.baseline,
            "seeds": list(self.seeds),
            "points": [asdict(row) | {"values": self._values(row.point)} for row in self.rows()],
            "missing": [{"point": point, "seed": seed} for point, seed in self.missing],
        }

    def to_csv(self) -> str:
        """A line for each value: point, seed, accuracy overall and of every kind, how many questions."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        kinds = [OVERALL, *self.kinds]
        writer.writerow(["point", "seed", *kinds, "questions"])
        for value in self.values:
            writer.writerow([value.point, value.seed, *map(value.accuracy, kinds), value.scores.samples])
        return file.getvalue()

    def _means(self, point: str) -> dict[str, Mean]:
        means = {kind: mean_of(list(self._by_seed(point, kind).values())) for kind in (OVERALL, *self.kinds)}
        return {kind: mean for kind, mean in means.items() if mean is not None}

    def _difference(self, point: str) -> Difference | None:
        if point == self.sweep.baseline:
            return None
        return paired_difference(self._by_seed(point, OVERALL), self._by_seed(self.sweep.baseline, OVERALL))

    def _by_seed(self, point: str, kind: str) -> dict[int, float]:
        found = {value.seed: value.accuracy(kind) for value in self.values if value.point == point}
        return {seed: accuracy for seed, accuracy in found.items() if accuracy is not None}

    def _values(self, point: str) -> list[dict[str, Any]]:
        return [
            {"seed": value.seed, OVERALL: value.scores.overall, "by_task": value.scores.by_task}
            for value in self.values
            if value.point == point
        ]
