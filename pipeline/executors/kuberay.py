"""A Kubernetes cluster with the KubeRay operator: each stage is one RayJob, `vlsi-<stage>-<fingerprint>`.

The RayJob is asked how it is, again and again, rather than watched: a question that is lost is asked anew,
and a watch that is lost in silence looks like a stage that runs for ever.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from pipeline.config import ConfigError
from pipeline.execution import KubeRay
from pipeline.executors import StageFailed
from pipeline.executors.cluster import RUNNING, SUCCEEDED, Phase, State, Unreachable
from pipeline.executors.rayjob import make_rayjob, name_of
from stages.contract import Job

T = TypeVar("T")
RAYJOBS = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
ANSWER_SECONDS = 30
"""Within which the API server has to answer one request."""
PULL_PATIENCE_SECONDS = 120
"""For an image that cannot be had: a registry may hiccup, a misspelt name stays one."""
ENDED = ("Complete", "Failed")
DASHBOARD_PORT = 8265
_PULLING = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")


class Trouble(NamedTuple):
    """Why a pod does not start.

    Attributes:
        reason: to follow the stage's name in a sentence.
        patience: seconds that it may last.
    """

    reason: str
    patience: float


class KubeRayCluster:
    """RayJobs through the Kubernetes API."""

    def __init__(self, settings: KubeRay) -> None:
        """The client is imported when the cluster is connected."""
        self._settings = settings
        self._objects: Any = None
        self._core: Any = None
        self._since: dict[str, tuple[Trouble, float]] = {}
        self._killed: dict[str, str] = {}

    def connect(self) -> None:
        """Find the API server, from the kubeconfig or from within a pod, and see that it knows RayJobs."""
        try:
            from kubernetes import client
        except ImportError as error:
            raise ConfigError(
                "executor=kuberay needs the package kubernetes; pip install 'vlsi-distill[k8s]'"
            ) from error
        api = client.ApiClient(_configuration(self._settings.context))
        if token := os.environ.get("RAY_AUTH_TOKEN"):
            # For Ray's dashboard; the API server reads Authorization and passes this one on.
            api.set_default_header("X-Ray-Authorization", f"Bearer {token}")
        self._objects, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        try:
            self._ask("list RayJobs", self._objects.list_namespaced_custom_object, limit=1)
        except (Unreachable, StageFailed) as error:
            raise ConfigError(f"executor=kuberay: {error}") from error

    def submit(self, job: Job, environment: dict[str, str]) -> str:
        """Create the stage's RayJob unless it runs; one that has ended makes room first."""
        name = name_of(job)
        found = self._find(name)
        if found is not None and not _has_ended(found) and not found["metadata"].get("deletionTimestamp"):
            return name
        if found is not None:
            self.cancel(name)
            if self._find(name) is not None:
                raise Unreachable(f"the former RayJob {name} is still being deleted")
        self._killed.pop(name, None)
        self._since.pop(name, None)
        manifest = make_rayjob(job, self._settings, environment)
        self._ask("create RayJobs", self._objects.create_namespaced_custom_object, body=manifest)
        return name

    def state(self, name: str) -> State:
        """What the operator says of a RayJob, else what keeps its pods from starting."""
        found = self._find(name)
        if found is None or found["metadata"].get("deletionTimestamp"):
            return State(Phase.FAILED, f"was ended by someone who deleted RayJob {name}; run again to go on there")
        pods = self._pods(found)
        self._remember_killed(name, pods)
        if _has_ended(found):
            return self._ended(name, found)
        if (trouble := self._lasting_trouble(name, found, pods)) is None:
            return RUNNING
        self.cancel(name)
        return State(Phase.FAILED, trouble.reason)

    def log(self, name: str) -> str:
        """What the stage has printed, from the dashboard of its Ray cluster through the API server."""
        status = (self._find(name) or {}).get("status", {})
        service = status.get("rayClusterStatus", {}).get("head", {}).get("serviceName")
        if not service or not status.get("jobId"):
            return ""
        answer = self._ask(
            "read services/proxy",
            self._core.connect_get_namespaced_service_proxy_with_path,
            name=f"{service}:{DASHBOARD_PORT}",
            path=f"api/jobs/{status['jobId']}/logs",
            _preload_content=False,
        )
        return json.loads(answer.data).get("logs", "")

    def cancel(self, name: str) -> None:
        """Delete the RayJob, and with it its pods, which get SIGTERM."""
        self._ask("delete RayJobs", self._objects.delete_namespaced_custom_object, name=name, missing=True)

    def _find(self, name: str) -> dict[str, Any] | None:
        return self._ask("get RayJobs", self._objects.get_namespaced_custom_object, name=name, missing=True)

    def _pods(self, found: dict[str, Any]) -> list[Any]:
        cluster = found.get("status", {}).get("rayClusterName")
        if not cluster:
            return []
        return self._ask("list pods", self._core.list_namespaced_pod, label_selector=f"ray.io/cluster={cluster}").items

    def _remember_killed(self, name: str, pods: list[Any]) -> None:
        """Pods are gone soon after a failure; who was killed for memory explains it."""
        for pod in pods:
            for container in pod.status.container_statuses or []:
                for state in (container.state, container.last_state):
                    if state and state.terminated and state.terminated.reason == "OOMKilled":
                        limit = pod.spec.containers[0].resources.limits["memory"]
                        self._killed[name] = f"{pod.metadata.name} was killed for memory, of which it had {limit}"

    def _lasting_trouble(self, name: str, found: dict[str, Any], pods: list[Any]) -> Trouble | None:
        """What has kept the stage from starting for longer than one waits for it."""
        trouble = next(self._troubles(name, found, pods), None)
        if trouble is None:
            self._since.pop(name, None)
            return None
        before, since = self._since.get(name, (trouble, time.monotonic()))
        if before.patience != trouble.patience:
            since = time.monotonic()
        self._since[name] = (trouble, since)
        return trouble if time.monotonic() - since > trouble.patience else None

    def _troubles(self, name: str, found: dict[str, Any], pods: list[Any]) -> Iterator[Trouble]:
        patience = self._settings.patience_seconds
        for pod in pods:
            yield from _pod_troubles(pod, patience, found["spec"])
        if not pods:
            events = self._ask("list events", self._core.list_namespaced_event, field_selector="type=Warning").items
            for event in sorted(events, key=lambda event: str(event.last_timestamp), reverse=True):
                if (event.involved_object.name or "").startswith(name):
                    yield Trouble(f"has no pods: {event.message}", patience)

    def _ended(self, name: str, found: dict[str, Any]) -> State:
        status = found["status"]
        match status.get("jobStatus"), status.get("reason"):
            case "SUCCEEDED", _:
                return SUCCEEDED
            case "STOPPED", _:
                return State(Phase.STOPPED, "was stopped on the cluster")
            case _, "DeadlineExceeded":
                seconds = found["spec"].get("activeDeadlineSeconds")
                return State(
                    Phase.FAILED, f"took longer than the {seconds} seconds of executor.pods.*.deadline_seconds"
                )
        if name in self._killed:
            return State(Phase.FAILED, f"failed: {self._killed[name]}; raise executor.pods.*.memory")
        retries = found["spec"].get("backoffLimit", 0)
        message = (status.get("message") or status.get("reason") or "the operator does not say why").splitlines()[0]
        return State(Phase.FAILED, f"failed, also when it was started again ({retries} times): {message}")

    def _ask(self, what: str, request: Callable[..., T], *, missing: bool = False, **arguments: Any) -> Any:
        """The answer to a request, with errors as `Cluster` knows them; None for what may be missing and is."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        if "custom_object" in request.__name__:
            arguments |= RAYJOBS
        namespace = self._settings.namespace
        try:
            return request(namespace=namespace, _request_timeout=ANSWER_SECONDS, **arguments)
        except HTTPError as error:
            raise Unreachable(f"the Kubernetes API does not answer ({type(error).__name__})") from error
        except ApiException as error:
            if error.status == 404 and missing and _is_of_kubernetes(error):
                return None
            raise _translated(error, what, namespace) from error


def _has_ended(found: dict[str, Any]) -> bool:
    return found.get("status", {}).get("jobDeploymentStatus") in ENDED


def _pod_troubles(pod: Any, patience: float, spec: dict[str, Any]) -> Iterator[Trouble]:
    """Why a pod does not start, as Kubernetes sees it now."""
    for container in pod.status.container_statuses or []:
        waiting = container.state and container.state.waiting
        if waiting and waiting.reason in _PULLING:
            yield Trouble(
                f"cannot have its image {container.image} ({waiting.message or waiting.reason}); see executor.registry, "
                "executor.tag and executor.pull_secret",
                PULL_PATIENCE_SECONDS,
            )
        elif waiting and waiting.reason in ("CreateContainerConfigError", "CreateContainerError"):
            yield Trouble(f"cannot start its container: {waiting.message or waiting.reason}", patience)
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            yield Trouble(
                f"found no machine for {pod.metadata.name} in {patience:g} seconds (executor.patience_seconds): "
                f"{condition.message}",
                patience,
            )


def _is_of_kubernetes(error: Any) -> bool:
    """Whether an error speaks of an object, rather than of a path that the server does not know."""
    return '"kind":"Status"' in (error.body or "").replace(" ", "")


def _translated(error: Any, what: str, namespace: str) -> Exception:
    """An error of the Kubernetes API as one sentence."""
    if error.status >= 500 or error.status == 429:
        return Unreachable(f"the Kubernetes API has trouble ({error.status} {error.reason})")
    if error.status == 409:
        return Unreachable("someone else changes the same RayJob")
    if error.status == 401:
        return StageFailed("Kubernetes does not know who we are: log in again, or see KUBECONFIG")
    if error.status == 403:
        return StageFailed(f"Kubernetes does not let us {what} in {namespace}: bind the Role of k8s/base to us")
    if error.status == 404 and not _is_of_kubernetes(error):
        return StageFailed("the cluster knows no RayJobs (ray.io/v1): install the KubeRay operator")
    message = json.loads(error.body)["message"] if _is_of_kubernetes(error) else error.reason
    return StageFailed(f"Kubernetes refuses to {what} in {namespace}: {message}")


def _configuration(context: str | None) -> Any:
    """Of the client; its own repetitions are off, since whoever asks repeats."""
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(configuration)
        else:
            config.load_kube_config(context=context, client_configuration=configuration)
    except config.ConfigException as error:
        raise ConfigError(f"executor=kuberay: {error}; set KUBECONFIG or executor.context") from error
    configuration.retries = False
    return configuration
