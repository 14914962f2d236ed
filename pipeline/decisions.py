"""Which nodes have to run, and why.

A node is reused if its artifact is committed, was made from this very recipe, and is younger than
what it was made from. Everything else runs, and each reason names what changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.config import ConfigError
from pipeline.graph import Graph, Node, closure
from pipeline.identity import changed_fields
from pipeline.store import Store
from stages.contract import Artifact
from stages.contract.artifact import has_work

FORCE_ALL = "all"


@dataclass(frozen=True)
class Decision:
    """What happens to one node.

    Attributes:
        node: the node.
        reasons: why it runs; empty if it is reused.
        repair: whether it runs only because files of its artifact are gone; what was made from it stays.
        artifact: what is committed at its place, outdated or not.
    """

    node: Node
    reasons: tuple[str, ...]
    artifact: Artifact | None
    repair: bool = False

    @property
    def reused(self) -> bool:
        """Whether nothing has to run."""
        return not self.reasons


@dataclass(frozen=True)
class Selection:
    """Which part of the graph is asked for; stages or node keys."""

    only: str | None = None
    start: str | None = None
    until: str | None = None
    force: str | None = None
    """Rerun this although nothing changed; `all` for everything selected."""

    def keys(self, graph: Graph) -> set[str]:
        """Keys of the selected nodes.

        Raises:
            ConfigError: a name is not part of the graph, or the options contradict each other.
        """
        if self.only and (self.start or self.until):
            raise ConfigError("--only does not go with --from and --until; use one or the other")
        if self.only:
            return {node.key for node in graph.named(self.only)}
        keys = {node.key for node in graph.nodes}
        if self.start:
            first = {node.key for node in graph.named(self.start)}
            keys = {node.key for node in graph.nodes if first & set(closure([node]))}
        if self.until:
            keys &= set(closure(graph.named(self.until)))
        if not keys:
            raise ConfigError(f"--from {self.start} --until {self.until} selects nothing: no path leads from one on")
        return keys

    def forced(self, graph: Graph) -> set[str]:
        """Keys of the nodes that run whatever is there."""
        if self.force is None:
            return set()
        named = graph.nodes if self.force == FORCE_ALL else graph.named(self.force)
        return {node.key for node in named} & self.keys(graph)


EVERYTHING = Selection()


def decide(graph: Graph, store: Store, known: Mapping[str, str], selection: Selection = EVERYTHING) -> list[Decision]:
    """A decision for every selected node, inputs before what uses them.

    Args:
        graph: what is wanted.
        store: what is there.
        known: fingerprints that the experiment's nodes had before, by key; they say what changed.
        selection: the part that is asked for.

    Raises:
        ConfigError: a selected node needs one that is stale and not selected.
    """
    selected, forced = selection.keys(graph), selection.forced(graph)
    decisions: dict[str, Decision] = {}
    for node in graph.nodes:
        artifact = store.artifact(node)
        reasons = tuple(_reasons(node, artifact, decisions, forced, store.known_artifact(node, known.get(node.key))))
        damage = tuple(f"{file} is damaged or missing" for file in (artifact.damage() if artifact else ()))
        decisions[node.key] = Decision(node, reasons or damage, artifact, repair=not reasons and bool(damage))
    chosen = [decisions[node.key] for node in graph.nodes if node.key in selected]
    for decision in chosen:
        _inputs_are_there(decision, decisions, selected)
    return chosen


def made_before(decisions: Iterable[Decision]) -> dict[str, Artifact]:
    """Everything up to date, by node key."""
    return {d.node.key: d.artifact for d in decisions if d.reused and d.artifact is not None}


def _reasons(
    node: Node,
    artifact: Artifact | None,
    upstream: dict[str, Decision],
    forced: Collection[str],
    last: Artifact | None,
) -> Iterator[str]:
    """Why `node` has to run, given the decisions on its inputs; nothing if it need not."""
    current = artifact is not None and artifact.manifest.fingerprint == node.fingerprint
    before = artifact or last
    if node.key in forced:
        yield "forced"
    if not current and before is not None:
        yield from _differences(node, before)
    if not current and (before is None or before.manifest.fingerprint == node.fingerprint):
        yield "was interrupted, goes on where it stopped" if has_work(node.output) else "no artifact yet"
    if before is None:
        return
    for name, source in node.inputs.items():
        if not isinstance(source, Node):
            continue
        if not upstream[source.key].reused and not upstream[source.key].repair:
            yield f"because {source.key} is"
        elif before.manifest.identity["inputs"].get(name) != source.fingerprint:
            yield f"{name} is another one than before"
        elif current and _is_younger(upstream[source.key].artifact, artifact):
            yield f"{source.key} was made anew since"


def _differences(node: Node, before: Artifact) -> Iterator[str]:
    """What changed in settings and outside inputs since an earlier artifact."""
    yield from changed_fields(before.manifest.identity, node.identity)
    old = before.manifest.identity["inputs"]
    for name, source in node.inputs.items():
        if not isinstance(source, Node) and old.get(name) != source.digest:
            yield f"{name} changed: {source.place}"
    for name in sorted(set(old) - set(node.inputs)):
        yield f"{name} is no input any more"


def _is_younger(source: Artifact | None, artifact: Artifact | None) -> bool:
    """Whether `source` was committed after the work on `artifact` began."""
    if source is None or artifact is None:
        return False
    return source.manifest.started + source.manifest.duration_seconds > artifact.manifest.started


def _inputs_are_there(decision: Decision, decisions: dict[str, Decision], selected: Collection[str]) -> None:
    """Refuse to run a node on inputs that are stale and stay so."""
    if decision.reused:
        return
    for source in decision.node.upstream:
        needed = decisions[source.key]
        if source.key not in selected and not needed.reused:
            raise ConfigError(
                f"{decision.node.key} needs {source.key}, which is not up to date ({needed.reasons[0]}); "
                f"run `vlsi run --until {source.key}` first, or leave out --only and --from"
            )
