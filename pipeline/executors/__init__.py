"""Where stages run. An executor is given a job and returns when the artifact is there, or raises."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pipeline.execution import Execution, KubeRay, Local, RayJobs
from stages.contract import Job

SHOWN_LINES = 15
"""Of a failed stage's output."""


class StageFailed(Exception):
    """A stage ended without its artifact; the message ends with the last lines it printed."""


class StageStopped(StageFailed):
    """A stage was asked to stop by someone else; what it has done is kept."""


class Executor(Protocol):
    """A place to run stages. Entered once for all stages of a run, left when the last one is done."""

    def __enter__(self) -> Self:
        """Get ready; called only when something has to run.

        Raises:
            ConfigError: the place is not there, or does not let us in.
        """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs and give everything back."""

    def run(self, job: Job, log: Path, environment: dict[str, str]) -> None:
        """Carry out a job, or go on with the same job if it runs already; called from several threads at once.

        Args:
            job: what the stage is told.
            log: file for everything the stage prints.
            environment: variables added to the stage's own.

        Raises:
            StageFailed: the stage did not leave its artifact.
            StageStopped: nor was it let.
        """


def make_executor(settings: Execution) -> Executor:
    """The executor that `executor.kind` names."""
    from pipeline.executors.cluster import ClusterExecutor
    from pipeline.executors.kuberay import KubeRayCluster
    from pipeline.executors.local import LocalExecutor
    from pipeline.executors.ray_jobs import RayCluster

    match settings:
        case Local():
            return LocalExecutor(settings)
        case RayJobs():
            return ClusterExecutor(RayCluster(settings), settings)
        case KubeRay():
            return ClusterExecutor(KubeRayCluster(settings), settings)
    raise TypeError(f"{type(settings).__name__} names no executor")


def end_of(log: Path) -> str:
    """What a stage printed last."""
    with log.open(errors="replace") as lines:
        return "".join(f"  {line}" for line in deque(lines, SHOWN_LINES)).rstrip()
