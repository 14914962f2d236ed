"""RayJobs of every experiment, against the schemas of KubeRay and Kubernetes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import conf_folder, load
from pipeline.execution import KubeRay
from pipeline.executors.rayjob import make_rayjob
from pipeline.graph import Graph, build_graph, prepare_graph
from pipeline.manifests import WAVE, kustomization, rayjobs, to_yaml
from stages.contract import Job, Resources
from tests.kube import pod_templates, problems_of_rayjob

EXPERIMENTS = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))
OTHER_EXECUTORS = sorted(path.stem for path in (conf_folder() / "executor").glob("kuberay-*.yaml"))
Vlsi = Callable[..., tuple[int, str]]


class NoDigests:
    """Takes models and data for given."""

    def checkpoint(self, path: str) -> str:
        return path

    def samples(self, place: str, *, pictures: bool) -> str:
        return place

    def save(self) -> None:
        pass


@cache
def graph_of(experiment: str = "digits", executor: str = "kuberay") -> tuple[Graph, KubeRay]:
    configuration = load([f"executor={executor}", f"experiment={experiment}"])
    settings = configuration.main.executor
    assert isinstance(settings, KubeRay)
    return build_graph(configuration, NoDigests()), settings  # type: ignore[arg-type]


def rayjob_of(stage: str, resources: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    graph, _ = graph_of()
    (node,) = graph.named(stage)[:1]
    return make_rayjob(node.job(Resources(**resources or {})), KubeRay(**settings))


def worker_of(rayjob: dict[str, Any]) -> dict[str, Any]:
    return rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


def container_of(template: dict[str, Any]) -> dict[str, Any]:
    return template["spec"]["containers"][0]


def variables_of(template: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container_of(template)["env"]}


@pytest.mark.parametrize(
    ("experiment", "executor"),
    [(name, "kuberay") for name in EXPERIMENTS] + [("qwen2vl-2b-from-72b", name) for name in OTHER_EXECUTORS],
)
def test_every_stage_of_every_experiment_is_valid(experiment: str, executor: str) -> None:
    graph, settings = graph_of(experiment, executor)
    made = rayjobs(graph.nodes, settings)
    assert len(made) == len(graph.nodes)
    assert {name: problems_of_rayjob(rayjob) for name, rayjob in made.items()} == {name: [] for name in made}


def test_every_setting_is_valid() -> None:
    pod = {
        "node_selector": {"kind": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "deadline_seconds": 3600,
        "priority_class": "batch",
    }
    rayjob = rayjob_of("capture", claims={"vlsi-data": "/data"}, queue="gpus", pull_secret="registry", pod=pod)
    assert problems_of_rayjob(rayjob) == []
    assert rayjob["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert rayjob["spec"]["activeDeadlineSeconds"] == 3600
    worker = worker_of(rayjob)["template"]["spec"]
    assert (worker["nodeSelector"], worker["priorityClassName"]) == ({"kind": "gpu"}, "batch")
    assert {"name": "vlsi-data", "mountPath": "/data"} in worker["containers"][0]["volumeMounts"]


@pytest.mark.parametrize("workers", [0, 3, (1, 8)])
def test_every_number_of_workers_is_valid(workers: int | tuple[int, int]) -> None:
    assert problems_of_rayjob(rayjob_of("interaction", {"workers": workers})) == []


def test_preparation_is_a_rayjob_too() -> None:
    (node,) = prepare_graph(load().main).nodes
    assert problems_of_rayjob(make_rayjob(node.job(Resources()), KubeRay())) == []


def test_a_misspelt_field_is_noticed() -> None:
    rayjob = rayjob_of("capture")
    rayjob["spec"]["entryPoint"] = "python"
    worker_of(rayjob)["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Never"
    assert len(problems_of_rayjob(rayjob)) >= 2


def test_a_pod_that_is_not_restricted_is_noticed() -> None:
    rayjob = rayjob_of("capture")
    template = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    container_of(template)["securityContext"]["allowPrivilegeEscalation"] = True
    assert problems_of_rayjob(rayjob) == ["ray-head: allowPrivilegeEscalation"]


def test_the_head_gets_the_job_and_no_workers() -> None:
    rayjob = rayjob_of("interaction")
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]
    job = Job.model_validate_json(variables_of(head["template"])["VLSI_JOB"])
    assert rayjob["metadata"]["name"] == f"vlsi-interaction-{job.fingerprint}"
    assert rayjob["spec"]["entrypoint"] == 'python -m stages.interaction --job "$VLSI_JOB"'
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert "VLSI_JOB" not in variables_of(worker_of(rayjob)["template"])


def test_each_stage_has_an_image_and_a_shape_of_its_own() -> None:
    rayjob = rayjob_of(
        "capture",
        {"workers": 8, "gpus_per_worker": 2, "cpus_per_worker": 4},
        registry="ghcr.io/someone/",
        tag="1.2.3",
        pod={"memory": "32Gi", "shared_memory": "8Gi"},
        pods={"capture": {"memory": "900Gi", "workers_per_pod": 4}},
    )
    group = worker_of(rayjob)
    container = container_of(group["template"])
    assert container["image"] == "ghcr.io/someone/vlsi/capture:1.2.3"
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 2)
    assert container["resources"]["limits"] == {"cpu": "19", "nvidia.com/gpu": "8", "memory": "900Gi"}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "8Gi" in [volume["emptyDir"].get("sizeLimit") for volume in group["template"]["spec"]["volumes"]]


def test_a_range_of_workers_lets_the_cluster_grow() -> None:
    rayjob = rayjob_of("interaction", {"workers": (1, 8)})
    assert rayjob["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert (worker_of(rayjob)["minReplicas"], worker_of(rayjob)["maxReplicas"]) == (1, 8)


def test_the_fewest_pods_hold_what_a_ray_data_stage_needs_to_start() -> None:
    group = worker_of(rayjob_of("capture", {"workers": (1, 8), "encoders": 8}))
    cpus = int(container_of(group["template"])["resources"]["limits"]["cpu"])
    assert group["minReplicas"] * cpus >= 1 + 9 * 0.5


def test_without_workers_the_head_does_the_work() -> None:
    resources = {"workers": 0, "gpus_per_worker": 1, "cpus_per_worker": 6}
    rayjob = rayjob_of("interaction", resources, pods={"interaction": {"memory": "80Gi"}})
    cluster = rayjob["spec"]["rayClusterSpec"]
    limits = container_of(cluster["headGroupSpec"]["template"])["resources"]["limits"]
    assert limits == {"cpu": "6", "nvidia.com/gpu": "1", "memory": "80Gi"}
    assert "workerGroupSpecs" not in cluster
    assert (rayjob["spec"]["entrypointNumCpus"], rayjob["spec"]["entrypointNumGpus"]) == (6, 1)


def test_secrets_are_named_and_never_copied() -> None:
    rayjob = rayjob_of("interaction")
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "vlsi-ray"}
    for template in pod_templates(rayjob["spec"]["rayClusterSpec"]):
        assert container_of(template)["envFrom"] == [{"secretRef": {"name": "vlsi-store", "optional": True}}]


def test_where_a_stage_runs_is_no_part_of_its_name() -> None:
    elsewhere = rayjob_of("interaction", {"workers": 7}, tag="v2", retries=5)
    assert elsewhere["metadata"]["name"] == rayjob_of("interaction")["metadata"]["name"]


def test_inputs_come_in_an_earlier_wave() -> None:
    graph, settings = graph_of()
    waves = {name: int(made["metadata"]["annotations"][WAVE]) for name, made in rayjobs(graph.nodes, settings).items()}
    assert waves["capture.yaml"] == waves["evaluation-teacher.yaml"] == 0
    chain = ("capture", "verbalization", "precompute", "interaction", "reinforcement", "evaluation")
    assert [waves[f"{stage}.yaml"] for stage in chain] == sorted(waves[f"{stage}.yaml"] for stage in chain)
    assert waves["interaction.yaml"] > waves["precompute.yaml"]


def test_yaml_is_the_manifest_and_shows_the_job_line_by_line() -> None:
    rayjob = rayjob_of("interaction")
    text = to_yaml(rayjob)
    assert yaml.safe_load(text) == rayjob
    assert "value: |" in text
    assert "&id" not in text


def test_the_command_writes_a_file_for_each_and_the_same_again(world: Path, call_vlsi: Vlsi, tmp_path: Path) -> None:
    code, _ = call_vlsi("manifests", "executor=kuberay", "--output", "out")
    assert code == 0
    first = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    listed = yaml.safe_load(first["kustomization.yaml"])
    assert listed == kustomization(listed["resources"])
    assert sorted([*listed["resources"], "kustomization.yaml"]) == sorted(first)
    call_vlsi("manifests", "executor=kuberay", "--output", "out")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == first


def test_the_command_prints_one_stage(world: Path, call_vlsi: Vlsi) -> None:
    code, printed = call_vlsi("manifests", "interaction@sft", "executor=kuberay")
    assert code == 2
    assert "interaction@sft" in printed
    code, printed = call_vlsi("manifests", "reinforcement@sft", "executor=kuberay")
    assert code == 0
    assert [made["metadata"]["labels"]["app.kubernetes.io/component"] for made in yaml.safe_load_all(printed)] == [
        "reinforcement"
    ]


def test_another_executor_makes_no_rayjobs(world: Path, call_vlsi: Vlsi) -> None:
    code, printed = call_vlsi("manifests")
    assert code == 2
    assert "executor=kuberay" in printed
