"""Stages as RayJobs, through the Kubernetes client, against a server that answers as the API does."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ConfigError
from pipeline.execution import KubeRay
from pipeline.executors import StageFailed, diagnosis
from pipeline.executors.cluster import Phase, State, Unreachable
from pipeline.executors.kuberay import KubeRayCluster
from stages.contract import Job
from tests.pipeline.executors.kube_api import KubeApi, failure, serve

NAME = "vlsi-capture-0123456789abcdef"
CLUSTER = f"{NAME}-abcde"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    # The client reads the file's place when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    with serve(tmp_path / "kubeconfig") as api:
        yield api


@pytest.fixture
def cluster(api: KubeApi) -> KubeRayCluster:
    return connected()


def connected(**settings: Any) -> KubeRayCluster:
    cluster = KubeRayCluster(KubeRay(**settings))
    cluster.connect()
    return cluster


def status(api: KubeApi, deployment: str, job: str = "", **more: Any) -> None:
    """What the operator would write."""
    told = {"jobDeploymentStatus": deployment, "jobStatus": job, "rayClusterName": CLUSTER, **more}
    api.rayjobs[NAME]["status"] = told


def pod(reason: str = "", message: str = "", *, scheduled: bool = True, terminated: str = "") -> dict[str, Any]:
    """A pod of the stage that waits for something, or was ended by something."""
    state = {"waiting": {"reason": reason, "message": message}} if reason else {"running": {}}
    last = {"terminated": {"reason": terminated, "exitCode": 137}} if terminated else {}
    container = {"name": "ray-worker", "image": "vlsi/capture:0.1.0", "imageID": "", "ready": False, "restartCount": 0}
    condition = {"type": "PodScheduled", "status": str(scheduled), "message": message}
    limits = {"limits": {"memory": "16Gi"}}
    return {
        "metadata": {"name": f"{CLUSTER}-worker-1"},
        "spec": {"containers": [{"name": "ray-worker", "resources": limits}]},
        "status": {"containerStatuses": [container | {"state": state, "lastState": last}], "conditions": [condition]},
    }


def test_the_rayjob_is_created_with_this_runs_variables(api: KubeApi, cluster: KubeRayCluster, job: Job) -> None:
    assert cluster.submit(job, {"MLFLOW_RUN_ID": "7"}) == NAME
    head = api.rayjobs[NAME]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    variables = {variable["name"]: variable["value"] for variable in head["env"]}
    assert variables["MLFLOW_RUN_ID"] == "7"
    assert Job.model_validate_json(variables["VLSI_JOB"]) == job


@pytest.mark.parametrize("deployment", ["", "Initializing", "Running", "Suspended", "Retrying"])
def test_what_runs_is_found_again(api: KubeApi, cluster: KubeRayCluster, job: Job, deployment: str) -> None:
    cluster.submit(job, {})
    status(api, deployment)
    before = dict(api.rayjobs)
    assert connected().submit(job, {}) == NAME
    assert api.rayjobs == before
    assert cluster.state(NAME).phase is Phase.RUNNING


@pytest.mark.parametrize("deployment", ["Complete", "Failed"])
def test_what_has_ended_makes_room(api: KubeApi, cluster: KubeRayCluster, job: Job, deployment: str) -> None:
    cluster.submit(job, {})
    status(api, deployment, "FAILED")
    cluster.submit(job, {})
    assert "status" not in api.rayjobs[NAME]


def test_what_is_still_being_deleted_is_waited_for(
    api: KubeApi, cluster: KubeRayCluster, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.submit(job, {})
    api.rayjobs[NAME]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    monkeypatch.setattr(cluster, "cancel", lambda _: None)
    with pytest.raises(Unreachable, match="still being deleted"):
        cluster.submit(job, {})


@pytest.mark.parametrize(
    ("deployment", "told", "phase", "reason"),
    [
        ("Complete", {"job": "SUCCEEDED"}, Phase.SUCCEEDED, ""),
        ("Complete", {"job": "STOPPED"}, Phase.STOPPED, "was stopped on the cluster"),
        ("Failed", {"job": "FAILED", "message": "no luck\n…"}, Phase.FAILED, r"failed \(2 times\): no luck$"),
        (
            "Failed",
            {"reason": "DeadlineExceeded"},
            Phase.FAILED,
            r"longer than 60 seconds; see executor\.pods\.capture",
        ),
        ("Failed", {}, Phase.FAILED, "the operator does not say why"),
    ],
)
def test_ends(api: KubeApi, job: Job, deployment: str, told: dict[str, str], phase: Phase, reason: str) -> None:
    cluster = connected(pod={"deadline_seconds": 60}, retries=1)
    cluster.submit(job, {})
    status(api, deployment, **told)
    state = cluster.state(NAME)
    assert (state.phase, state.again) == (phase, False)
    assert re.search(reason, state.reason)


def test_a_pod_that_was_killed_for_memory_explains_a_later_failure(
    api: KubeApi, cluster: KubeRayCluster, job: Job
) -> None:
    cluster.submit(job, {})
    status(api, "Running")
    api.pods = [pod(terminated="OOMKilled")]
    assert cluster.state(NAME).phase is Phase.RUNNING
    api.pods = []
    status(api, "Failed", "FAILED", message="exit code 1")
    assert cluster.state(NAME).reason == (
        f"failed: {CLUSTER}-worker-1 was killed for using more than its 16Gi of memory; "
        "raise executor.pods.capture.memory"
    )


def state_with(api: KubeApi, job: Job, patience: float, **objects: list[dict[str, Any]]) -> State:
    """What is said of a stage whose pods do not start."""
    cluster = connected(patience_seconds=patience)
    cluster.submit(job, {})
    status(api, "Initializing")
    vars(api).update(objects)
    state = cluster.state(NAME)
    return cluster.state(NAME) if state.phase is Phase.RUNNING else state


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_an_image_that_cannot_be_had(api: KubeApi, job: Job, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_with(api, job, 900, pods=[pod(reason, "not found")]).phase is Phase.RUNNING
    monkeypatch.setattr(diagnosis, "PULL_PATIENCE_SECONDS", 0)
    state = state_with(api, job, 900, pods=[pod(reason, "not found")])
    assert state.phase is Phase.FAILED
    assert state.reason.startswith("cannot have its image vlsi/capture:0.1.0 (not found); see executor.registry")
    assert NAME not in api.rayjobs


def test_pods_for_which_there_is_no_machine(api: KubeApi, job: Job) -> None:
    waiting = pod("", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", scheduled=False)
    assert state_with(api, job, 900, pods=[waiting]).phase is Phase.RUNNING
    state = state_with(api, job, 1e-9, pods=[waiting])
    assert state.phase is Phase.FAILED
    assert "found no machine" in state.reason
    assert "3 Insufficient nvidia.com/gpu" in state.reason


def test_a_secret_that_is_missing(api: KubeApi, job: Job) -> None:
    waiting = pod("CreateContainerConfigError", 'secret "vlsi-ray" not found')
    assert 'secret "vlsi-ray" not found' in state_with(api, job, 1e-9, pods=[waiting]).reason


def test_a_quota_that_lets_no_pods_in(api: KubeApi, job: Job) -> None:
    def event(name: str, message: str, at: str) -> dict[str, Any]:
        told = {"involvedObject": {"name": name}, "message": message, "lastTimestamp": at, "metadata": {}}
        return told | {"type": "Warning", "reason": "FailedToCreateHeadPod"}

    events = [
        event(CLUSTER, "exceeded quota: vlsi", "2026-01-01T00:00:02Z"),
        event(CLUSTER, "older", "2026-01-01T00:00:01Z"),
        event("vlsi-another", "not ours", "2026-01-01T00:00:03Z"),
    ]
    state = state_with(api, job, 1e-9, events=events)
    assert state.reason.startswith("got no pods")
    assert state.reason.endswith("exceeded quota: vlsi")


def test_more_workers_may_be_sought_while_it_runs(api: KubeApi, job: Job) -> None:
    cluster = connected(patience_seconds=1e-9)
    cluster.submit(job, {})
    status(api, "Running", "RUNNING")
    api.pods = [pod("", "0/3 nodes are available", scheduled=False)]
    assert [cluster.state(NAME).phase for _ in range(3)] == [Phase.RUNNING] * 3


def test_deleted_by_someone_else(api: KubeApi, cluster: KubeRayCluster, job: Job) -> None:
    cluster.submit(job, {})
    status(api, "Running")
    del api.rayjobs[NAME]
    state = cluster.state(NAME)
    assert (state.phase, state.again) == (Phase.FAILED, False)
    assert state.reason == f"was ended by someone who deleted RayJob {NAME}; run again to go on there"


def test_the_log_comes_from_rays_dashboard_with_its_token(
    api: KubeApi, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-token")
    cluster = connected()
    cluster.submit(job, {})
    assert cluster.log(NAME) == ""
    status(api, "Running", jobId="job-1", rayClusterStatus={"head": {"serviceName": "head-svc"}})
    api.logs["/api/v1/namespaces/vlsi/services/head-svc:8265/proxy/api/jobs/job-1/logs"] = "step 1\nstep 2\n"
    assert cluster.log(NAME) == "step 1\nstep 2\n"
    assert api.headers["X-Ray-Authorization"] == "Bearer secret-token"


def test_stopping_deletes_and_may_come_late(api: KubeApi, cluster: KubeRayCluster, job: Job) -> None:
    cluster.submit(job, {})
    cluster.cancel(NAME)
    cluster.cancel(NAME)
    assert api.rayjobs == {}


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (failure(403, "Forbidden", "rayjobs is forbidden"), "does not let us create RayJobs in namespace vlsi: bind"),
        (failure(401, "Unauthorized", "Unauthorized"), "does not know who we are"),
        ((404, "404 page not found\n"), "knows no RayJobs (ray.io/v1): install the KubeRay operator"),
        (failure(404, "NotFound", 'namespaces "vlsi" not found'), 'namespace vlsi: namespaces "vlsi" not found'),
        (failure(422, "Invalid", "spec.entrypoint: wrong"), "refuses to create RayJobs in namespace vlsi: spec.entry"),
    ],
)
def test_a_refusal_is_one_sentence(
    api: KubeApi, cluster: KubeRayCluster, job: Job, refusal: tuple[int, Any], sentence: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(cluster, "_find", lambda _: None)
    api.refusal = refusal
    with pytest.raises(StageFailed, match=re.escape(sentence)):
        cluster.submit(job, {})


@pytest.mark.parametrize("code", [409, 429, 500, 503])
def test_trouble_of_the_server_passes(api: KubeApi, cluster: KubeRayCluster, job: Job, code: int) -> None:
    cluster.submit(job, {})
    api.refusal = failure(code, "Trouble", "try again")
    with pytest.raises(Unreachable):
        cluster.state(NAME)


def test_a_cluster_without_the_operator_is_a_mistake_of_the_configuration(api: KubeApi) -> None:
    api.refusal = (404, "404 page not found\n")
    with pytest.raises(ConfigError, match="executor=kuberay: the Kubernetes cluster knows no RayJobs"):
        connected()


def test_a_server_that_is_not_there_is_a_mistake_of_the_configuration(tmp_path: Path, api: KubeApi) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        kubeconfig.write_text(kubeconfig.read_text().replace(api.url, address))
        with pytest.raises(ConfigError, match="executor=kuberay: the Kubernetes API does not answer"):
            connected()


def test_an_unknown_context_is_a_mistake_of_the_configuration(api: KubeApi) -> None:
    with pytest.raises(ConfigError, match="set KUBECONFIG or executor.context"):
        connected(context="elsewhere")
