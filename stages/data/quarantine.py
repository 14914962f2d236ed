"""The quarantine: a table of the samples that a stage left out, each with its line and reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from stages.contract.files import QUARANTINE_FILE
from stages.contract.place import Place, write_whole
from stages.data.sample import BadLine

SHOWN = 3
"""Samples that the log names."""


def write_quarantine(work: Place, bad: Sequence[BadLine], stage: str) -> None:
    """Write the table, ordered by line; the stage's log gets its length and its beginning."""
    lines = sorted(bad, key=lambda line: line.line)
    write_whole(work / QUARANTINE_FILE, "".join(json.dumps(asdict(line)) + "\n" for line in lines))
    if lines:
        shown = "; ".join(f"{line.id} (line {line.line}): {line.reason}" for line in lines[:SHOWN])
        print(f"{stage}: {len(lines)} samples quarantined in {work / QUARANTINE_FILE}: {shown}", flush=True)
