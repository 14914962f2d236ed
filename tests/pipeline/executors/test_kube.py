"""RayJobs on a real Kubernetes API server; a stand-in for the operator only writes their status.

Opt-in, `make test-kube`: the server is built first, by the scripts in the folder that KUBE_APISERVER names.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import ConfigError
from pipeline.execution import KubeRay
from pipeline.executors import StageFailed, StageStopped, kuberay
from pipeline.executors.cluster import ClusterExecutor
from pipeline.executors.kuberay import RAYJOBS, KubeRayCluster
from pipeline.executors.rayjob import make_rayjob
from stages.contract import Job, Resources
from tests.kube import pod_templates

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1200)]
TOOLS = Path(os.environ.get("KUBE_APISERVER", Path(__file__).parents[4] / "shared" / "tools" / "kube-apiserver"))
NAMESPACE = "vlsi"
NAME = "vlsi-capture-0123456789abcdef"
PATIENCE_SECONDS = 60
STEP_SECONDS = 0.1
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


class Server:
    """The API server: its clients, and what can happen to it."""

    def __init__(self, kubeconfig: Path) -> None:
        from kubernetes import client, config

        self.kubeconfig = kubeconfig
        self._state = kubeconfig.parent
        api = config.new_client_from_config(str(kubeconfig))
        self.objects, self.core = client.CustomObjectsApi(api), client.CoreV1Api(api)

    @property
    def _pid_file(self) -> Path:
        return self._state / "kube-apiserver.pid"

    def signal(self, number: int) -> None:
        os.kill(int(self._pid_file.read_text()), number)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Killed, then started again as it was, with what etcd has kept."""
        process = Path(f"/proc/{int(self._pid_file.read_text())}")
        binary = str((process / "exe").resolve())
        _, *arguments = (process / "cmdline").read_text().rstrip("\0").split("\0")
        self.signal(signal.SIGKILL)
        yield
        with (self._state / "kube-apiserver.log").open("ab") as log:
            started = subprocess.Popen([binary, *arguments], stdout=log, stderr=log, start_new_session=True)
        self._pid_file.write_text(f"{started.pid}\n")

    def rayjobs(self) -> list[dict[str, Any]]:
        return self.objects.list_namespaced_custom_object(**RAYJOBS, namespace=NAMESPACE)["items"]

    def delete(self) -> None:
        self.objects.delete_namespaced_custom_object(**RAYJOBS, namespace=NAMESPACE, name=NAME)

    def clear(self) -> None:
        self.objects.delete_collection_namespaced_custom_object(**RAYJOBS, namespace=NAMESPACE)


