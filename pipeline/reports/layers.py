"""Layers: how well each predicts the response, and which learned from which, over time (paper Fig. 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

from pipeline import figures
from pipeline.reports.page import choice, figure
from pipeline.reports.subject import Part, Subject
from stages.contract import Artifact, read_journal

FRAMES = 20
"""At most so many pictures on the way from the first step to the last."""


class Frame(NamedTuple):
    """Matching shares [student layers, teacher layers], the mean over the steps from `first` to `last`."""

    first: int
    last: int
    shares: list[list[float]]


def layers(subject: Subject) -> Iterator[str]:
    """Matching at the start and at the end with what lies between, where matches were drawn, and CE by depth."""
    drawn = [picture for part, artifact in subject.present for picture in _pictures(subject, part, artifact)]
    if drawn:
        yield "<h2>Layers</h2>"
        yield from drawn


def _pictures(subject: Subject, part: Part, artifact: Artifact) -> Iterator[str]:
    summary = artifact.manifest.summary
    if "ce_student" in summary:
        caption = f"{part.key}: how well each block, verbalized, predicts the response. It should fall with depth."
        yield figure(figures.ce_by_depth(summary), caption)
    if "matching_end" not in summary:
        return
    caption = f"{part.key}: which teacher block each student block learned from, in the first and the last steps."
    yield figure(figures.matching(summary), caption)
    journal = read_journal(artifact.path)
    yield from _slider(f"frames-{subject.identifier}-{part.key}", part.key, summary, frames(journal, FRAMES))
    if any("match_expected" in line for line in journal):
        caption = (
            f"{part.key}: the mean teacher block each student block learned from, by step. Expected is the exact mean "
            f"over all paths where whole paths are drawn (`joint`), else the mean of the draws.{_entropy(journal)}"
        )
        yield figure(figures.matches_over_time(summary, journal), caption)


def _entropy(journal: Sequence[Mapping[str, Any]]) -> str:
    """How open the draws were, if there were any."""
    shares = [line["match_entropy"] for line in journal if "match_entropy" in line]
    if not any(shares):
        return ""
    share = 100 * sum(shares) / len(shares)
    return (
        f" The draws (`joint`: of the path, else of the shallowest block's match) had {share:.1f} % of an even draw's "
        "entropy; at 100 % costs have no say."
    )


def _slider(name: str, key: str, summary: Mapping[str, Any], shown: Sequence[Frame]) -> Iterator[str]:
    """The matrix at one place between the start and the end; arrow keys move the place."""
    if len(shown) < 2:
        return
    yield (
        f'<p class="soft">{escape(key)}, from the first steps (left) to the last (right): '
        "click on the track, or use the arrow keys.</p>"
    )
    options = []
    for frame in shown:
        steps = f"step {frame.first}" if frame.first == frame.last else f"steps {frame.first:,} to {frame.last:,}"
        picture = figure(figures.matches_at(summary, frame.shares), f"{key}: {steps}.", "small")
        options.append((steps, picture))
    yield choice(name, options, "slider", chosen=len(options) - 1)


def frames(journal: Sequence[Mapping[str, Any]], count: int) -> list[Frame]:
    """The matching of a journal in at most `count` equal stretches of steps."""
    lines = [line for line in journal if "matches" in line]
    bounds = [round(i * len(lines) / count) for i in range(count + 1)]
    stretches = [lines[start:stop] for start, stop in pairwise(bounds) if start < stop]
    return [Frame(part[0]["step"], part[-1]["step"], _mean([line["matches"] for line in part])) for part in stretches]


def _mean(matrices: Sequence[list[list[float]]]) -> list[list[float]]:
    import numpy as np

    return np.mean(matrices, axis=0).tolist()
