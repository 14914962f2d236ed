"""Stages on a cluster: submitted there, then followed from here until they have ended.

What runs has a name that is made of the stage and its fingerprint. So whoever wants the same artifact
later, such as this run started again after it was killed, finds what runs and goes on watching it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from pipeline.execution import OnCluster
from pipeline.executors import StageFailed, StageStopped, end_of
from stages.contract import Job

T = TypeVar("T")
JOB_VARIABLE = "VLSI_JOB"
"""In which a stage on a cluster finds its job; it needs no file that both sides can see."""
POLL_SECONDS = 2.0
GRACE_SECONDS = 60
"""Between asking a stage to stop and killing it: time for a checkpoint."""


class Phase(Enum):
    """Where a submitted stage is."""

    RUNNING = auto()
    SUCCEEDED = auto()
    FAILED = auto()
    STOPPED = auto()


@dataclass(frozen=True)
class State:
    """What a cluster says of a submitted stage.

    Attributes:
        phase: RUNNING also while it waits for machines.
        reason: how it ended, to follow the stage's name in a sentence.
        again: whether the same job may be submitted again.
    """

    phase: Phase
    reason: str = ""
    again: bool = False


RUNNING = State(Phase.RUNNING)
SUCCEEDED = State(Phase.SUCCEEDED)


class Unreachable(Exception):
    """The cluster does not answer, or not now; the message says who."""


class Cluster(Protocol):
    """Something that jobs are submitted to. Every method may raise `Unreachable`, which passes, or `StageFailed`."""

    def connect(self) -> None:
        """Get ready.

        Raises:
            ConfigError: there is no such cluster, or it does not let us in.
        """

    def submit(self, job: Job, environment: dict[str, str]) -> str:
        """Start a job unless it runs; the name of what runs."""

    def state(self, name: str) -> State:
        """Where it is."""

    def log(self, name: str) -> str:
        """Everything it has printed, as far as that is known."""

    def cancel(self, name: str) -> None:
        """Ask it to stop; it is killed after `GRACE_SECONDS`."""


def as_variable(job: Job, indent: int | None = None) -> str:
    """A job as the value of `JOB_VARIABLE`: JSON in which neither Ray nor Kubernetes finds a variable to replace."""
    return job.model_dump_json(indent=indent).replace("$", "\\u0024")


class ClusterExecutor:
    """Follows jobs on a cluster; survives the cluster's silence, and is survived by what runs there."""

    def __init__(self, cluster: Cluster, settings: OnCluster, poll_seconds: float = POLL_SECONDS) -> None:
        """Nothing is asked of the cluster before the executor is entered."""
        self._cluster = cluster
        self._settings = settings
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()

    def __enter__(self) -> ClusterExecutor:
        """Find the cluster."""
        self._cluster.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the threads that follow stages stop them, or leave them where `executor.detach` says so."""
        self._stopping.set()

    def run(self, job: Job, log: Path, environment: dict[str, str]) -> None:
        """Carry out one stage; its output goes to `log`, as the cluster has it."""
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")
        for left in reversed(range(self._settings.retries + 1)):
            state = self._carry_out(job, log, environment)
            if state.phase is Phase.SUCCEEDED:
                return
            if not (state.again and left):
                break
            with log.open("a") as lines:
                lines.write(f"{job.stage} {state.reason}; it is started again\n")
        error = StageStopped if state.phase is Phase.STOPPED else StageFailed
        raise error(f"{job.stage} {state.reason}; the end of {log}:\n{end_of(log)}")

    def _carry_out(self, job: Job, log: Path, environment: dict[str, str]) -> State:
        """Submit a job, or find it, and follow it to its end."""
        if self._stopping.is_set():
            raise StageStopped(f"{job.stage} was not started: the run was stopped")
        name = self._patiently(lambda: self._cluster.submit(job, environment))
        copy = _Copy(log)
        while not self._stopping.is_set():
            state = self._patiently(lambda: self._cluster.state(name))
            copy.update(lambda: self._cluster.log(name))
            if state.phase is not Phase.RUNNING:
                return state
            self._stopping.wait(self._poll_seconds)
        return self._stop(name, copy)

    def _stop(self, name: str, copy: _Copy) -> State:
        if self._settings.detach:
            return State(Phase.STOPPED, f"was left to run as {name}; the next run goes on watching it")
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            self._cluster.cancel(name)
            while self._cluster.state(name).phase is Phase.RUNNING and time.monotonic() < deadline:
                time.sleep(self._poll_seconds)
        except Unreachable as silence:
            return State(Phase.STOPPED, f"may still run as {name}: {silence}")
        copy.update(lambda: self._cluster.log(name))
        return State(Phase.STOPPED, "was stopped with the run")

    def _patiently(self, ask: Callable[[], T]) -> T:
        """The answer to a question, however long the cluster is silent within `executor.patience_seconds`."""
        deadline = time.monotonic() + self._settings.patience_seconds
        while True:
            try:
                return ask()
            except Unreachable as silence:
                if self._stopping.is_set() or time.monotonic() > deadline:
                    raise StageFailed(
                        f"{silence}, for {self._settings.patience_seconds:g} seconds (executor.patience_seconds); "
                        "what runs there may go on: the next run looks for it"
                    ) from silence
            self._stopping.wait(self._poll_seconds)


class _Copy:
    """A file that follows a log which can only be had whole, and which starts anew with the process it is of."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = 0

    def update(self, read: Callable[[], str]) -> None:
        """Append what is new; a log that cannot be had now is had later."""
        try:
            text = read()
        except (Unreachable, StageFailed):
            return
        if len(text) < self._seen:
            self._seen = 0
        with self._file.open("a") as lines:
            lines.write(text[self._seen :])
        self._seen = len(text)
