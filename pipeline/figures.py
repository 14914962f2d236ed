"""The figures of a run, from manifests and journals alone.

Colours work on white and on black: ink is one recognisable colour, which the report replaces by the
page's own. Matplotlib is imported where something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from pipeline.results import OVERALL, Scores, tasks_of
from stages.contract import Artifact, read_journal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2937"
TEACHER, STUDENT = "#d9822b", "#3b82c4"
SERIES = ("#d9822b", "#8f99a8", "#4b9b72", "#a35fb0", "#c25b6e", "#7a8f2a", "#3b82c4")
HEAT = "Blues"
WIDTH, HEIGHT = 7.0, 3.4
"""Inches."""
DRAWING = Lock()
"""Held by who saves a figure: Matplotlib draws in one thread at a time."""


def save_stage_figures(artifact: Artifact, folder: Path) -> None:
    """Every figure that one artifact can give, as `folder/<name>.png`."""
    with DRAWING:
        for name, figure in stage_figures(artifact).items():
            figure.savefig(folder / f"{name}.png")


def stage_figures(artifact: Artifact) -> dict[str, Figure]:
    """Every figure that one artifact can give, by name."""
    summary = artifact.manifest.summary
    journal = read_journal(artifact.path)
    figures = {}
    if any("loss" in line for line in journal):
        figures["loss"] = loss_curves({artifact.manifest.stage: journal})
    if "ce_student" in summary:
        figures["ce_by_depth"] = ce_by_depth(summary)
    if "matching_end" in summary:
        figures["matching"] = matching(summary)
        if any("match_expected" in line for line in journal):
            figures["matches"] = matches_over_time(summary, journal)
    return figures


def matching(summary: Mapping[str, Any]) -> Figure:
    """How often each student layer learned from each teacher layer, at the start and at the end (paper Fig. 5)."""
    rows, columns = len(summary["student_target_layers"]), len(summary["teacher_target_layers"])
    figure = make_figure(WIDTH, 1.2 + 2.8 * min(1.0, rows / columns))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, title in ((left, "matching_start", "start"), (right, "matching_end", "end")):
        mesh = _draw_shares(axes, summary, summary[key])
        axes.set_title(title)
    left.set_ylabel("student block")
    left.invert_yaxis()
    style(left, right)
    bar = figure.colorbar(mesh, ax=[left, right], label="share of draws")
    style(bar.ax)
    return figure


def matches_at(summary: Mapping[str, Any], shares: Sequence[Sequence[float]]) -> Figure:
    """The same at one time, given as [student layers, teacher layers]."""
    rows, columns = len(summary["student_target_layers"]), len(summary["teacher_target_layers"])
    figure = make_figure(WIDTH / 2, 0.9 + 2.6 * min(1.0, rows / columns))
    axes = figure.subplots()
    _draw_shares(axes, summary, shares)
    axes.set_ylabel("student block")
    axes.invert_yaxis()
    style(axes)
    return figure


def matches_over_time(summary: Mapping[str, Any], journal: Sequence[Mapping[str, Any]]) -> Figure:
    """Where each student layer was matched and where that was to be expected, by step, with running means."""
    figure = make_figure(WIDTH, HEIGHT)
    drawn, expected = figure.subplots(1, 2, sharex=True, sharey=True)
    blocks = summary["student_target_layers"]
    lines = [line for line in journal if "match_expected" in line]
    steps = [line["step"] for line in lines]
    for axes, key, title in ((drawn, "match_mean", "drawn"), (expected, "match_expected", "expected")):
        for i, (block, colour) in enumerate(zip(blocks, _shades(len(blocks)), strict=True)):
            matches = [line[key][i] for line in lines]
            axes.plot(steps, matches, color=colour, alpha=0.2, linewidth=0.5)
            axes.plot(steps, _running_mean(matches), color=colour, label=block)
        axes.set(title=title, xlabel="step")
    places, labels = _ticks(summary["teacher_target_layers"], centre=0.0)
    drawn.set_yticks(places, labels)
    drawn.set(ylabel="teacher block", ylim=(len(summary["teacher_target_layers"]) - 0.5, -0.5))
    style(drawn, expected)
    legend = figure.legend(*drawn.get_legend_handles_labels(), loc="outside right center", title="student\nblock")
    legend.set(frame_on=False)
    for text in (legend.get_title(), *legend.get_texts()):
        text.set(color=INK, fontsize=8)
    return figure


def ce_by_depth(summary: Mapping[str, Any]) -> Figure:
    """Cross-entropy of every verbalizer against the response, by the block it reads."""
    figure = make_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    for name, colour in (("teacher", TEACHER), ("student", STUDENT)):
        blocks, values = summary[f"{name}_target_layers"], summary[f"ce_{name}"]
        axes.plot(blocks, values, "o-", color=colour, label=name)
    axes.set(xlabel="block", ylabel="cross-entropy, nats a token", ylim=(0, None))
    style(axes)
    _legend(axes)
    return figure


def loss_curves(journals: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss over steps, one line for each journal: what was measured faint, its running mean strong."""
    figure = make_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    for (label, journal), colour in zip(journals.items(), _colours(len(journals)), strict=True):
        points = [(line["step"], line["loss"]) for line in journal if isinstance(line.get("loss"), int | float)]
        if not points:
            continue
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _running_mean(losses), color=colour, label=label)
    axes.set(xlabel="step", ylabel="loss")
    style(axes)
    _legend(axes)
    return figure


