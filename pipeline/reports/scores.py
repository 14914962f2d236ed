"""Scores: the headline, the table and the chart over kinds of question (paper Fig. 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from pipeline import figures
from pipeline.experiment import MAIN
from pipeline.reports.page import figure, row, table, words
from pipeline.reports.subject import Subject
from pipeline.results import OVERALL, Answers, Scores, paired_answers, tasks_of
from pipeline.statistics import Difference, Interval, interval


def headline(subject: Subject) -> Iterator[str]:
    """The student against everything it is compared with, question by question."""
    scores = {score.name: score for score in subject.scores}
    if MAIN not in scores:
        return
    main = scores.pop(MAIN)
    yield (
        f'<p class="lead">{escape(main.label)} answers <strong>{percent(main.overall)} %</strong>'
        f"{_between(intervals_of(subject.answers.get(MAIN, {})).get(OVERALL))} of {main.samples:,} held-out questions "
        "exactly right.</p>"
    )
    rows = [
        row(f"than {escape(other.label)}", points(main.overall - other.overall), *_certainty(subject, other.name))
        for other in scores.values()
    ]
    if rows:
        yield table((f"{escape(main.label)} is better by", "points", "95 % interval", "p"), rows)
        yield '<p class="soft">Paired over the questions that both models were asked; intervals by bootstrap.</p>'


def score_table(subject: Subject) -> Iterator[str]:
    """Table and bars of held-out accuracy."""
    scores = subject.scores
    if not scores:
        return
    tasks = tasks_of(scores)
    known = {name: intervals_of(answers) for name, answers in subject.answers.items()}
    yield f"<h2>Held-out questions answered exactly right, % of {max(score.samples for score in scores):,}</h2>"
    yield table([words(name) for name in ("", *tasks, OVERALL)], (_row(score, tasks) for score in scores))
    whiskers = " Whiskers are 95 % intervals over the questions, by bootstrap." if known else ""
    yield figure(figures.accuracy_by_task(scores, known), f"By kind of question.{whiskers}")


def intervals_of(answers: Answers) -> dict[str, Interval]:
    """Of every kind of question and of all together."""
    groups: dict[str, list[float]] = {OVERALL: []} if answers else {}
    for answer in answers.values():
        groups[OVERALL].append(answer.correct)
        if answer.task:
            groups.setdefault(answer.task, []).append(answer.correct)
    return {name: interval(correct) for name, correct in groups.items()}


def percent(value: float | None) -> str:
    """An accuracy, without its sign."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(difference: float) -> str:
    """A difference of accuracies."""
    return f"{100 * difference:+.1f}"


def certainty(difference: Difference | None) -> tuple[str, str]:
    """Interval and p of a paired difference."""
    if difference is None:
        return "–", "–"
    p = "&lt; 0.001" if difference.p < 0.001 else f"{difference.p:.3f}"
    return f"{points(difference.low)} … {points(difference.high)}", p


def _certainty(subject: Subject, other: str) -> tuple[str, str]:
    answers: Mapping[str, Answers] = subject.answers
    return certainty(paired_answers(answers.get(MAIN, {}), answers.get(other, {})))


def _between(bounds: Interval | None) -> str:
    return "" if bounds is None else f' <span class="interval">({percent(bounds.low)} … {percent(bounds.high)})</span>'


def _row(score: Scores, tasks: list[str]) -> str:
    values = [*(score.by_task.get(task) for task in tasks), score.overall]
    return row(escape(score.label), *map(percent, values), kind="main" if score.name == MAIN else "")
