"""Every stage of an experiment as a RayJob, for those who apply manifests instead of running a command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from pipeline.execution import KubeRay
from pipeline.executors.rayjob import make_rayjob
from pipeline.graph import Node

WAVE = "argocd.argoproj.io/sync-wave"
"""Annotation by which Argo CD applies a manifest after those that it needs have succeeded."""


def rayjobs(nodes: Iterable[Node], settings: KubeRay) -> dict[str, dict[str, Any]]:
    """The RayJobs of nodes, by the name of each one's file."""
    return {f"{node.key.replace('@', '-')}.yaml": _rayjob(node, settings) for node in nodes}


def kustomization(files: list[str]) -> dict[str, Any]:
    """What `kubectl apply -k` reads."""
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": files}


def to_yaml(manifest: dict[str, Any]) -> str:
    """Readable: keys as they were put, texts of several lines as such."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _rayjob(node: Node, settings: KubeRay) -> dict[str, Any]:
    rayjob = make_rayjob(node.job(settings.resources_of(node.key)), settings)
    rayjob["metadata"]["annotations"][WAVE] = str(_depth(node))
    return rayjob


def _depth(node: Node) -> int:
    """How many stages have to come before it, one after the other."""
    return max((_depth(source) + 1 for source in node.upstream), default=0)


class _Dumper(yaml.SafeDumper):
    """Without anchors, which make a manifest hard to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