def accuracy_by_task(
    scores: Sequence[Scores], intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None
) -> Figure:
    """Accuracy bars: a group for each kind of question and one over all, a bar for each model.

    Args:
        scores: the models in the order of the bars.
        intervals: of a model's name and a kind of question, low and high, where they are known: the whiskers.
    """
    tasks = [*tasks_of(scores), OVERALL]
    figure = make_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    width = 0.8 / max(1, len(scores))
    for i, (row, colour) in enumerate(zip(scores, _colours(len(scores)), strict=True)):
        values = {**row.by_task, OVERALL: row.overall}
        places = [group + (i - (len(scores) - 1) / 2) * width for group in range(len(tasks))]
        axes.bar(places, [100 * values.get(task, 0.0) for task in tasks], width, color=colour, label=row.label)
        bounds = (intervals or {}).get(row.name, {})
        for place, task in zip(places, tasks, strict=True):
            if task in bounds:
                low, high = bounds[task]
                axes.vlines(place, 100 * low, 100 * high, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(tasks)), [_tick(task) for task in tasks], fontsize=8)
    axes.set(ylabel="correct, %", ylim=(0, 100))
    style(axes)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, labelcolor=INK, fontsize=8)
    return figure


def make_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, which no window shows."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style(*many: Axes) -> None:
    """One look for all axes: no box, ink everywhere."""
    for axes in many:
        axes.set_facecolor("none")
        axes.tick_params(colors=INK, labelsize=8)
        for part in (axes.title, axes.xaxis.label, axes.yaxis.label):
            part.set(color=INK, fontsize=9)
        for side, spine in axes.spines.items():
            spine.set(color=INK, linewidth=0.6, visible=side in ("left", "bottom"))


def _draw_shares(axes: Axes, summary: Mapping[str, Any], shares: Sequence[Sequence[float]]) -> Any:
    mesh = axes.pcolormesh(shares, cmap=HEAT, vmin=0, vmax=1, edgecolors="face", linewidth=0.4)
    _write_cells(axes, shares)
    axes.set_xticks(*_ticks(summary["teacher_target_layers"]))
    axes.set_yticks(*_ticks(summary["student_target_layers"]))
    axes.set(xlabel="teacher block", aspect="equal")
    return mesh


def _tick(task: str) -> str:
    """A name on several short lines; a dollar sign would start a formula."""
    return task.replace("_", "\n").replace("-", "\n").replace("$", r"\$")


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _ticks(blocks: Sequence[int], centre: float = 0.5) -> tuple[list[float], list[str]]:
    """Places and labels of at most ten cells of a row, whose first has its middle at `centre`."""
    every = -(-len(blocks) // 10)
    return [i + centre for i in range(0, len(blocks), every)], [str(block) for block in blocks[::every]]


def _write_cells(axes: Axes, frequencies: Sequence[Sequence[float]]) -> None:
    """Print the larger shares into their cells, if there is room."""
    if len(frequencies[0]) > 12:
        return
    for row, values in enumerate(frequencies):
        for column, value in enumerate(values):
            if value >= 0.05:
                text = f"{value:.2f}".removeprefix("0")
                colour = "white" if value > 0.55 else "#333333"
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6, color=colour)


def _colours(count: int) -> list[str]:
    """The last one is always the student's own colour."""
    return [*(SERIES[i % (len(SERIES) - 1)] for i in range(count - 1)), SERIES[-1]][:count]


def _shades(count: int) -> list[Any]:
    """From the teacher's colour, shallow, to the student's, deep."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shades", (TEACHER, STUDENT))
    return [shades(i / max(1, count - 1)) for i in range(count)]


def _running_mean(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Mean over the neighbours within `share` of all values; shorter at both ends, so that it does not lag."""
    reach = round(len(values) * share / 2)
    sums = [0.0, *accumulate(values)]
    means = []
    for i in range(len(values)):
        start, stop = max(0, i - reach), min(len(values), i + reach + 1)
        means.append((sums[stop] - sums[start]) / (stop - start))
    return means
