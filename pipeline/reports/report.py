"""The whole page. It needs no network, no other file and no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from pipeline.comparison import Comparison
from pipeline.reports.differences import differences
from pipeline.reports.layers import layers
from pipeline.reports.lineage import introduction, lineage, settings
from pipeline.reports.page import page
from pipeline.reports.sayings import sayings
from pipeline.reports.scores import headline, score_table
from pipeline.reports.stages import losses, missing, quarantine, stages
from pipeline.reports.subject import Subject
from pipeline.reports.sweeps import sweeps

_SECTIONS = (
    introduction,
    headline,
    missing,
    score_table,
    sayings,
    sweeps,
    layers,
    losses,
    stages,
    quarantine,
    settings,
    lineage,
)


def render(subject: Subject) -> str:
    """The report on one run."""
    return page(subject.name, _sections(subject))


def render_several(subjects: Sequence[Subject], comparisons: Sequence[Comparison]) -> str:
    """The report on several runs, what differs between them first.

    Args:
        subjects: at least two.
        comparisons: of the first with each of the others.
    """
    title = " · ".join(subject.title for subject in subjects)
    return page(title, (*differences(subjects, comparisons), *map(_folded, subjects)))


def _sections(subject: Subject) -> Iterator[str]:
    for section in _SECTIONS:
        yield from section(subject)


def _folded(subject: Subject) -> str:
    sections = "\n".join(_sections(subject))
    return f"<details><summary>{escape(subject.title)} by itself</summary>{sections}</details>"
