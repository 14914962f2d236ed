"""Several runs on one page: first what differs between the first and each of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from pipeline import figures
from pipeline.comparison import Comparison
from pipeline.identity import Change, spell
from pipeline.reports.page import figure, row, table
from pipeline.reports.scores import certainty, percent, points
from pipeline.reports.subject import Subject
from pipeline.results import LABELS, paired_answers


def differences(subjects: Sequence[Subject], comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Settings, scores, matching and artifacts; `comparisons` are of the first run with each of the others."""
    names = [escape(subject.title) for subject in subjects]
    yield f"<h1>{' · '.join(names)}</h1>"
    yield f'<p class="soft">What differs from {names[0]} comes first; each run by itself follows.</p>'
    yield from _configuration(names, comparisons)
    yield from _scores(subjects, comparisons)
    yield from _matching(subjects)
    yield from _artifacts(names, comparisons)


def _configuration(names: Sequence[str], comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield "<h2>What was set differently</h2>"
    changes = [{change.key: change for change in comparison.configuration} for comparison in comparisons]
    keys = sorted({key for changed in changes for key in changed})
    if not keys:
        yield "<p>Nothing: the configuration is the same.</p>"
        return
    yield table(("setting", *names), (_setting(key, [changed.get(key) for changed in changes]) for key in keys), "text")


def _setting(key: str, changes: Sequence[Change | None]) -> str:
    """The value of the first run, and those of the others where they differ."""
    first = next(change.before for change in changes if change)
    values = [first, *(change.after if change else first for change in changes)]
    return row(f"<code>{escape(key)}</code>", *(f"<code>{escape(spell(value))}</code>" for value in values))


def _scores(subjects: Sequence[Subject], comparisons: Sequence[Comparison]) -> Iterator[str]:
    rows = []
    for subject, comparison in zip(subjects[1:], comparisons, strict=True):
        for score in comparison.scores:
            theirs, ours = (one.answers.get(score.name, {}) for one in (subjects[0], subject))
            rows.append(
                row(
                    escape(LABELS.get(score.name, score.name)),
                    escape(subject.title),
                    *(percent(None if one is None else one.overall) for one in (score.before, score.after)),
                    "–" if score.overall is None else points(score.overall),
                    *certainty(paired_answers(ours, theirs)),
                )
            )
    if rows:
        yield "<h2>Scores</h2>"
        yield table(("model", "run", "before, %", "after, %", "points", "95 % interval", "p"), rows)
        yield '<p class="soft">Paired over the questions that both runs asked; intervals by bootstrap.</p>'


def _matching(subjects: Sequence[Subject]) -> Iterator[str]:
    """Of the last steps, side by side."""
    drawn = [
        figure(
            figures.matches_at(artifact.manifest.summary, artifact.manifest.summary["matching_end"]),
            f"{subject.title}, {part.key}: the last steps.",
        )
        for subject in subjects
        for part, artifact in subject.present
        if "matching_end" in artifact.manifest.summary
    ]
    if drawn:
        yield "<h2>How layers were matched in the end</h2>"
        yield f'<div class="beside">{"".join(drawn)}</div>'


def _artifacts(names: Sequence[str], comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield "<h2>Artifacts</h2>"
    for name, comparison in zip(names[1:], comparisons, strict=True):
        rows = (
            row(
                escape(node.key),
                _verdict(node.before, node.after),
                escape(node.made_before or "–"),
                escape(node.made_after or "–"),
                escape("; ".join(node.reasons)),
            )
            for node in comparison.nodes
        )
        yield f"<h3>{name}</h3>"
        yield table(("stage", "", "made by", "then by", "because of"), rows, "text")


def _verdict(before: str | None, after: str | None) -> str:
    if before == after:
        return "same"
    if before is None:
        return "new"
    return "gone" if after is None else "differs"
