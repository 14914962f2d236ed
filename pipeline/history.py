"""The history: a record of every run, beside the artifacts, so that every machine sees the same runs.

<store>/runs/<experiment>/<time>-<id>.json

A run that was interrupted or failed goes on under its record, if it is asked for the same results again.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import ConfigError, Configuration
from pipeline.executors import StageFailed, StageStopped
from pipeline.experiment import MAIN
from pipeline.graph import Graph, Node
from pipeline.origin import describe_origin
from pipeline.results import Scores, collect_scores
from pipeline.runner import Outcome
from stages.contract import Artifact
from stages.contract.artifact import RUN_VARIABLE
from stages.contract.place import Place, files_below, write_whole

RUNS_FOLDER = "runs"
_BEFORE = re.compile(r"(?P<name>.+?)~(?P<count>\d*)")

RunStatus = Literal["running", "finished", "failed", "stopped"]
StageStatus = Literal["waiting", "running", "reused", "made", "failed", "skipped", "stopped"]


class StageRun(BaseModel):
    """What became of one node in one run."""

    model_config = ConfigDict(extra="ignore")

    stage: str
    fingerprint: str
    status: StageStatus = "waiting"
    started: float | None = None
    """Seconds since the epoch, of the last attempt; of a reused artifact when it was made."""
    seconds: float | None = None
    error: str | None = None
    mlflow_run_id: str | None = None


class RunRecord(BaseModel):
    """One run of an experiment."""

    model_config = ConfigDict(extra="ignore")

    id: str
    experiment: str
    """Its name; of a point of a sweep `experiment@sweep.point.seed`."""
    started: float
    """Seconds since the epoch."""
    ended: float | None = None
    status: RunStatus = "running"
    host: str
    pid: int
    """Of the process that ran it last."""
    overrides: tuple[str, ...]
    configuration: dict[str, Any]
    """The whole experiment, as it was validated."""
    graph: str
    """Fingerprint of everything wanted."""
    wanted: dict[str, str]
    """`stage/fingerprint` of every node of the graph, by node key."""
    stages: dict[str, StageRun] = {}
    """What became of the nodes that were selected, inputs before what uses them."""
    committed: dict[str, str] = {}
    """Fingerprint of the newest artifact that this experiment had of a node key, in this run or one before."""
    scores: list[Scores] = []
    mlflow_run_id: str | None = None
    sweep: str | None = None
    """Name of the sweep that this run is a point of."""
    origin: dict[str, str] = {}
    """Code, command and machine of the process that ran it last, see `pipeline.origin`."""

    @property
    def file_name(self) -> str:
        """Sorted by name, records are sorted by time, to the millisecond."""
        return f"{int(self.started * 1000):015d}-{self.id}.json"

    def snapshot(self) -> RunRecord:
        """A copy that stays as it is while the run goes on; what no run changes is shared."""
        stages = {key: stage.model_copy() for key, stage in self.stages.items()}
        return self.model_copy(update={"stages": stages, "committed": dict(self.committed)})

    @property
    def state(self) -> str:
        """Its status, or `interrupted`."""
        return "interrupted" if self.is_interrupted else self.status

    @property
    def accuracy(self) -> float | None:
        """The headline: accuracy of the experiment's own student, a fraction."""
        return next((scores.overall for scores in self.scores if scores.name == MAIN), None)

    @property
    def may_go_on(self) -> bool:
        """Whether a run that wants the same is its continuation: it did not come to its end, and runs nowhere else."""
        runs_here = self.status == "running" and self.host == socket.gethostname() and not self.is_interrupted
        return self.status != "finished" and not runs_here

    @property
    def is_interrupted(self) -> bool:
        """Whether it says it is running, but the process that ran it is known to be gone."""
        return self.status == "running" and self.host == socket.gethostname() and not Path(f"/proc/{self.pid}").exists()


