"""The journal of a stage: `metrics.jsonl`, one JSON object a line, the record of what was measured.

Whoever shows progress (a terminal, MLflow) follows this file. A line holds `step`, `total` and `unit`
(what a progress bar counts), and the numbers of that step; a resumed stage cuts the lines after
its checkpoint, so that no step stands twice. An object store appends nothing: there the file is put
anew every few seconds, and before every checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from stages.contract.files import JOURNAL_FILE
from stages.contract.place import Place, Remote, sync, write_whole

PUT_SECONDS = 5.0
"""Between two puts of a journal in an object store."""


class Journal:
    """Appends to the journal of one work folder; used by one process at a time."""

    def __init__(self, folder: Place, *, total: int, unit: str, start: int = 0) -> None:
        """Continue after step `start`; `total` steps of `unit` make the stage."""
        self._path = folder / JOURNAL_FILE
        self._total = total
        self._unit = unit
        kept = [line for line in read_journal(folder) if line["step"] <= start] if start else []
        self._text = "".join(json.dumps(line) + "\n" for line in kept)
        self._put()

    def write(self, step: int, **numbers: float | int | str | list[Any]) -> None:
        """Record one step. Numbers that are not finite are written as text, so that each line is JSON."""
        line = {"step": step, "total": self._total, "unit": self._unit, "time": time.time()} | numbers
        text = json.dumps({key: _plain(value) for key, value in line.items()}) + "\n"
        if isinstance(self._path, Path):
            with self._path.open("a") as handle:
                handle.write(text)
            return
        self._text += text
        if time.monotonic() > self._due:
            self._put()

    def flush(self) -> None:
        """Let what was written survive this process, and this machine."""
        if isinstance(self._path, Remote):
            self._put()
        else:
            sync(self._path)

    def _put(self) -> None:
        write_whole(self._path, self._text)
        self._due = time.monotonic() + PUT_SECONDS


class Follower:
    """Reads a journal while it is being written, each step once, also when the stage goes back to a checkpoint."""

    def __init__(self) -> None:
        self._offset = 0
        self._last_step: float = -math.inf

    def new_lines(self, folder: Place) -> Iterator[dict[str, Any]]:
        """The whole lines that were added to the journal in `folder` since the last call."""
        path = folder / JOURNAL_FILE
        try:
            opened = path.open("rb") if isinstance(path, Path) else BytesIO(path.read_bytes())
        except FileNotFoundError:
            return
        with opened as handle:
            handle.seek(self._start(handle))
            for raw in handle:
                if not raw.endswith(b"\n"):
                    break
                self._offset += len(raw)
                line = json.loads(raw)
                if line["step"] > self._last_step:
                    self._last_step = line["step"]
                    yield line

    def _start(self, handle: BinaryIO) -> int:
        """Where to go on: past what was read, or at the beginning if the file was cut since."""
        handle.seek(max(0, self._offset - 1))
        if self._offset and handle.read(1) != b"\n":
            self._offset = 0
        return self._offset


def read_journal(folder: Place) -> list[dict[str, Any]]:
    """All whole lines of a folder's journal; a line torn by a kill is left out."""
    return list(Follower().new_lines(folder))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
