"""Checkpoints: what a training needs to go on where it stopped.

    <work>/scratch/checkpoints/00000040.pt      the state after step 40
    <work>/scratch/checkpoints/00000040.json    its size and SHA-256, written last

A checkpoint is written by a thread beside the training. Whoever resumes takes the newest one that is
what was written: a person's next start, Ray Train after a lost worker, or a RayJob's next attempt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from stages.contract import StageError
from stages.contract.artifact import SCRATCH_FOLDER
from stages.contract.place import Place, borrowed, files_below, sha256_of, size_of, staged, sync, write_whole

CHECKPOINTS_FOLDER = "checkpoints"
KEPT = 2


class DamagedCheckpoint(StageError):
    """A checkpoint is not what was written."""


class Checkpoints:
    """The checkpoints of one work folder; written by one worker, read by all.

    As a context it is left when the last checkpoint is written.
    """

    def __init__(self, work: Place) -> None:
        self._folder = work / SCRATCH_FOLDER / CHECKPOINTS_FOLDER
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        """Nothing has to be done first."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let the last one be finished; that it failed is worth saying only if nothing else did."""
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            OSError: the checkpoint that was being written could not be.
        """
        if self._writing is not None:
            self._writing.result()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write `state`, which nobody else may change, once the checkpoint before it is written.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, step, state)

    def newest(self) -> tuple[int, dict[str, Any] | None, str]:
        """Step and state of the newest checkpoint that is whole; those that are not are deleted.

        Returns:
            The step, 0 if there is none; its state; and a sentence on those that were deleted, if any were.
        """
        damaged: list[str] = []
        for step in reversed(self._steps()):
            try:
                return step, self.load(step), _told(damaged, f"going on after step {step}")
            except DamagedCheckpoint as error:
                damaged.append(str(error))
                self._delete(step)
        return 0, None, _told(damaged, "no checkpoint is whole, so starting from the beginning")

    def load(self, step: int) -> dict[str, Any]:
        """The state after `step`, on the CPU.

        Raises:
            DamagedCheckpoint: it is not what was written.
        """
        file = self._state(step)
        with suppress(ValueError, KeyError):  # of a damaged record
            written = json.loads(self._record(step).read_text())
            if size_of(file) == written["bytes"]:
                with borrowed(file) as path:
                    if sha256_of(path) == written["sha256"]:
                        return torch.load(path, map_location="cpu", weights_only=True)
        raise DamagedCheckpoint(f"the checkpoint of step {step}, {file}, is not what was written")

    def _write(self, step: int, state: dict[str, Any]) -> None:
        with staged(self._state(step)) as path:
            with path.open("wb") as file:
                torch.save(state, file)
            sync(path)
            written = {"step": step, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        write_whole(self._record(step), json.dumps(written))
        for old in self._steps()[:-KEPT]:
            self._delete(old)

    def _steps(self) -> list[int]:
        """Of the checkpoints that were written to their end, in order."""
        return [int(Path(name).stem) for name in files_below(self._folder) if name.endswith(".json")]

    def _delete(self, step: int) -> None:
        """The record first: without it there is no checkpoint."""
        for file in (self._record(step), self._state(step)):
            file.unlink(missing_ok=True)

    def _state(self, step: int) -> Place:
        return self._folder / f"{step:08d}.pt"

    def _record(self, step: int) -> Place:
        return self._folder / f"{step:08d}.json"


def _told(damaged: Sequence[str], instead: str) -> str:
    return "; ".join([*damaged, instead]) if damaged else ""
