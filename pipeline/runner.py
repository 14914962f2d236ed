"""Runs what has been decided: ready nodes side by side. After a failure nothing new begins and what runs may end;
asked to keep going, everything goes on that does not depend on the failure.

Whoever wants to know what happens (the terminal, MLflow, the record) is an observer. Observers are
called from one thread; only the stages themselves run in others.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.decisions import Decision
from pipeline.execution import Execution
from pipeline.executors import Executor, StageFailed, StageStopped
from pipeline.graph import Node
from pipeline.store import Store
from stages.contract import Artifact, Follower, Job, open_artifact
from stages.contract.artifact import has_work, work_folder
from stages.contract.journal import PUT_SECONDS
from stages.contract.place import Remote

POLL_SECONDS = 0.2


class Observer(Protocol):
    """Is told what happens to each node."""

    def reused(self, node: Node, artifact: Artifact) -> None:
        """A node does not run."""

    def started(self, node: Node) -> dict[str, str]:
        """A node is about to run; the stage gets the returned environment variables."""

    def line(self, node: Node, line: Mapping[str, Any]) -> None:
        """The running node wrote a line into its journal."""

    def finished(self, node: Node, artifact: Artifact) -> None:
        """A node's artifact is committed."""

    def failed(self, node: Node, error: StageFailed) -> None:
        """A node ended without its artifact."""


@dataclass
class Outcome:
    """What became of each node, by key."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    executed: set[str] = field(default_factory=set)
    failed: dict[str, StageFailed] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    """Nodes that were not tried, and the one that failed before them."""

    def renamed(self, names: Mapping[str, str]) -> Outcome:
        """What became of these nodes alone, each under its new name."""
        return Outcome(
            {names[key]: artifact for key, artifact in self.artifacts.items() if key in names},
            {names[key] for key in self.executed if key in names},
            {names[key]: error for key, error in self.failed.items() if key in names},
            {names[key]: names[cause] for key, cause in self.skipped.items() if key in names},
        )

    @property
    def status(self) -> Literal["finished", "failed", "stopped"]:
        """Of the run as a whole."""
        if not self.failed:
            return "finished"
        return "stopped" if all(isinstance(error, StageStopped) for error in self.failed.values()) else "failed"


class Runner:
    """Carries out decisions with one executor."""

    def __init__(
        self,
        store: Store,
        settings: Execution,
        executor: Executor,
        observers: Sequence[Observer],
        *,
        keep_going: bool = False,
    ) -> None:
        """The observers are told in this order."""
        self._store = store
        self._settings = settings
        self._executor = executor
        self._observers = observers
        self._keep_going = keep_going
        self._followers: dict[str, Follower] = {}
        self._due: dict[str, float] = {}

    def run(self, decisions: Sequence[Decision]) -> Outcome:
        """Run every node that is not reused; return when nothing more can run."""
        outcome = Outcome()
        for decision in decisions:
            if decision.reused and decision.artifact is not None:
                outcome.artifacts[decision.node.key] = decision.artifact
                self._tell("reused", decision.node, decision.artifact)
        waiting = [decision for decision in decisions if not decision.reused]
        if waiting:
            # Left in reverse order: an interrupt first ends the stages, then the threads that wait for them.
            with ThreadPoolExecutor(self._settings.parallel_stages) as threads, self._executor:
                self._run_waiting(waiting, outcome, threads)
        return outcome

    def _run_waiting(self, waiting: list[Decision], outcome: Outcome, threads: ThreadPoolExecutor) -> None:
        """Start what is ready, listen to what runs, until neither is left."""
        running: dict[Future[None], Node] = {}
        while waiting or running:
            _skip_after_failures(waiting, outcome)
            if not self._keep_going:
                _skip_rest(waiting, outcome)
            for decision in _ready(waiting, running.values())[: self._settings.parallel_stages - len(running)]:
                waiting.remove(decision)
                running[threads.submit(self._executor.run, *self._start(decision))] = decision.node
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future, node in running.items():
                self._listen(node, ended=future in done)
            for future in done:
                self._finish(running.pop(future), future, outcome)

    def _start(self, decision: Decision) -> tuple[Job, Path, dict[str, str]]:
        """Announce a node; what the executor needs to run it."""
        node = decision.node
        self._followers[node.key] = Follower()
        environment: dict[str, str] = {}
        for observer in self._observers:
            environment |= observer.started(node)
        force = decision.artifact is not None and not decision.repair
        job = node.job(self._settings.resources_of(node.key), force=force)
        return job, self._store.log_file(node), environment

    def _finish(self, node: Node, future: Future[None], outcome: Outcome) -> None:
        """Record how a node ended. An error that is not a stage's failure goes on up."""
        try:
            future.result()
            artifact = open_artifact(node.output)
            if artifact is None or artifact.manifest.fingerprint != node.fingerprint:
                raise StageFailed(f"{node.key} ended well but left no artifact at {node.output}")
        except StageFailed as error:
            outcome.failed[node.key] = error
            self._tell("failed", node, error)
            return
        outcome.artifacts[node.key] = artifact
        outcome.executed.add(node.key)
        self._tell("finished", node, artifact)

    def _listen(self, node: Node, *, ended: bool) -> None:
        """Pass on what the stage wrote into its journal, which moves with the artifact when that is committed."""
        if not ended and time.monotonic() < self._due.get(node.key, 0.0):
            return
        artifact = open_artifact(node.output) if ended and not has_work(node.output) else None
        for line in self._followers[node.key].new_lines(artifact.path if artifact else work_folder(node.output)):
            self._tell("line", node, line)
        if isinstance(node.output, Remote):
            self._due[node.key] = time.monotonic() + PUT_SECONDS

    def _tell(self, event: str, *details: Any) -> None:
        for observer in self._observers:
            getattr(observer, event)(*details)


def _ready(waiting: Sequence[Decision], running: Collection[Node]) -> list[Decision]:
    """Those whose inputs are neither waiting nor running."""
    unfinished = {decision.node.key for decision in waiting} | {node.key for node in running}
    return [d for d in waiting if not unfinished & {source.key for source in d.node.upstream}]


def _skip_after_failures(waiting: list[Decision], outcome: Outcome) -> None:
    """Move nodes that depend on a failure, directly or not, out of the queue."""
    for decision in list(waiting):
        for source in decision.node.upstream:
            if source.key in outcome.failed or source.key in outcome.skipped:
                outcome.skipped[decision.node.key] = outcome.skipped.get(source.key, source.key)
                waiting.remove(decision)
                break


def _skip_rest(waiting: list[Decision], outcome: Outcome) -> None:
    """Empty the queue once anything has failed."""
    if outcome.failed:
        first = next(iter(outcome.failed))
        outcome.skipped |= {decision.node.key: first for decision in waiting}
        waiting.clear()
