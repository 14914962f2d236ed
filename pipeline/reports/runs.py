"""Reports on runs of the history, each with whatever of it is still in the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.comparison import compare
from pipeline.config import ConfigError
from pipeline.history import History
from pipeline.reports.report import render, render_several
from pipeline.reports.subject import Subject
from pipeline.store import Store
from stages.contract.place import write_whole


def write_runs_report(store: Store, history: History, names: Sequence[str], path: Path | None = None) -> Path:
    """Write one page on the runs of these names and say where it is.

    Args:
        store: that they are in.
        history: of the same store.
        names: see `History.find`; the first is what the others are compared with.
        path: the file, instead of one in the store.

    Raises:
        ConfigError: there is no such run, or one is named twice.
    """
    records = [history.find(name) for name in names]
    ids = [record.id for record in records]
    if len(set(ids)) < len(ids):
        raise ConfigError(f"{' '.join(names)} name a run twice: {', '.join(ids)}; name each run once")
    subjects = [Subject.of_record(record, store) for record in records]
    first, *others = records
    if others:
        everything = history.records()
        text = render_several(subjects, [compare(first, other, everything, store.identity) for other in others])
    else:
        text = render(subjects[0])
    path = path or store.report_file("-".join(ids))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return path
