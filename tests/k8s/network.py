"""What a set of network policies allows, as the Kubernetes documentation defines it, within one namespace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Labels = dict[str, str]
OUTSIDE: Labels = {}
"""An address that is no pod."""


class Network:
    """Answers whether a connection comes through. A pod that no policy selects may do everything."""

    def __init__(self, policies: Iterable[dict[str, Any]]) -> None:
        self._specs = [policy["spec"] for policy in policies]

    def allows(self, source: Labels, target: Labels, port: int) -> bool:
        """From a pod to another one in the namespace."""
        return self._passes("egress", source, target, port) and self._passes("ingress", target, source, port)

    def lets_out(self, source: Labels, port: int) -> bool:
        """From a pod to an address outside."""
        return self._passes("egress", source, OUTSIDE, port)

    def _passes(self, direction: str, pod: Labels, peer: Labels, port: int) -> bool:
        applying = [
            spec
            for spec in self._specs
            if _selects(spec["podSelector"], pod) and direction.title() in spec["policyTypes"]
        ]
        rules = [rule for spec in applying for rule in spec.get(direction, [])]
        side = "to" if direction == "egress" else "from"
        return not applying or any(_has_peer(rule.get(side), peer) and _has_port(rule, port) for rule in rules)


def _has_peer(peers: list[dict[str, Any]] | None, peer: Labels) -> bool:
    """A rule without peers is for all; an address block is for what is no pod."""
    if peers is None:
        return True
    if peer == OUTSIDE:
        return any("ipBlock" in wanted for wanted in peers)
    return any("podSelector" in wanted and _selects(wanted["podSelector"], peer) for wanted in peers)


def _has_port(rule: dict[str, Any], port: int) -> bool:
    return "ports" not in rule or port in [allowed["port"] for allowed in rule["ports"]]


def _selects(selector: dict[str, Any], labels: Labels) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(labels.get(e["key"]) not in e["values"] for e in selector.get("matchExpressions", []))
