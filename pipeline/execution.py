"""Where stages run: the section `executor` of the configuration; never part of a fingerprint."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from stages.contract import STAGES, Resources

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?([kMGTPE]|[KMGTPE]i)?$")]
"""An amount of memory as Kubernetes writes it, such as `64Gi`."""
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""The name of something in Kubernetes."""


_STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Execution(BaseModel):
    """What every place to run stages is told."""

    model_config = _STRICT

    kind: str
    parallel_stages: int = Field(default=2, ge=1)
    """Stages that do not need each other run side by side, up to this many."""
    resources: dict[str, Resources] = {}
    """By stage, or for one node alone, such as `evaluation@teacher`."""

    @field_validator("resources")
    @classmethod
    def _known_stages(cls, resources: dict[str, Resources]) -> dict[str, Resources]:
        _refuse_unknown(key for key in resources if key.partition("@")[0] not in STAGES)
        return resources

    def resources_of(self, key: str) -> Resources:
        """The resources of one node: its own, else its stage's, else the default; of `evaluation@teacher:mmbench`
        those of `evaluation@teacher`."""
        node = key.partition(":")[0]
        return self.resources.get(node, self.resources.get(node.partition("@")[0], Resources()))


class Local(Execution):
    """This machine."""

    kind: Literal["local"] = "local"
    cpus: int | None = Field(default=None, ge=1)
    """CPUs that the local Ray hands out; None gives every parallel stage what it asks for."""


class OnCluster(Execution):
    """A cluster, on which stages outlive the process that submitted them."""

    retries: int = Field(default=1, ge=0)
    """How often a stage that failed is started again; it goes on from its last checkpoint."""
    patience_seconds: float = Field(default=900, gt=0)
    """How long a cluster may not answer, and a stage may wait for machines, before that is a failure."""
    detach: bool = False
    """An interrupt leaves what runs; the next `vlsi run` finds it and goes on watching."""
    environment: dict[str, str] = {}
    """Variables of every stage. Secrets have no place here."""


class RayJobs(OnCluster):
    """A Ray cluster that is there already: each stage is one Ray job."""

    kind: Literal["ray_jobs"] = "ray_jobs"
    address: str | None = None
    """Of the cluster's dashboard; else RAY_ADDRESS, else the Ray on this machine."""


class Pod(BaseModel):
    """What a pod looks like, besides the CPUs and GPUs that a stage's resources ask for."""

    model_config = _STRICT

    memory: Quantity = "16Gi"
    shared_memory: Quantity = "2Gi"
    """Of `memory`, for Ray's object store and for what data loaders hand over."""
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    """As Kubernetes writes them."""


class StagePods(Pod):
    """The pods of a stage's workers, and what holds for the stage as a whole."""

    workers_per_pod: int = Field(default=1, ge=1)
    """Ray workers that share one pod, such as the eight of a machine with eight GPUs."""
    priority_class: Label | None = None
    deadline_seconds: int | None = Field(default=None, ge=1)
    """After which the stage has failed, waiting for machines included."""


class KubeRay(OnCluster):
    """A Kubernetes cluster with the KubeRay operator: each stage is one RayJob with a Ray cluster of its own."""

    kind: Literal["kuberay"] = "kuberay"
    context: str | None = None
    """Of the kubeconfig; else its current one. In a pod neither is needed."""
    namespace: Label = "vlsi"
    registry: str = ""
    """Stands before the images' names, `vlsi/<stage>`, such as `ghcr.io/someone`."""
    tag: str = version("vlsi-distill")
    pull_secret: Label | None = None
    service_account: Label = "vlsi"
    auth_secret: Label = "vlsi-ray"
    """Its `auth_token` is the token of every Ray cluster."""
    store_secret: Label = "vlsi-store"
    """Its keys are variables of every pod, such as AWS_ACCESS_KEY_ID; it need not exist."""
    claims: dict[Label, str] = {}
    """Volume claims, and where every pod has them: `{vlsi-data: /data}`."""
    queue: str | None = None
    """A queue of Kueue in which RayJobs wait for their turn."""
    gpu: str = "nvidia.com/gpu"
    """What a GPU is called in the cluster."""
    ttl_seconds: int = Field(default=60, ge=0)
    """How long a Ray cluster stays when its stage has ended; long enough to read the end of the log."""
    head: Pod = Pod(memory="4Gi")
    """The pod of Ray's head, which runs the stage's own process and none of its workers."""
    pod: StagePods = StagePods()
    """The pods of every stage's workers."""
    pods: dict[str, StagePods] = {}
    """By stage: what differs from `pod`."""

    @field_validator("pods")
    @classmethod
    def _pods_of_stages(cls, pods: dict[str, StagePods]) -> dict[str, StagePods]:
        _refuse_unknown(key for key in pods if key not in STAGES)
        return pods

    def pod_of(self, stage: str) -> StagePods:
        """The pods of a stage's workers."""
        own = self.pods.get(stage, StagePods())
        return self.pod.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})

    def image_of(self, stage: str) -> str:
        """The image of a stage."""
        return "/".join(part for part in (self.registry.rstrip("/"), f"vlsi/{stage}:{self.tag}") if part)


AnyExecution = Annotated[Local | RayJobs | KubeRay, Field(discriminator="kind")]


def _refuse_unknown(keys: Iterable[str]) -> None:
    if unknown := sorted(keys):
        raise ValueError(f"{', '.join(unknown)} is no stage; allowed: {', '.join(STAGES)}")
