"""What is wrong with a manifest: unknown fields, wrong types, pods that the standard `restricted` keeps out."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parent / "kuberay-crds"
KUBERNETES_VERSION = "1.37"
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""That `restricted` allows."""
SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}


def problems_of_rayjob(rayjob: dict[str, Any]) -> list[str]:
    """Everything that KubeRay's schema, Kubernetes' own and `restricted` have against a RayJob."""
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    found = [f"{error.json_path}: {error.message}" for error in _validator("rayjob").iter_errors(rayjob)]
    if rayjob["spec"].get("submissionMode") not in SUBMISSION_MODES:
        found.append(f"submissionMode: {rayjob['spec'].get('submissionMode')}")
    if len(rayjob["metadata"]["name"]) > 47:
        found.append("name: the operator takes at most 47 characters")
    for template in pod_templates(rayjob["spec"]["rayClusterSpec"]):
        found += problems_of_pod(template["spec"])
    return found


def pod_templates(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of the head and of every group of workers."""
    yield cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs", []):
        yield group["template"]


def problems_of_pod(spec: dict[str, Any]) -> list[str]:
    """Everything that Kubernetes' schema and `restricted` have against a pod."""
    spec = copy.deepcopy(spec)
    for container in spec["containers"]:
        for variable in container.get("env", []):
            # Texts of any content, by which alone most pods of an experiment differ.
            variable.update({"value": ""} if "value" in variable else {})
    return list(_problems(json.dumps(spec)))


@cache
def _problems(text: str) -> tuple[str, ...]:
    spec = json.loads(text)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    try:
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (str(error),)
    return (*_unrestricted(spec), *_inconsistent(spec))


def _unrestricted(spec: dict[str, Any]) -> Iterator[str]:
    """Breaches of the pod security standard `restricted`."""
    pod = spec.get("securityContext", {})
    for forbidden in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(forbidden):
            yield forbidden
    for volume in spec.get("volumes", []):
        if extra := set(volume) - VOLUMES - {"name"}:
            yield f"volume {volume['name']}: {extra}"
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        own = container.get("securityContext", {})
        wanted = {
            "runAsNonRoot": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True,
            "runAsUser": own.get("runAsUser", pod.get("runAsUser")) != 0,
            "seccompProfile": own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") == "RuntimeDefault",
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": own.get("capabilities", {}) == {"drop": ["ALL"]},
            "privileged": not own.get("privileged"),
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
        }
        yield from (f"{container['name']}: {name}" for name, holds in wanted.items() if not holds)


def _inconsistent(spec: dict[str, Any]) -> Iterator[str]:
    """What a schema cannot see: mounts without volumes, containers without requests and limits."""
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        mounts = container.get("volumeMounts", [])
        yield from (f"no volume {mount['name']}" for mount in mounts if mount["name"] not in volumes)
        if len({mount["mountPath"] for mount in mounts}) < len(mounts):
            yield f"{container['name']}: two mounts at one path"
        for kind in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(container.get("resources", {}).get(kind, {})):
                yield f"{container['name']}: {kind}"


@cache
def _validator(kind: str) -> Draft202012Validator:
    schema = json.loads((SCHEMAS / f"{kind}.v1.schema.json").read_text())
    return Draft202012Validator(closed(schema))


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema, in which an object has the properties it names and no others, save the root's metadata."""
    schema = copy.deepcopy(schema)
    _close(schema)
    schema["properties"]["metadata"].pop("additionalProperties", None)
    return schema


def _close(node: dict[str, Any]) -> None:
    if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        node.setdefault("additionalProperties", False)
    if node.get("nullable"):
        node["type"] = [node["type"], "null"]
    inner = [*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")]
    for child in inner:
        if isinstance(child, dict):
            _close(child)
