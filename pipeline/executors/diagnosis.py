"""What Kubernetes says of a stage, as one sentence each: why it does not start, how it ended, what is refused.

The sentences follow the name of a stage, as in "capture cannot have its image …".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pipeline.executors import StageFailed
from pipeline.executors.cluster import SUCCEEDED, Phase, State, Unreachable

PULL_PATIENCE_SECONDS = 120
"""For an image that cannot be had: a registry may hiccup, a misspelt name stays one."""
_PULLING = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_CREATING = ("CreateContainerConfigError", "CreateContainerError")


class Trouble(NamedTuple):
    """Why a stage does not start.

    Attributes:
        reason: the sentence.
        patience: seconds that it may last.
    """

    reason: str
    patience: float


def pod_troubles(pods: Iterable[Any], patience: float) -> Iterator[Trouble]:
    """Why pods do not start, as Kubernetes sees it now; `patience` seconds are for what may pass."""
    for pod in pods:
        for container in pod.status.container_statuses or []:
            waiting = container.state and container.state.waiting
            if waiting and waiting.reason in _PULLING:
                yield Trouble(
                    f"cannot have its image {container.image} ({waiting.message or waiting.reason}); "
                    "see executor.registry, executor.tag and executor.pull_secret",
                    PULL_PATIENCE_SECONDS,
                )
            elif waiting and waiting.reason in _CREATING:
                yield Trouble(f"cannot start {pod.metadata.name}: {waiting.message or waiting.reason}", patience)
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled" and condition.status == "False":
                yield Trouble(
                    f"found no machine for {pod.metadata.name} in {patience:g} seconds (executor.patience_seconds): "
                    f"{condition.message}",
                    patience,
                )


def event_troubles(events: Iterable[Any], name: str, patience: float) -> Iterator[Trouble]:
    """Why a RayJob has no pods at all, the newest warning first."""
    for event in sorted(events, key=lambda event: str(event.last_timestamp), reverse=True):
        if (event.involved_object.name or "").startswith(name):
            yield Trouble(f"got no pods in {patience:g} seconds (executor.patience_seconds): {event.message}", patience)


def killed_for_memory(pods: Iterable[Any]) -> str | None:
    """The pod that was killed for memory, and how much it had."""
    for pod in pods:
        for container in pod.status.container_statuses or []:
            for state in (container.state, container.last_state):
                if state and state.terminated and state.terminated.reason == "OOMKilled":
                    limits = {c.name: c.resources.limits for c in pod.spec.containers}[container.name]
                    return f"{pod.metadata.name} was killed for using more than its {limits['memory']} of memory"
    return None


def end_of_rayjob(rayjob: dict[str, Any], killed: str | None) -> State:
    """How a RayJob has ended.

    Args:
        rayjob: as the API gives it.
        killed: what `killed_for_memory` saw while it ran.
    """
    status, spec = rayjob["status"], rayjob["spec"]
    pods = f"executor.pods.{rayjob['metadata']['labels']['app.kubernetes.io/component']}"
    match status.get("jobStatus"), status.get("reason"):
        case "SUCCEEDED", _:
            return SUCCEEDED
        case "STOPPED", _:
            return State(Phase.STOPPED, "was stopped on the cluster")
        case _, "DeadlineExceeded":
            return State(
                Phase.FAILED, f"took longer than {spec['activeDeadlineSeconds']} seconds; see {pods}.deadline_seconds"
            )
    if killed is not None:
        return State(Phase.FAILED, f"failed: {killed}; raise {pods}.memory")
    tries = spec.get("backoffLimit", 0) + 1
    message = (status.get("message") or status.get("reason") or "the operator does not say why").splitlines()[0]
    return State(Phase.FAILED, f"failed ({'once' if tries == 1 else f'{tries} times'}): {message}")


def is_missing(error: Any) -> bool:
    """Whether a refusal is about an object that is not there, rather than a path that the server does not know."""
    return error.status == 404 and _message(error) is not None


def translated(error: Any, what: str, namespace: str) -> Exception:
    """A refusal of the Kubernetes API, as `Cluster` knows it.

    Args:
        error: the client's ApiException.
        what: was asked for, to follow "does not let us".
        namespace: in which.
    """
    if error.status >= 500 or error.status == 429:
        return Unreachable(f"the Kubernetes API has trouble ({error.status} {error.reason})")
    if error.status == 409:
        return Unreachable("the RayJob is changed by someone else at the same time")
    if error.status == 401:
        return StageFailed("Kubernetes does not know who we are: log in again, or see KUBECONFIG")
    if error.status == 403:
        return StageFailed(f"Kubernetes does not let us {what} in namespace {namespace}: bind the Role of k8s/base")
    if error.status == 404 and _message(error) is None:
        return StageFailed("the Kubernetes cluster knows no RayJobs (ray.io/v1): install the KubeRay operator")
    return StageFailed(f"Kubernetes refuses to {what} in namespace {namespace}: {_message(error) or error.reason}")


def _message(error: Any) -> str | None:
    """What the API says in its own words; a path that it does not know is answered without any."""
    try:
        return json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return None
