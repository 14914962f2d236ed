"""This machine: each stage is a process of its own, and all of them share one local Ray.

A process per stage gives back its memory when it ends, can be killed whole, and is the same command
that a container runs. Ray is started once, because it takes longer to start than some stages take.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from math import ceil
from pathlib import Path
from types import TracebackType

from pipeline.execution import Local
from pipeline.executors import StageFailed, StageStopped, end_of
from stages.cluster import initialize
from stages.contract import STAGES, Job
from stages.contract.job import EXIT_STOPPED
from stages.contract.place import write_whole

GRACE_SECONDS = 30
"""Between asking a stage to stop and killing it; a training stage writes a checkpoint in it."""
STOPPED_CODES = (EXIT_STOPPED, -signal.SIGTERM)
"""With which a stage ends that was asked to stop, after it was ready for that or before."""


class LocalExecutor:
    """Runs `python -m stages.<name> --job FILE` here."""

    def __init__(self, settings: Local) -> None:
        """Nothing is started before the executor is entered."""
        self._settings = settings
        self._environment: dict[str, str] = {}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self._lock = threading.Lock()

    def __enter__(self) -> LocalExecutor:
        """Start a Ray for all stages, unless RAY_ADDRESS names one."""
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        if "RAY_ADDRESS" not in os.environ:
            self._environment["RAY_ADDRESS"] = _start_ray(self._settings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the stages that still run, then the Ray that was started for them."""
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for process in running:
            _stop(process)
        if "RAY_ADDRESS" in self._environment:
            import ray

            ray.shutdown()

    def run(self, job: Job, log: Path, environment: dict[str, str]) -> None:
        """Run one stage to its end; its output goes to `log`, the job stands beside it."""
        log.parent.mkdir(parents=True, exist_ok=True)
        job_file = log.with_suffix(".job.json")
        write_whole(job_file, job.model_dump_json(indent=2))
        command = [sys.executable, "-m", f"stages.{job.stage}", "--job", str(job_file)]
        with log.open("wb") as output:
            code = self._wait(command, output.fileno(), os.environ | self._environment | environment)
        if code in STOPPED_CODES:
            raise StageStopped(f"{job.stage} was stopped from outside; the end of {log}:\n{end_of(log)}")
        if code != 0:
            raise StageFailed(f"{job.stage} ended with exit code {code}; the end of {log}:\n{end_of(log)}")

    def _wait(self, command: list[str], output: int, environment: dict[str, str]) -> int:
        """Run a command in a process group of its own and return its exit code."""
        with self._lock:
            if self._stopping:
                raise StageFailed("the run was stopped")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)


def _start_ray(settings: Local) -> str:
    """Start a Ray on this machine and return its address.

    The CPUs it hands out are tokens, not cores. Every parallel stage gets what it uses at most: with
    fewer, two stages can wait for each other for ever.
    """
    import ray

    largest = max(settings.resources_of(stage).most_cpus for stage in STAGES)
    cpus = settings.cpus or max(os.cpu_count() or 1, ceil(settings.parallel_stages * largest))
    initialize(num_cpus=cpus, logging_level=logging.ERROR)
    return str(ray.get_runtime_context().gcs_address)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a stage with everything it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
