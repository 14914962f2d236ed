"""The part of Kueue's objects (`kueue.x-k8s.io/v1beta1`) that the overlay uses, closed: another field is a problem."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

TEXT = {"type": "string"}
LABELS = {"type": "object", "additionalProperties": TEXT}


def _record(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


_TOLERATION = _record((), key=TEXT, operator={"enum": ["Exists", "Equal"]}, value=TEXT, effect=TEXT)
_QUOTA = _record(("name", "nominalQuota"), name=TEXT, nominalQuota=TEXT, borrowingLimit=TEXT, lendingLimit=TEXT)
_GROUP = _record(
    ("coveredResources", "flavors"),
    coveredResources=_list(TEXT),
    flavors=_list(_record(("name", "resources"), name=TEXT, resources=_list(_QUOTA))),
)
SPECS = {
    "ResourceFlavor": _record((), nodeLabels=LABELS, tolerations=_list(_TOLERATION)),
    "ClusterQueue": _record(
        ("namespaceSelector", "resourceGroups"),
        namespaceSelector=_record((), matchLabels=LABELS),
        queueingStrategy={"enum": ["BestEffortFIFO", "StrictFIFO"]},
        preemption=_record((), withinClusterQueue={"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]}),
        resourceGroups=_list(_GROUP),
    ),
    "LocalQueue": _record(("clusterQueue",), clusterQueue=TEXT),
}


def problems(found: dict[str, Any]) -> list[str]:
    """Everything that is wrong with an object of Kueue's; each flavour has to cover its group's resources in order."""
    schema = _record(
        ("apiVersion", "kind", "metadata"),
        apiVersion={"const": "kueue.x-k8s.io/v1beta1"},
        kind=TEXT,
        metadata={"type": "object"},
        spec=SPECS[found["kind"]],
    )
    wrong = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(found)]
    for group in found.get("spec", {}).get("resourceGroups", []):
        for flavour in group["flavors"]:
            if [quota["name"] for quota in flavour["resources"]] != group["coveredResources"]:
                wrong.append(f"{flavour['name']}: not the resources of its group")
    return wrong
