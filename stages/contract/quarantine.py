"""The quarantine: a table of the samples that a stage left out, each with its line and reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stages.contract.files import QUARANTINE_FILE
from stages.contract.place import Place, write_whole

SHOWN = 3
"""Samples that the log names."""


@dataclass(frozen=True)
class BadLine:
    """A sample that was left out: its id and line in the sample file, and why."""

    id: str
    line: int
    reason: str


def write_quarantine(work: Place, bad: Sequence[BadLine], stage: str) -> None:
    """Write the table, ordered by line; the stage's log gets its length and its beginning."""
    lines = sorted(bad, key=lambda line: line.line)
    write_whole(work / QUARANTINE_FILE, "".join(json.dumps(asdict(line)) + "\n" for line in lines))
    if lines:
        shown = "; ".join(f"{line.id} (line {line.line}): {line.reason}" for line in lines[:SHOWN])
        print(f"{stage}: {len(lines)} samples quarantined in {work / QUARANTINE_FILE}: {shown}", flush=True)


def read_quarantine(folder: Place) -> list[BadLine]:
    """The table of an artifact; of a stage that reads no samples it is empty."""
    file = folder / QUARANTINE_FILE
    return [BadLine(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []
