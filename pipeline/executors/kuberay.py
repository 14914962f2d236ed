"""A Kubernetes cluster with the KubeRay operator: each stage is one RayJob, `vlsi-<stage>-<fingerprint>`.

The RayJob is asked how it is, again and again, rather than watched: a question that is lost is asked anew,
and a watch that is lost in silence looks like a stage that runs for ever.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.config import ConfigError
from pipeline.execution import KubeRay
from pipeline.executors import StageFailed
from pipeline.executors.cluster import RUNNING, Phase, State, Unreachable
from pipeline.executors.diagnosis import (
    Trouble,
    end_of_rayjob,
    event_troubles,
    is_missing,
    killed_for_memory,
    pod_troubles,
    translated,
)
from pipeline.executors.rayjob import make_rayjob, name_of
from stages.contract import Job

T = TypeVar("T")
RAYJOBS: dict[str, Any] = {"group": "ray.io", "version": "v1", "plural": "rayjobs"}
ANSWER_SECONDS = 30
"""Within which the API server has to answer one request."""
ENDED = ("Complete", "Failed")
DASHBOARD_PORT = 8265


class KubeRayCluster:
    """RayJobs through the Kubernetes API."""

    def __init__(self, settings: KubeRay) -> None:
        """The client is imported when the cluster is connected."""
        self._settings = settings
        self._objects: Any = None
        self._core: Any = None
        self._since: dict[str, float] = {}
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
            self._ask("list RayJobs", self._objects.list_namespaced_custom_object, **RAYJOBS, limit=1)
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
        self._ask("create RayJobs", self._objects.create_namespaced_custom_object, **RAYJOBS, body=manifest)
        return name

    def state(self, name: str) -> State:
        """What the operator says of a RayJob, else what keeps its pods from starting."""
        found = self._find(name)
        if found is None or found["metadata"].get("deletionTimestamp"):
            return State(Phase.FAILED, f"was ended by someone who deleted RayJob {name}; run again to go on there")
        pods = self._pods(found)
        if killed := killed_for_memory(pods):
            # Pods are gone soon after a failure that this explains.
            self._killed[name] = killed
        if _has_ended(found):
            return end_of_rayjob(found, self._killed.get(name))
        trouble = None if _runs(found) else self._lasting_trouble(name, pods)
        if trouble is None:
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
        self._ask("delete RayJobs", self._objects.delete_namespaced_custom_object, **RAYJOBS, name=name, missing=True)

    def _find(self, name: str) -> dict[str, Any] | None:
        return self._ask("get RayJobs", self._objects.get_namespaced_custom_object, **RAYJOBS, name=name, missing=True)

    def _pods(self, found: dict[str, Any]) -> list[Any]:
        cluster = found.get("status", {}).get("rayClusterName")
        if not cluster:
            return []
        return self._ask("list pods", self._core.list_namespaced_pod, label_selector=f"ray.io/cluster={cluster}").items

    def _lasting_trouble(self, name: str, pods: list[Any]) -> Trouble | None:
        """What has kept a stage from starting for longer than one waits for it."""
        patience = self._settings.patience_seconds
        troubles = pod_troubles(pods, patience) if pods else event_troubles(self._warnings(), name, patience)
        if (trouble := next(troubles, None)) is None:
            self._since.pop(name, None)
            return None
        since = self._since.setdefault(name, time.monotonic())
        return trouble if time.monotonic() - since > trouble.patience else None

    def _warnings(self) -> list[Any]:
        return self._ask("list events", self._core.list_namespaced_event, field_selector="type=Warning").items

    def _ask(self, what: str, request: Callable[..., T], *, missing: bool = False, **arguments: Any) -> Any:
        """The answer to a request, with errors as `Cluster` knows them; None for what may be missing and is."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        namespace = self._settings.namespace
        try:
            return request(namespace=namespace, _request_timeout=ANSWER_SECONDS, **arguments)
        except HTTPError as error:
            raise Unreachable(f"the Kubernetes API does not answer ({type(error).__name__})") from error
        except ApiException as error:
            if missing and is_missing(error):
                return None
            raise translated(error, what, namespace) from error


def _has_ended(found: dict[str, Any]) -> bool:
    return found.get("status", {}).get("jobDeploymentStatus") in ENDED


def _runs(found: dict[str, Any]) -> bool:
    """Whether it had the machines that it needs at least; more of them may still be sought."""
    return found.get("status", {}).get("jobDeploymentStatus") == "Running"


def _configuration(context: str | None) -> Any:
    """Of the client, whose own repetitions are off: whoever asks repeats."""
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
    # Of a service's proxy: the path within the service.
    configuration.safe_chars_for_path_param = "/:"
    return configuration
