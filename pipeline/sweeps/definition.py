"""What `conf/sweep/NAME.yaml` says: the points of a sweep, each a name with overrides, and their seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, NonNegativeInt, ValidationError, field_validator, model_validator

from pipeline.config import SWEEPS, ConfigError, conf_folder
from pipeline.experiment import MAIN, Experiment, Section

_POINT = re.compile(r"[a-z0-9][a-z0-9._+-]*")

Points = dict[str, tuple[str, ...]]
"""Name -> overrides, relative to the experiment."""


class Sweep(Section):
    """The points of a sweep, listed or as every pair of two axes, with the experiment's variants or without."""

    title: str
    baseline: str
    """The point that all others are compared with."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)
    """Of interaction and reinforcement alone; what comes before is made once."""
    points: Points = Field(default_factory=dict)
    variants: bool = False
    """The experiment's variants and itself, named `vlsi`, come first: as points, or as rows if there are axes."""
    axes: dict[str, Points] = Field(default_factory=dict)
    """Two, rows first; the points are all pairs, named `row-to-column`, a row's overrides after its column's."""
    preparations: Points = Field(default_factory=dict)
    """Models that points name and `vlsi prepare` makes: name -> overrides of that command."""

    @field_validator("points")
    @classmethod
    def _point_names(cls, points: Points) -> Points:
        for name in points:
            if not _POINT.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a point; use lower-case letters, digits and any of . _ + -")
        return points

    @field_validator("axes")
    @classmethod
    def _two_axes(cls, axes: dict[str, Points]) -> dict[str, Points]:
        if len(axes) not in (0, 2):
            raise ValueError(f"{len(axes)} given; a sweep has none or two: rows and columns")
        for points in axes.values():
            cls._point_names(points)
        return axes

    @model_validator(mode="after")
    def _one_kind_of_points(self) -> Sweep:
        if (self.points and self.axes) or not (self.points or self.axes or self.variants):
            raise ValueError("give points or axes, variants, or variants with one of them")
        if not self.variants and self.baseline not in self.every_point():
            raise ValueError(f"baseline: {self.baseline!r} is no point; allowed: {', '.join(self.every_point())}")
        return self

    def within(self, experiment: Experiment) -> Sweep:
        """The same, the experiment's variants written out.

        Raises:
            ConfigError: the experiment lacks the baseline.
        """
        variants = {**experiment.variants, MAIN: ()} if self.variants else {}
        rows = next(iter(self.axes), None)
        axes = {**self.axes, rows: {**variants, **self.axes[rows]}} if rows else {}
        points = {} if rows else {**variants, **self.points}
        sweep = self.model_copy(update={"variants": False, "points": points, "axes": axes})
        if self.baseline not in sweep.every_point():
            allowed = ", ".join(sweep.every_point())
            raise ConfigError(f"baseline: {self.baseline!r} is no point of {experiment.name}; allowed: {allowed}")
        return sweep

    def every_point(self) -> Points:
        """What is listed, or all pairs, in the order of the table."""
        if not self.axes:
            return self.points
        rows, columns = self.axes.values()
        return {pair_name(row, column): (*columns[column], *rows[row]) for row, column in product(rows, columns)}


def pair_name(row: str, column: str) -> str:
    """Name of a point of two axes."""
    return f"{row}-to-{column}"


def choose(overrides: Sequence[str]) -> tuple[str, Sweep, list[str]]:
    """The sweep that `sweep=NAME` chooses, its name, and the overrides beside it.

    Raises:
        ConfigError: there is no such sweep, or its file is not valid.
    """
    names = [override.partition("=")[2] for override in overrides if override.partition("=")[0] == SWEEPS]
    folder = conf_folder() / SWEEPS
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if len(names) != 1:
        raise ConfigError(f"sweep: choose one with sweep=NAME; allowed: {', '.join(known)}")
    if names[0] not in known:
        raise ConfigError(f"sweep: {names[0]!r} is unknown; allowed: {', '.join(known)}")
    rest = [override for override in overrides if override.partition("=")[0] != SWEEPS]
    return names[0], _read(folder / f"{names[0]}.yaml"), rest


def _read(path: Path) -> Sweep:
    place = path.relative_to(path.parents[2])
    try:
        return Sweep.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise ConfigError(f"{place} is not YAML: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        raise ConfigError("\n".join(f"{place}: {_sentence(detail)}" for detail in error.errors())) from error


def _sentence(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed: {', '.join(Sweep.model_fields)}"
    if detail["type"] == "value_error":
        return f"{key}: {detail['ctx']['error']}".removeprefix(": ")
    return f"{key}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
