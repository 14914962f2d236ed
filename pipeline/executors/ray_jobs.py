"""A Ray cluster that is there already: each stage is one Ray job, `vlsi-<stage>-<fingerprint>-<attempt>`.

A job can be watched from anywhere (`ray job list`, the dashboard), and submitted by hand just as well:

    ray job submit -- python -m stages.interaction --job "$(vlsi job interaction)"
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.config import ConfigError
from pipeline.execution import RayJobs
from pipeline.executors import StageFailed
from pipeline.executors.cluster import (
    GRACE_SECONDS,
    JOB_VARIABLE,
    RUNNING,
    SUCCEEDED,
    Phase,
    State,
    Unreachable,
    as_variable,
)
from stages.contract import Job
from stages.contract.job import EXIT_INVALID, EXIT_STOPPED

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

T = TypeVar("T")
ANSWER_SECONDS = 30
"""Within which the dashboard has to answer one request."""


class RayCluster:
    """Ray's Jobs API."""

    def __init__(self, settings: RayJobs) -> None:
        """Ray is imported when the cluster is connected."""
        self._settings = settings
        self._client: JobSubmissionClient | Any = None

    def connect(self) -> None:
        """Find the cluster's dashboard; RAY_AUTH_TOKEN turns on authentication."""
        if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        try:
            self._client = self._ask(lambda: _connected(self._settings.address))
        except (Unreachable, StageFailed) as error:
            raise ConfigError(
                f"executor.address: {error}; name the dashboard of a Ray cluster, such as http://head:8265"
            ) from error

    def submit(self, job: Job, environment: dict[str, str]) -> str:
        """Start a job under the next number, unless the last one has not ended."""
        prefix = f"vlsi-{job.stage}-{job.fingerprint}-"
        attempts = {
            int(found.submission_id.removeprefix(prefix)): found
            for found in self._ask(self._client.list_jobs)
            if (found.submission_id or "").startswith(prefix)
        }
        last = max(attempts, default=0)
        if last and not attempts[last].status.is_terminal():
            return f"{prefix}{last}"
        resources = job.resources
        in_process = resources.workers == 0
        return self._ask(
            lambda: self._client.submit_job(
                submission_id=f"{prefix}{last + 1}",
                entrypoint=f'python -m stages.{job.stage} --job "${JOB_VARIABLE}"',
                entrypoint_num_cpus=resources.cpus_per_worker if in_process else 0,
                entrypoint_num_gpus=resources.gpus_per_worker if in_process else 0,
                runtime_env={"env_vars": self._environment(job) | environment},
                metadata=metadata_of(job, environment),
            )
        )

    def state(self, name: str) -> State:
        """What the cluster says of a job; one that a new head no longer knows may be submitted again."""
        try:
            return _state_of(self._ask(lambda: self._client.get_job_info(name)))
        except StageFailed as error:
            if "status code 404" not in str(error):
                raise
            return State(Phase.FAILED, "is no longer known to the cluster, whose head was restarted", again=True)

    def log(self, name: str) -> str:
        """What the job's driver has printed."""
        return self._ask(lambda: self._client.get_job_logs(name))

    def cancel(self, name: str) -> None:
        """Send SIGTERM."""
        self._ask(lambda: self._client.stop_job(name))

    def _environment(self, job: Job) -> dict[str, str]:
        ours = {JOB_VARIABLE: as_variable(job), "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_SECONDS)}
        return self._settings.environment | ours

    def _ask(self, request: Callable[[], T]) -> T:
        """The answer to a request, with errors as `Cluster` knows them."""
        from ray.exceptions import AuthenticationError
        from requests import RequestException

        try:
            return request()
        except (RequestException, ConnectionError) as error:
            raise Unreachable(f"the Ray cluster at {self._address} does not answer ({type(error).__name__})") from error
        except AuthenticationError as error:
            raise StageFailed(
                f"the Ray cluster at {self._address} does not take our token; set RAY_AUTH_TOKEN to the cluster's"
            ) from error
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            if "status code 5" in first:
                raise Unreachable(f"the Ray cluster at {self._address} has trouble ({first})") from error
            raise StageFailed(f"the Ray cluster at {self._address} refuses: {first}") from error

    @property
    def _address(self) -> str:
        return self._settings.address or os.environ.get("RAY_ADDRESS") or "this machine"


def metadata_of(job: Job, environment: dict[str, str]) -> dict[str, str]:
    """What a job on a cluster tells of itself to people."""
    told = {"stage": job.stage, "fingerprint": job.fingerprint, "output": job.output}
    return told | ({"mlflow_run": environment["MLFLOW_RUN_ID"]} if "MLFLOW_RUN_ID" in environment else {})


def _connected(address: str | None) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's own waits for ever when a connection is lost without a word."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": ANSWER_SECONDS, **options})

    return Client(address)


def _state_of(details: JobDetails) -> State:
    code = details.driver_exit_code
    match details.status.value:
        case "SUCCEEDED":
            return SUCCEEDED
        case "STOPPED":
            return State(Phase.STOPPED, "was stopped on the cluster")
        case "FAILED" if code == EXIT_STOPPED:
            return State(Phase.STOPPED, "was asked to stop and did; the next run goes on there")
        case "FAILED" if code is None:
            message = (details.message or "it did not say why").splitlines()[0]
            return State(Phase.FAILED, f"was lost with a part of the cluster: {message}", again=True)
        case "FAILED":
            return State(Phase.FAILED, f"ended with exit code {code}", again=code != EXIT_INVALID)
    return RUNNING
