"""A stage as a RayJob: what `executor=kuberay` creates, and what `vlsi manifests` prints.

Every pod is one that the Kubernetes pod security standard `restricted` lets in. The job stands in a
variable of Ray's head, where the stage's own process runs; data, models and results are in places that
every pod reaches.
"""

from __future__ import annotations

from importlib.metadata import version
from math import ceil
from typing import Any

from pipeline.execution import KubeRay, Pod, StagePods
from pipeline.executors.cluster import GRACE_SECONDS, JOB_VARIABLE, as_variable
from stages.contract import Job, Resources

KIND = {"apiVersion": "ray.io/v1", "kind": "RayJob"}
HEAD_CPUS = 2
USER = 1000
"""Of the images, and of the files that pods write."""
HOME = "/home/vlsi"
SCRATCH = {"tmp": "/tmp", "home": HOME}
"""What can be written beside the claims, by volume."""
SHARED_MEMORY = "shared-memory"


def name_of(job: Job) -> str:
    """The RayJob's name: the same for everyone who wants the same artifact."""
    return f"vlsi-{job.stage}-{job.fingerprint}"


def make_rayjob(job: Job, settings: KubeRay, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The manifest of a stage; the same job, settings and environment give the same one.

    Args:
        job: what the stage is told.
        settings: what its pods look like.
        environment: variables of this run alone, such as MLFLOW_RUN_ID.
    """
    pod = settings.pod_of(job.stage)
    variables = settings.environment | (environment or {})
    spec = {
        "entrypoint": f'python -m stages.{job.stage} --job "${JOB_VARIABLE}"',
        # The operator asks the dashboard; a submitter's pod would fail the job whenever its log stream breaks.
        "submissionMode": "HTTPMode",
        "backoffLimit": settings.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": settings.ttl_seconds,
        "rayClusterSpec": _cluster(job, settings, pod, variables),
    }
    if job.resources.workers == 0:
        spec |= _entrypoint_resources(job.resources)
    if pod.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = pod.deadline_seconds
    queue = {"kueue.x-k8s.io/queue-name": settings.queue} if settings.queue else {}
    metadata = {
        "name": name_of(job),
        "namespace": settings.namespace,
        "labels": _labels(job) | queue,
        "annotations": {"vlsi/fingerprint": job.fingerprint, "vlsi/output": job.output},
    }
    return {**KIND, "metadata": metadata, "spec": spec}


def _entrypoint_resources(resources: Resources) -> dict[str, float]:
    """Of a stage without workers, whose own process does the work."""
    return {"entrypointNumCpus": resources.cpus_per_worker, "entrypointNumGpus": resources.gpus_per_worker}


def _cluster(job: Job, settings: KubeRay, pod: StagePods, variables: dict[str, str]) -> dict[str, Any]:
    resources = job.resources
    told = {**variables, JOB_VARIABLE: as_variable(job, indent=2)}
    if resources.workers == 0:
        amounts = _amounts(settings, resources.cpus_per_worker, resources.gpus_per_worker)
        alone = _template("ray-head", job, settings, pod, amounts, told)
        return _ray(settings) | {"headGroupSpec": {"rayStartParams": {}, "template": alone}}
    head = _template("ray-head", job, settings, settings.head, _amounts(settings, HEAD_CPUS, 0), told)
    cluster = _ray(settings) | {
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
        "workerGroupSpecs": [_workers(job, settings, pod, variables)],
    }
    if isinstance(resources.workers, tuple):
        cluster |= {"enableInTreeAutoscaling": True, "autoscalerOptions": _autoscaler()}
        head["spec"]["automountServiceAccountToken"] = True
    return cluster


def _ray(settings: KubeRay) -> dict[str, Any]:
    return {"rayVersion": version("ray"), "authOptions": {"mode": "token", "secretName": settings.auth_secret}}


def _workers(job: Job, settings: KubeRay, pod: StagePods, variables: dict[str, str]) -> dict[str, Any]:
    resources = job.resources
    most = ceil(resources.most_workers / pod.workers_per_pod)
    cpus = ceil(resources.most_cpus / most)
    gpus = resources.gpus_per_worker * pod.workers_per_pod
    workers = resources.workers
    least = most
    if isinstance(workers, tuple):
        least = min(most, max(ceil(workers[0] / pod.workers_per_pod), ceil(resources.least_cpus / cpus)))
    return {
        "groupName": "workers",
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": _template("ray-worker", job, settings, pod, _amounts(settings, cpus, gpus), variables),
    }


def _template(
    name: str, job: Job, settings: KubeRay, pod: Pod, amounts: dict[str, str], variables: dict[str, str]
) -> dict[str, Any]:
    amounts = amounts | {"memory": pod.memory}
    container = {
        "name": name,
        "image": settings.image_of(job.stage),
        "env": [{"name": key, "value": value} for key, value in sorted((variables | {"HOME": HOME}).items())],
        "envFrom": [{"secretRef": {"name": settings.store_secret, "optional": True}}],
        "resources": _reserved(amounts),
        "securityContext": _locked(),
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in _mounts(settings).items()],
    }
    spec: dict[str, Any] = {
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": _volumes(settings, pod),
    }
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in pod.tolerations]
    if priority := settings.pod_of(job.stage).priority_class:
        spec["priorityClassName"] = priority
    if settings.pull_secret:
        spec["imagePullSecrets"] = [{"name": settings.pull_secret}]
    return {"metadata": {"labels": _labels(job)}, "spec": spec}


def _amounts(settings: KubeRay, cpus: float, gpus: float) -> dict[str, str]:
    """Of whole CPUs and GPUs."""
    return {"cpu": str(ceil(cpus))} | ({settings.gpu: str(ceil(gpus))} if gpus else {})


def _reserved(amounts: dict[str, str]) -> dict[str, Any]:
    """Requests equal limits: nothing is taken away from a long run."""
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _autoscaler() -> dict[str, Any]:
    """The container beside the head that asks for workers as Ray needs them."""
    return {
        "version": "v2",
        "resources": _reserved({"cpu": "500m", "memory": "1Gi"}),
        "securityContext": _locked(),
        "volumeMounts": [{"name": "tmp", "mountPath": SCRATCH["tmp"]}],
    }


def _locked() -> dict[str, Any]:
    """Security of a container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _mounts(settings: KubeRay) -> dict[str, str]:
    return SCRATCH | {SHARED_MEMORY: "/dev/shm"} | settings.claims


def _volumes(settings: KubeRay, pod: Pod) -> list[dict[str, Any]]:
    scratch: list[dict[str, Any]] = [{"name": name, "emptyDir": {}} for name in SCRATCH]
    memory = {"name": SHARED_MEMORY, "emptyDir": {"medium": "Memory", "sizeLimit": pod.shared_memory}}
    claims = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in settings.claims]
    return [*scratch, memory, *claims]


def _labels(job: Job) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "vlsi",
        "app.kubernetes.io/component": job.stage,
        "app.kubernetes.io/managed-by": "vlsi",
    }
