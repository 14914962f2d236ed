"""Ray jobs on a Ray: found again after the submitting process was killed, and stopped."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.execution import RayJobs
from pipeline.executors import StageStopped
from pipeline.executors.cluster import ClusterExecutor
from pipeline.executors.ray_jobs import RayCluster
from stages.contract import Job
from stages.contract.job import execute
from stages.contract.place import Place
from stages.contract.settings import PrepareSettings

pytestmark = [pytest.mark.ray, pytest.mark.ray_jobs]
PATIENCE_SECONDS = 120
HEAD = """
import ray, sys
context = ray.init("local", num_cpus=1, include_dashboard=True, dashboard_port=0, log_to_driver=False)
print(context.dashboard_url, flush=True)
sys.stdin.read()
"""
SUBMIT = """
import sys
from pipeline.execution import RayJobs
from pipeline.executors.ray_jobs import RayCluster
from stages.contract import Job
cluster = RayCluster(RayJobs(address=sys.argv[1]))
cluster.connect()
print(cluster.submit(Job.model_validate_json(sys.argv[2]), {}), flush=True)
sys.stdin.read()
"""


@contextmanager
def python(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has printed what it has to say, and waits to be ended."""
    root = str(Path(__file__).parents[3])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONPATH": paths, "PATH": path, "RAY_AUTH_MODE": "disabled"},
    )
    try:
        yield process
    finally:
        process.communicate()


def last_word(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The dashboard of a Ray of its own, which ends with the process that started it."""
    with python(HEAD) as head:
        yield f"http://{last_word(head)}"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of which the cluster has never heard."""
    fingerprint = secrets.token_hex(8)
    output = str(tmp_path / "prepare" / fingerprint)
    return Job(stage="prepare", settings=PrepareSettings(), inputs={}, output=output, fingerprint=fingerprint)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Maker(threading.Thread):
    """Makes an artifact in this process once it is told to; whoever else wants it waits until then."""

    def __init__(self, job: Job) -> None:
        super().__init__(daemon=True)
        self._job = job
        self._begun, self._may_end = threading.Event(), threading.Event()

    def __enter__(self) -> Maker:
        self.start()
        assert self._begun.wait(PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def run(self) -> None:
        execute(self._job, self._make)

    def _make(self, job: Job, work: Place) -> dict[str, Any]:
        self._begun.set()
        self._may_end.wait()
        return {}

    def finish(self) -> None:
        """Commit the artifact."""
        self._may_end.set()
        self.join(PATIENCE_SECONDS)


def test_a_job_is_found_again_when_its_submitter_was_killed(address: str, job: Job, tmp_path: Path) -> None:
    log, name = tmp_path / "log", f"vlsi-prepare-{job.fingerprint}-1"
    with Maker(job) as maker:
        with python(SUBMIT, address, job.model_dump_json()) as submitter:
            assert last_word(submitter) == name
            submitter.kill()
        cluster = RayCluster(RayJobs(address=address))
        with ClusterExecutor(cluster, RayJobs(), poll_seconds=0.1) as executor:
            thread = threading.Thread(target=lambda: executor.run(job, log, {}))
            thread.start()
            wait_until(lambda: log.is_file() and "waiting for process" in log.read_text())
            maker.finish()
            thread.join(PATIENCE_SECONDS)
    submitted = [found.submission_id or "" for found in cluster._client.list_jobs()]
    assert [found for found in submitted if job.fingerprint in found] == [name]
    assert cluster._client.get_job_status(name).value == "SUCCEEDED"
    assert f"prepare: {job.output}" in log.read_text()


def test_a_job_is_stopped_with_the_run(address: str, job: Job, tmp_path: Path) -> None:
    log, name = tmp_path / "log", f"vlsi-prepare-{job.fingerprint}-1"
    cluster = RayCluster(RayJobs(address=address))
    stopped: list[str] = []

    def run() -> None:
        try:
            executor.run(job, log, {})
        except StageStopped as error:
            stopped.append(str(error))

    thread = threading.Thread(target=run)
    with Maker(job):
        with ClusterExecutor(cluster, RayJobs(), poll_seconds=0.1) as executor:
            thread.start()
            wait_until(lambda: log.is_file() and "waiting for process" in log.read_text())
        thread.join(PATIENCE_SECONDS)
    assert stopped[0].startswith("prepare was stopped with the run")
    assert cluster._client.get_job_status(name).value == "STOPPED"
