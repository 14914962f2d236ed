"""What `kubectl apply -k` would apply, checked against the schemas of Kubernetes and KubeRay, and against itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline.config import load
from pipeline.execution import KubeRay
from pipeline.executors import kuberay
from tests.k8s import kueue
from tests.k8s.network import Network
from tests.kube import KUBERNETES_VERSION, SCHEMAS, closed, pod_templates, problems_of_pod

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
MADE_BY_HAND = {"vlsi-ray", "vlsi-postgres", "vlsi-store"}
"""Secrets, which stand in no file."""

Object = dict[str, Any]
UNITS = {"m": 1e-3, "": 1.0, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def rendered(overlay: str) -> tuple[Object, ...]:
    command = [Path(sys.executable).parent / "kubectl", "kustomize", K8S / "overlays" / overlay]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def chain() -> Object:
    job = yaml.safe_load((K8S / "chain.yaml").read_text())
    job["metadata"]["name"] = job["metadata"].pop("generateName") + "x"
    return job


def of_kind(overlay: str, kind: str) -> dict[str, Object]:
    return {found["metadata"]["name"]: found for found in rendered(overlay) if found["kind"] == kind}


def templates(objects: tuple[Object, ...]) -> Iterator[Object]:
    """The pod templates, each with the volumes that a StatefulSet gives its pods."""
    for found in objects:
        if found["kind"] == "RayCluster":
            yield from pod_templates(found["spec"])
        elif "template" in found.get("spec", {}):
            template = found["spec"]["template"]
            claims = [claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", [])]
            given = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims]
            spec = template["spec"] | {"volumes": [*template["spec"]["volumes"], *given]}
            yield template | {"spec": spec}


def containers(objects: tuple[Object, ...]) -> Iterator[Object]:
    for template in templates(objects):
        yield from template["spec"]["containers"]


def everything(overlay: str) -> tuple[Object, ...]:
    return (*rendered(overlay), chain())


@cache
def validate(found: str) -> None:
    """Once for what several overlays share, because it takes long."""
    kubernetes_validate.validate(json.loads(found), KUBERNETES_VERSION, strict=True)


def amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\D*)", str(quantity)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def test_each_cluster_has_an_overlay() -> None:
    assert OVERLAYS == ["demo-cpu", "gpu", "kueue"]


@every_overlay
def test_no_field_is_unknown_to_kubernetes(overlay: str) -> None:
    for found in everything(overlay):
        if found["apiVersion"] == "ray.io/v1":
            continue
        if found["apiVersion"].startswith("kueue"):
            assert kueue.problems(found) == []
        else:
            validate(json.dumps(found))


@every_overlay
def test_no_field_is_unknown_to_kuberay(overlay: str) -> None:
    schema = json.loads((SCHEMAS / "raycluster.v1.schema.json").read_text())
    (cluster,) = of_kind(overlay, "RayCluster").values()
    errors = Draft202012Validator(closed(schema)).iter_errors(cluster)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@every_overlay
def test_every_pod_is_restricted_and_says_what_it_needs(overlay: str) -> None:
    found = list(templates(everything(overlay)))
    assert len(found) == 5
    assert [problem for template in found for problem in problems_of_pod(template["spec"])] == []


@every_overlay
def test_a_container_writes_to_its_mounts_only(overlay: str) -> None:
    assert all(c["securityContext"]["readOnlyRootFilesystem"] is True for c in containers(everything(overlay)))


@every_overlay
def test_ours_runs_as_user_1000_and_can_write_where_it_has_to(overlay: str) -> None:
    for template in templates(everything(overlay)):
        (container,) = template["spec"]["containers"]
        if container["image"].startswith("vlsi/"):
            assert template["spec"]["securityContext"]["runAsUser"] == 1000
            assert {"/data", "/home/vlsi", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_autoscaler_that_the_operator_adds_is_restricted_too() -> None:
    (cluster,) = of_kind("gpu", "RayCluster").values()
    options = cluster["spec"]["autoscalerOptions"]
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    assert options["securityContext"] == head["containers"][0]["securityContext"]
    assert {"requests", "limits"} == set(options["resources"])
    assert {mount["name"] for mount in options["volumeMounts"]} <= {volume["name"] for volume in head["volumes"]}


@every_overlay
def test_secrets_are_named_and_never_held(overlay: str) -> None:
    assert of_kind(overlay, "Secret") == {}
    names = set()
    for container in containers(everything(overlay)):
        for variable in container.get("env", []):
            if re.search("PASSWORD|SECRET|TOKEN|KEY", variable["name"]):
                names.add(variable["valueFrom"]["secretKeyRef"]["name"])
        names |= {source["secretRef"]["name"] for source in container.get("envFrom", [])}
    (cluster,) = of_kind(overlay, "RayCluster").values()
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    assert names | {cluster["spec"]["authOptions"]["secretName"]} == MADE_BY_HAND


@every_overlay
def test_what_is_named_is_there(overlay: str) -> None:
    for template in templates(everything(overlay)):
        account = template["spec"].get("serviceAccountName")
        assert account is None or account in of_kind(overlay, "ServiceAccount")
        for volume in template["spec"]["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim in (None, "data", *of_kind(overlay, "PersistentVolumeClaim"))
    for binding in of_kind(overlay, "RoleBinding").values():
        assert binding["roleRef"]["name"] in of_kind(overlay, "Role")
        assert {subject["name"] for subject in binding["subjects"]} <= set(of_kind(overlay, "ServiceAccount"))
    for service in of_kind(overlay, "Service").values():
        selected = [t for t in templates(rendered(overlay)) if _selects(service["spec"]["selector"], t)]
        assert len(selected) == 1


def _selects(selector: dict[str, str], template: Object) -> bool:
    return selector.items() <= template["metadata"].get("labels", {}).items()


@every_overlay
def test_every_image_has_a_version(overlay: str) -> None:
    assert all(re.fullmatch(r"[\w/]+:[\w.]+", c["image"]) for c in containers(everything(overlay)))


@every_overlay
def test_no_role_reads_secrets_or_allows_everything(overlay: str) -> None:
    for role in of_kind(overlay, "Role").values():
        for rule in role["rules"]:
            assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
            assert "secrets" not in rule["resources"]
    assert of_kind(overlay, "ClusterRole") == {}


def test_the_chain_may_do_what_its_executor_asks_for() -> None:
    source = Path(kuberay.__file__).read_text()
    asked = {(verb, what.lower()) for verb, what in re.findall(r'_ask\(\s*"(\w+) ([\w/]+)"', source)}
    rules = of_kind("gpu", "Role")["vlsi-chain"]["rules"]
    allowed = {(verb, what) for rule in rules for verb in rule["verbs"] for what in rule["resources"]}
    read = {("get" if verb == "read" else verb, what) for verb, what in asked}
    assert read == allowed


@pytest.mark.parametrize(("executor", "overlay"), [("kuberay-demo", "demo-cpu"), ("kuberay-gpu", "gpu")])
def test_the_executor_of_an_overlay_names_what_the_overlay_has(executor: str, overlay: str) -> None:
    settings = load([f"executor={executor}"]).main.executor
    assert isinstance(settings, KubeRay)
    (cluster,) = of_kind(overlay, "RayCluster").values()
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert list(of_kind(overlay, "Namespace")) == [settings.namespace]
    assert set(settings.claims) == set(of_kind(overlay, "PersistentVolumeClaim"))
    assert settings.service_account in of_kind(overlay, "ServiceAccount")
    assert {settings.auth_secret, settings.store_secret} <= MADE_BY_HAND
    assert settings.pod.node_selector == group["template"]["spec"].get("nodeSelector", {})
    assert list(settings.pod.tolerations) == group["template"]["spec"].get("tolerations", [])
    assert settings.pod.memory == group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]


@every_overlay
def test_the_quota_holds_the_largest_cluster(overlay: str) -> None:
    (quota,) = of_kind(overlay, "ResourceQuota").values()
    (cluster,) = of_kind(overlay, "RayCluster").values()
    counts = [1, *(group["maxReplicas"] for group in cluster["spec"]["workerGroupSpecs"])]
    for resource in ("cpu", "memory", "nvidia.com/gpu"):
        asked = sum(
            count * amount(template["spec"]["containers"][0]["resources"]["requests"].get(resource, "0"))
            for count, template in zip(counts, pod_templates(cluster["spec"]), strict=True)
        )
        assert asked <= amount(quota["spec"]["hard"][f"requests.{resource}"])


@every_overlay
def test_pods_reach_what_they_need_and_nothing_else(overlay: str) -> None:
    network = Network(of_kind(overlay, "NetworkPolicy").values())
    ray = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker", "app.kubernetes.io/name": "vlsi"}
    chain_pod, mlflow, postgres = (
        {"app.kubernetes.io/name": name} for name in ("vlsi-chain", "vlsi-mlflow", "vlsi-postgres")
    )
    assert network.allows(ray, ray, 6379)
    assert network.allows(ray, mlflow, 5000)
    assert network.allows(chain_pod, mlflow, 5000)
    assert network.allows(mlflow, postgres, 5432)
    assert network.lets_out(ray, 443)
    assert network.lets_out(chain_pod, 6443)
    assert not network.lets_out(postgres, 443)
    assert not network.lets_out(ray, 22)
    assert not network.allows(ray, postgres, 5432)
    assert not network.allows(chain_pod, postgres, 5432)
    assert not network.allows(chain_pod, ray, 6379)
    assert not network.allows(mlflow, ray, 6379)


def test_gpus_come_with_their_nodes_tolerations_and_shared_memory() -> None:
    (cluster,) = of_kind("gpu", "RayCluster").values()
    (group,) = cluster["spec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 8)
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pod["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shared-mem"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}


def test_a_queue_leads_to_flavours_that_are_there_and_its_cluster_does_not_grow() -> None:
    (cluster,) = of_kind("kueue", "RayCluster").values()
    queue = of_kind("kueue", "LocalQueue")[cluster["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]]
    groups = of_kind("kueue", "ClusterQueue")[queue["spec"]["clusterQueue"]]["spec"]["resourceGroups"]
    named = {flavour["name"] for group in groups for flavour in group["flavors"]}
    assert named == set(of_kind("kueue", "ResourceFlavor"))
    assert queue["metadata"]["namespace"] == "vlsi"
    assert cluster["spec"]["enableInTreeAutoscaling"] is False
