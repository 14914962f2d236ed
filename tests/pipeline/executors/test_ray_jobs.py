"""Stages as Ray jobs: against a client that answers as Ray's does, and once against a Ray."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus

from pipeline.config import ConfigError
from pipeline.execution import RayJobs
from pipeline.executors import StageFailed
from pipeline.executors.cluster import Phase, Unreachable
from pipeline.executors.ray_jobs import RayCluster
from stages.contract import Job, Resources

NAME = "vlsi-capture-0123456789abcdef"


class FakeClient:
    """Ray's JobSubmissionClient on a cluster in which nothing happens by itself."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobDetails] = {}
        self.asked: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.error: Exception | None = None

    def _answer(self) -> None:
        if self.error is not None:
            raise self.error

    def submit_job(self, **request: Any) -> str:
        self._answer()
        self.asked.append(request)
        self.set(request["submission_id"], "PENDING")
        return request["submission_id"]

    def set(self, name: str, status: str, **details: Any) -> None:
        """Let a job be in a state."""
        self.jobs[name] = JobDetails(
            type="SUBMISSION", submission_id=name, status=JobStatus(status), entrypoint="", **details
        )

    def list_jobs(self) -> list[JobDetails]:
        self._answer()
        return list(self.jobs.values())

    def get_job_info(self, name: str) -> JobDetails:
        self._answer()
        if name not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")
        return self.jobs[name]

    def get_job_logs(self, name: str) -> str:
        self._answer()
        return "printed\n"

    def stop_job(self, name: str) -> bool:
        self.stopped.append(name)
        return True


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    client = FakeClient()
    monkeypatch.setattr("pipeline.executors.ray_jobs._connected", lambda _: client)
    return client


@pytest.fixture
def cluster(client: FakeClient) -> RayCluster:
    cluster = RayCluster(RayJobs(address="http://head:8265", environment={"HF_HOME": "/models"}))
    cluster.connect()
    return cluster


def test_the_job_travels_with_the_submission(cluster: RayCluster, client: FakeClient, job: Job) -> None:
    assert cluster.submit(job, {"MLFLOW_RUN_ID": "7"}) == f"{NAME}-1"
    (asked,) = client.asked
    assert asked["entrypoint"] == 'python -m stages.capture --job "$VLSI_JOB"'
    variables = asked["runtime_env"]["env_vars"]
    assert Job.model_validate_json(variables["VLSI_JOB"]) == job
    assert (variables["HF_HOME"], variables["MLFLOW_RUN_ID"]) == ("/models", "7")
    assert asked["metadata"] == {
        "stage": "capture",
        "fingerprint": job.fingerprint,
        "output": job.output,
        "mlflow_run": "7",
    }
    assert asked["entrypoint_num_cpus"] == 0


def test_a_stage_without_workers_reserves_for_itself(cluster: RayCluster, client: FakeClient, job: Job) -> None:
    resources = Resources(workers=0, cpus_per_worker=4, gpus_per_worker=1)
    cluster.submit(job.model_copy(update={"resources": resources}), {})
    assert (client.asked[0]["entrypoint_num_cpus"], client.asked[0]["entrypoint_num_gpus"]) == (4, 1)


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_what_runs_is_found_again(cluster: RayCluster, client: FakeClient, job: Job, status: str) -> None:
    client.set(f"{NAME}-2", status)
    client.set(f"{NAME}-1", "FAILED")
    client.set("vlsi-capture-another-9", "RUNNING")
    assert cluster.submit(job, {}) == f"{NAME}-2"
    assert client.asked == []


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_what_has_ended_is_followed_by_the_next(cluster: RayCluster, client: FakeClient, job: Job, status: str) -> None:
    client.set(f"{NAME}-9", "FAILED")
    client.set(f"{NAME}-10", status)
    assert cluster.submit(job, {}) == f"{NAME}-11"


@pytest.mark.parametrize(
    ("status", "details", "phase", "again", "reason"),
    [
        ("PENDING", {}, Phase.RUNNING, False, ""),
        ("RUNNING", {}, Phase.RUNNING, False, ""),
        ("SUCCEEDED", {}, Phase.SUCCEEDED, False, ""),
        ("STOPPED", {}, Phase.STOPPED, False, "was stopped on the cluster"),
        ("FAILED", {"driver_exit_code": 3}, Phase.STOPPED, False, "was asked to stop and did"),
        ("FAILED", {"driver_exit_code": 2}, Phase.FAILED, False, "ended with exit code 2"),
        ("FAILED", {"driver_exit_code": 1}, Phase.FAILED, True, "ended with exit code 1"),
        ("FAILED", {"driver_exit_code": -9}, Phase.FAILED, True, "ended with exit code -9"),
        ("FAILED", {"message": "the node died\n…"}, Phase.FAILED, True, "part of the cluster: the node died"),
    ],
)
def test_states(
    cluster: RayCluster, client: FakeClient, status: str, details: dict, phase: Phase, again: bool, reason: str
) -> None:
    client.set("one", status, **details)
    state = cluster.state("one")
    assert (state.phase, state.again) == (phase, again)
    assert reason in state.reason


def test_a_job_that_a_new_head_does_not_know_may_be_submitted_again(cluster: RayCluster) -> None:
    state = cluster.state("gone")
    assert (state.phase, state.again) == (Phase.FAILED, True)
    assert "whose head was restarted" in state.reason


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.ConnectionError("refused"),
        requests.exceptions.ReadTimeout("slow"),
        ConnectionError("Failed to connect to Ray"),
        RuntimeError("Request failed with status code 500: No available agent to submit job"),
    ],
)
def test_silence_passes(cluster: RayCluster, client: FakeClient, error: Exception) -> None:
    client.error = error
    with pytest.raises(Unreachable, match="the Ray cluster at http://head:8265"):
        cluster.state("one")


def test_a_refusal_is_final(cluster: RayCluster, client: FakeClient, job: Job) -> None:
    client.error = RuntimeError("Request failed with status code 400: no such thing\nTraceback …")
    with pytest.raises(StageFailed, match="refuses: Request failed with status code 400: no such thing$"):
        cluster.submit(job, {})


def test_a_wrong_token_says_what_to_set(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str | None) -> None:
        raise AuthenticationError("Forbidden")

    monkeypatch.setattr("pipeline.executors.ray_jobs._connected", refuse)
    with pytest.raises(ConfigError, match=r"executor\.address: .*set RAY_AUTH_TOKEN"):
        RayCluster(RayJobs(address="http://head:8265")).connect()


def test_a_cluster_that_is_not_there_is_a_mistake_of_the_configuration() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"executor.address: the Ray cluster at {address} does not answer"):
            RayCluster(RayJobs(address=address)).connect()