class History:
    """All records of one store."""

    def __init__(self, store: Place) -> None:
        """Nothing is created until something is written."""
        self._folder = store / RUNS_FOLDER

    def experiments(self) -> list[str]:
        """Names of the experiments that have records."""
        return sorted({name.partition("/")[0] for name in self._files()})

    def records(self, experiment: str | None = None) -> list[RunRecord]:
        """The records of one experiment, or all, oldest first; those that cannot be read are left out."""
        found = [record for name in self._files(experiment) if (record := self._read(name))]
        return sorted(found, key=lambda record: (record.started, record.id))

    def unreadable(self) -> list[str]:
        """Records that are there and cannot be read."""
        return [str(self._folder / name) for name in self._files() if self._read(name) is None]

    def ids(self) -> set[str]:
        """Ids of all runs; no record is read."""
        return {name.removesuffix(".json").rpartition("-")[2] for name in self._files()}

    def last(self, experiment: str) -> RunRecord | None:
        """The newest readable record of an experiment."""
        return next((r for name in reversed(self._files(experiment)) if (r := self._read(name))), None)

    def find(self, name: str) -> RunRecord:
        """A run by its id, the beginning of one, or an experiment's name (its last run); `~N` counts back from there.

        Raises:
            ConfigError: there is no such run, or several.
        """
        before = _BEFORE.fullmatch(name)
        start, count = (before["name"], int(before["count"] or 1)) if before else (name, 0)
        records = self.records()
        named = [r for r in records if r.experiment == start][-1:] or [r for r in records if r.id.startswith(start)]
        if not named:
            known = ", ".join(r.id for r in records[-5:]) or "none"
            raise ConfigError(f"there is no run {start!r}; the last ones are {known}; `vlsi runs` lists all")
        if len(named) > 1:
            raise ConfigError(f"{start!r} begins {len(named)} runs: {', '.join(r.id for r in named)}")
        siblings = [r for r in records if r.experiment == named[0].experiment]
        place = siblings.index(named[0]) - count
        if place < 0:
            raise ConfigError(f"{name!r}: {named[0].experiment} has {len(siblings)} runs, none is {count} before")
        return siblings[place]

    def tells(self, name: str, graph: Graph) -> bool:
        """Whether the last run of this name wanted the same and got it."""
        last = self.last(name)
        return last is not None and last.status == "finished" and last.graph == graph.fingerprint

    def recorder(
        self, configuration: Configuration, graph: Graph, nodes: Sequence[Node], *, name: str = "", sweep: str = ""
    ) -> Recorder:
        """A recorder of a run that begins now, or goes on.

        Args:
            configuration: what is run.
            graph: everything wanted.
            nodes: those that were selected, inputs before what uses them.
            name: of the run's records, if it is not the experiment's.
            sweep: that the run is a point of.
        """
        return Recorder(self, self.begin(configuration, graph, name=name, sweep=sweep), nodes)

    def begin(self, configuration: Configuration, graph: Graph, *, name: str = "", sweep: str = "") -> RunRecord:
        """The record of a run that begins now, or of the one before if it did not come to its end."""
        experiment = configuration.main
        name = name or experiment.name
        last = self.last(name)
        if last is not None and last.graph == graph.fingerprint and last.may_go_on:
            last.status, last.ended = "running", None
            last.host, last.pid = socket.gethostname(), os.getpid()
            last.origin = describe_origin()
            return last
        return RunRecord(
            id=secrets.token_hex(4),
            experiment=name,
            started=time.time(),
            host=socket.gethostname(),
            pid=os.getpid(),
            overrides=configuration.overrides,
            configuration=experiment.model_dump(mode="json"),
            graph=graph.fingerprint,
            wanted={node.key: f"{node.stage}/{node.fingerprint}" for node in graph.nodes},
            committed=dict(last.committed) if last else {},
            sweep=sweep or None,
            origin=describe_origin(),
        )

    def write(self, record: RunRecord) -> None:
        """Replace a record whole."""
        path = self._folder / record.experiment / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, record.model_dump_json(indent=2))

    def remove(self, record: RunRecord) -> None:
        """Forget a run."""
        (self._folder / record.experiment / record.file_name).unlink(missing_ok=True)

    def _files(self, experiment: str | None = None) -> list[str]:
        """`experiment/file` of every record, oldest first within an experiment."""
        if experiment is None:
            return [name for name in files_below(self._folder) if name.endswith(".json") and name.count("/") == 1]
        names = files_below(self._folder / experiment)
        return [f"{experiment}/{name}" for name in names if name.endswith(".json") and "/" not in name]

    def _read(self, name: str) -> RunRecord | None:
        try:
            return RunRecord.model_validate_json((self._folder / name).read_text())
        except (OSError, ValidationError, UnicodeDecodeError):
            return None


class Recorder:
    """An observer of the runner that keeps a record in step with what happens."""

    def __init__(self, history: History, record: RunRecord, nodes: Sequence[Node]) -> None:
        """Continue `record` with these nodes, inputs before what uses them; others keep what became of them."""
        self._history = history
        self.record = record
        for node in nodes:
            record.stages.setdefault(node.key, StageRun(stage=node.stage, fingerprint=node.fingerprint))

    def __enter__(self) -> Self:
        """Begin the record."""
        self.save()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the record if an error ends the run."""
        if error is not None and self.record.status == "running":
            with suppress(OSError):  # the record may be what cannot be written
                self.end("stopped" if isinstance(error, KeyboardInterrupt) else "failed")

    def reused(self, node: Node, artifact: Artifact) -> None:
        """Remember what was used."""
        self._stage(node, status="reused", **_dates(artifact))
        self._commit(node, artifact)

    def started(self, node: Node) -> dict[str, str]:
        """Say that it runs; the stage writes into its manifest for which run."""
        self._stage(node, status="running", started=time.time(), error=None)
        self.save()
        return {RUN_VARIABLE: self.record.id}

    def line(self, node: Node, line: Mapping[str, Any]) -> None:
        """Nothing to record: the journal is the record."""

    def finished(self, node: Node, artifact: Artifact) -> None:
        """Remember what was made."""
        self._stage(node, status="made", **_dates(artifact))
        self._commit(node, artifact)
        self.save()

    def failed(self, node: Node, error: StageFailed) -> None:
        """Keep the message; the node keeps the artifact it had."""
        self._stage(node, status="stopped" if isinstance(error, StageStopped) else "failed", error=str(error))
        self.save()

    def conclude(self, graph: Graph, outcome: Outcome) -> None:
        """Close the record of a run that came to its end, well or not."""
        scores = collect_scores(graph, outcome.artifacts)
        self.end(outcome.status, tuple(outcome.skipped), scores)

    def end(self, status: RunStatus, skipped: Sequence[str] = (), scores: Sequence[Scores] = ()) -> None:
        """Close the record; what still runs ends with it."""
        for key in skipped:
            self.record.stages[key].status = "skipped"
        for stage in self.record.stages.values():
            if stage.status == "running":
                stage.status = "stopped"
        self.record.status, self.record.ended = status, time.time()
        self.record.scores = list(scores)
        self.save()

    def save(self) -> None:
        """Write the record whole."""
        self._history.write(self.record)

    def _stage(self, node: Node, **changes: Any) -> None:
        stage = self.record.stages[node.key]
        self.record.stages[node.key] = stage.model_copy(update=changes)

    def _commit(self, node: Node, artifact: Artifact) -> None:
        self.record.committed[node.key] = artifact.manifest.fingerprint


def _dates(artifact: Artifact) -> dict[str, float]:
    return {"started": artifact.manifest.started, "seconds": artifact.manifest.duration_seconds}
