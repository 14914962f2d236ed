"""Scores: what answers that have been judged amount to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any


def score(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Mean of what is right, overall and by task, over the items that have been judged.

    Args:
        rows: answers with `item`, `task`, empty where it has none, and `correct`.

    Returns:
        `overall`, None if there are answers but nobody has judged any; `samples`, how many items that is of;
        `by_task`: for each the `accuracy` and its `samples`.
    """
    answers = list(rows)
    items, tasks = by_item(answers), {row["item"]: row["task"] for row in answers}
    by_task: dict[str, list[float]] = defaultdict(list)
    for item, correct in items.items():
        if tasks[item]:
            by_task[tasks[item]].append(correct)
    return {
        "overall": None if answers and not items else _mean([*items.values()]),
        "samples": len(items),
        "by_task": {
            task: {"accuracy": _mean(correct), "samples": len(correct)} for task, correct in sorted(by_task.items())
        },
    }


def by_item(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """How right each item that has been judged is; one that is asked in several forms, as the worst of its answers."""
    items: dict[str, float] = {}
    for row in rows:
        if row["correct"] is not None:
            items[row["item"]] = min(items.get(row["item"], 1.0), float(row["correct"]))
    return items


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
