"""Sweeps of the experiment: sizes of teacher and student as a grid (paper Fig. 4), others as dots."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.reports.page import figure
from pipeline.reports.subject import Subject
from pipeline.sweeps.drawing import draw


def sweeps(subject: Subject) -> Iterator[str]:
    """A figure for each sweep that has values."""
    if subject.sweeps:
        yield "<h2>Sweeps</h2>"
    for results in subject.sweeps:
        seeds = ", ".join(map(str, results.seeds))
        missing = f" {len(results.missing)} values are still missing." if results.missing else ""
        caption = f"{results.name}: {results.sweep.title}. Mean and standard error over seeds {seeds}.{missing}"
        yield figure(draw(results), caption, "small" if results.sweep.axes else "")
