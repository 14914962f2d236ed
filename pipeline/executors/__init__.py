"""Where stages run. An executor is given a job and returns when the artifact is there, or raises."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pipeline.experiment import Execution
from stages.contract import Job


class StageFailed(Exception):
    """A stage ended without its artifact; the message ends with the last lines it printed."""


class StageStopped(StageFailed):
    """A stage was asked to stop by someone else; what it has done is kept."""


class Executor(Protocol):
    """A place to run stages. Entered once for all stages of a run, left when the last one is done."""

    def __enter__(self) -> Self:
        """Get ready; called only when something has to run."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs and give everything back."""

    def run(self, job: Job, log: Path, environment: dict[str, str]) -> None:
        """Carry out a job; called from several threads at once.

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
    from pipeline.executors.local import LocalExecutor

    return LocalExecutor(settings)
