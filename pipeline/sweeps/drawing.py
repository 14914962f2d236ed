"""The figures of a sweep: a dot with whiskers for each point, or a heat map over two axes (paper Fig. 4)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.figures import HEAT, INK, STUDENT, WIDTH, make_figure, style
from pipeline.sweeps.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINE = 0.28
"""Inches of one point."""


def save_figure(results: Results, *files: Path) -> None:
    """Draw what there is; suffixes say how it is written."""
    figure = draw(results)
    for file in files:
        figure.savefig(file, dpi=200)


def draw(results: Results) -> Figure:
    """A grid of two axes as a heat map, anything else as dots."""
    return heat_map(results) if results.sweep.axes else dots(results)


def dots(results: Results) -> Figure:
    """Mean and standard error of every point, its single values faint, a line at the baseline."""
    rows = results.rows()
    figure = make_figure(WIDTH, 1.0 + _LINE * len(rows))
    axes = figure.subplots()
    for y, row in enumerate(rows):
        single = [100 * value.scores.overall for value in results.values if value.point == row.point]
        axes.plot(single, [y] * len(single), "o", color=STUDENT, alpha=0.25, markersize=4, markeredgewidth=0)
        if row.overall is None:
            continue
        mean, error = 100 * row.overall.value, 100 * (row.overall.error or 0.0)
        axes.errorbar(mean, y, xerr=error, fmt="o", color=STUDENT, capsize=3, markersize=5)
        if row.point == results.sweep.baseline:
            axes.axvline(mean, color=INK, linewidth=0.6, linestyle=":")
    axes.set_yticks(range(len(rows)), [row.point for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="correct, %", title=results.sweep.title)
    style(axes)
    return figure


def heat_map(results: Results) -> Figure:
    """Mean accuracy of every pair, with its standard error."""
    grid = results.grid()
    row_axis, column_axis = results.sweep.axes
    columns = list(results.sweep.axes[column_axis])
    means = [[100 * mean.value if mean else float("nan") for mean in cells.values()] for cells in grid.values()]
    figure = make_figure(1.8 + 1.2 * len(columns), 1.0 + 0.8 * len(grid))
    axes = figure.subplots()
    mesh = axes.pcolormesh(means, cmap=HEAT, edgecolors="white", linewidth=1.5)
    low, high = mesh.get_clim()
    for y, cells in enumerate(grid.values()):
        for x, mean in enumerate(cells.values()):
            if mean is not None:
                error = "" if mean.error is None else f"\n± {100 * mean.error:.1f}"
                dark = 100 * mean.value > (low + high) / 2
                text = f"{100 * mean.value:.1f}{error}"
                colour = "white" if dark else INK
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns)
    axes.set_yticks([y + 0.5 for y in range(len(grid))], list(grid))
    axes.invert_yaxis()
    axes.set(xlabel=column_axis, ylabel=row_axis, title=results.sweep.title)
    style(axes)
    style(figure.colorbar(mesh, ax=axes, label="correct, %").ax)
    return figure