class Operator(threading.Thread):
    """Gives every new RayJob the statuses of a script, one after the other; an exception of a request passes."""

    def __init__(self, server: Server, script: list[dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self._server, self._script = server, script
        self._ended = threading.Event()
        self.seen: dict[str, int] = {}

    def __enter__(self) -> Operator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(PATIENCE_SECONDS)

    def run(self) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        while not self._ended.wait(STEP_SECONDS):
            try:
                for rayjob in self._server.rayjobs():
                    self._move_on(rayjob)
            except (ApiException, HTTPError):
                continue

    def _move_on(self, rayjob: dict[str, Any]) -> None:
        uid = rayjob["metadata"]["uid"]
        step = self.seen.get(uid, 0)
        if step < len(self._script):
            self._server.objects.patch_namespaced_custom_object_status(
                **RAYJOBS,
                namespace=NAMESPACE,
                name=NAME,
                body=[{"op": "add", "path": "/status", "value": self._script[step]}],
                _content_type="application/json-patch+json",
            )
        self.seen[uid] = step + 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("kube") / "state"
    environment = os.environ | {"KUBE_APISERVER_STATE": str(state)}

    def call(*command: str) -> str:
        return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    kubeconfig = call(str(TOOLS / "run.sh"))
    try:
        call(str(TOOLS / "install-kuberay-crds.sh"), kubeconfig)
        server = Server(Path(kubeconfig))
        server.core.create_namespace({"metadata": {"name": NAMESPACE}})
        yield server
    finally:
        call(str(TOOLS / "run.sh"), "stop")


@pytest.fixture(autouse=True)
def kubeconfig(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(server.kubeconfig))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    yield
    server.clear()


class Following(threading.Thread):
    """An executor that carries out a job, in a thread of its own."""

    def __init__(self, job: Job, log: Path, **settings: Any) -> None:
        super().__init__(daemon=True)
        self._job, self._log = job, log
        self._stack = ExitStack()
        kube = KubeRay(**settings)
        self._executor = ClusterExecutor(KubeRayCluster(kube), kube, poll_seconds=STEP_SECONDS)
        self.error: StageFailed | None = None

    def __enter__(self) -> Following:
        self._stack.enter_context(self._executor)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.join(PATIENCE_SECONDS)

    def run(self) -> None:
        try:
            self._executor.run(self._job, self._log, {})
        except StageFailed as error:
            self.error = error

    def ended(self) -> StageFailed | None:
        """How, once it has."""
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive()
        return self.error


Follow = Callable[..., Following]


@pytest.fixture
def follow(job: Job, tmp_path: Path) -> Follow:
    return lambda **settings: Following(job, tmp_path / "log", **settings)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(STEP_SECONDS)


def pruned(sent: Any, kept: Any, place: str = "spec") -> list[str]:
    """Where a server kept other values than it was sent; defaults that it added are no difference."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        return [found for key, value in sent.items() for found in pruned(value, kept.get(key), f"{place}.{key}")]
    if isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        return [found for i, pair in enumerate(zip(sent, kept, strict=True)) for found in pruned(*pair, f"{place}.{i}")]
    return [] if sent == kept else [place]


@pytest.mark.parametrize("workers", [0, 2, (1, 8)])
def test_the_server_takes_the_rayjob_and_its_pods_as_they_are(server: Server, job: Job, workers: Any) -> None:
    resources = Resources(workers=workers, gpus_per_worker=1)
    settings = KubeRay(
        claims={"vlsi-data": "/data"}, queue="gpus", pod={"deadline_seconds": 60, "priority_class": None}
    )
    rayjob = make_rayjob(job.model_copy(update={"resources": resources}), settings)
    created = server.objects.create_namespaced_custom_object(**RAYJOBS, namespace=NAMESPACE, body=rayjob)
    assert pruned(rayjob["spec"], created["spec"]) == []
    for template in pod_templates(rayjob["spec"]["rayClusterSpec"]):
        pod = {"metadata": {"name": "pod"}, "spec": template["spec"]}
        server.core.create_namespaced_pod(NAMESPACE, pod, dry_run="All")


def test_success(server: Server, follow: Follow) -> None:
    script = [{"jobDeploymentStatus": "Initializing"}, RUNNING, SUCCEEDED]
    with Operator(server, script), follow() as following:
        assert following.ended() is None


def test_a_failure_that_the_operator_repeats(server: Server, follow: Follow) -> None:
    script = [RUNNING, {"jobDeploymentStatus": "Retrying", "failed": 1}, RUNNING, SUCCEEDED]
    with Operator(server, script), follow(retries=1) as following:
        assert following.ended() is None
    assert server.rayjobs()[0]["spec"]["backoffLimit"] == 1


def test_a_failure_for_good_and_another_try(server: Server, follow: Follow) -> None:
    failed = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 1", "reason": "AppFailed"}
    with Operator(server, [RUNNING, failed]), follow(retries=2) as following:
        assert "capture failed (3 times): exit code 1" in str(following.ended())
    with Operator(server, [RUNNING, SUCCEEDED]), follow() as following:
        assert following.ended() is None


def test_a_deadline(server: Server, follow: Follow) -> None:
    script = [RUNNING, {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}]
    with Operator(server, script), follow(pod={"deadline_seconds": 5}) as following:
        assert "capture took longer than 5 seconds" in str(following.ended())


def test_deletion_by_someone_else(server: Server, follow: Follow) -> None:
    with Operator(server, [RUNNING]) as operator, follow() as following:
        wait_until(lambda: bool(operator.seen))
        server.delete()
        assert f"was ended by someone who deleted RayJob {NAME}" in str(following.ended())


def test_a_restart_of_the_server(server: Server, follow: Follow) -> None:
    with follow() as following:
        wait_until(lambda: bool(server.rayjobs()))
        with server.down():
            time.sleep(10 * STEP_SECONDS)
        with Operator(server, [RUNNING, SUCCEEDED]):
            assert following.ended() is None


def test_answers_that_are_lost(server: Server, follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kuberay, "ANSWER_SECONDS", 0.5)
    with follow() as following:
        wait_until(lambda: bool(server.rayjobs()))
        server.signal(signal.SIGSTOP)
        time.sleep(1.0)
        server.signal(signal.SIGCONT)
        monkeypatch.setattr(kuberay, "ANSWER_SECONDS", 30)
        with Operator(server, [RUNNING, SUCCEEDED]):
            assert following.ended() is None


def test_a_run_that_was_left_is_found_again(server: Server, follow: Follow) -> None:
    with Operator(server, [RUNNING]) as operator:
        with follow(detach=True) as following:
            wait_until(lambda: bool(operator.seen))
        assert isinstance(following.ended(), StageStopped)
        (left,) = server.rayjobs()
    with follow() as following, Operator(server, [RUNNING, SUCCEEDED]):
        assert following.ended() is None
    assert [rayjob["metadata"]["uid"] for rayjob in server.rayjobs()] == [left["metadata"]["uid"]]


def test_an_interrupt_deletes(server: Server, follow: Follow) -> None:
    with Operator(server, [RUNNING]) as operator, follow() as following:
        wait_until(lambda: bool(operator.seen))
    assert isinstance(following.ended(), StageStopped)
    assert server.rayjobs() == []


def test_no_rights(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(server.kubeconfig.read_text())
    del config["users"][0]["user"]["token"]
    (tmp_path / "anonymous").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "anonymous"))
    with pytest.raises(ConfigError, match="Kubernetes does not let us list RayJobs in namespace vlsi"):
        KubeRayCluster(KubeRay()).connect()


def test_no_namespace(job: Job, tmp_path: Path) -> None:
    settings = KubeRay(namespace="nowhere")
    with (
        ClusterExecutor(KubeRayCluster(settings), settings) as executor,
        pytest.raises(StageFailed, match='namespaces "nowhere" not found'),
    ):
        executor.run(job, tmp_path / "log", {})
