"""The store: one folder for artifacts, logs, reports, and the record of what each experiment used last.

<store>/<stage>/<fingerprint>/     artifacts, see `stages.contract`
<store>/logs/                      what each stage printed, and the job it was given
<store>/runs/<experiment>.json     the record
<store>/reports/<experiment>.html  what `vlsi report` writes

With artifacts in an object store the rest is in `vlsi-records` below the current folder.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.graph import Node
from stages.contract import Artifact, open_artifact
from stages.contract.place import place_of, write_whole

RECORDS_FOLDER = "vlsi-records"


class RunRecord(BaseModel):
    """What an experiment used last; says what changed since, and lets an interrupted run go on."""

    model_config = ConfigDict(extra="ignore")

    nodes: dict[str, str] = {}
    """Fingerprint of the last committed artifact by node key."""
    graph: str = ""
    """Fingerprint of the graph that ran last."""
    finished: bool = True
    """Whether that run came to its end."""
    mlflow_run_id: str | None = None
    """Parent run of that run."""


class Store:
    """The folders of one store."""

    def __init__(self, store: str | Path) -> None:
        """Nothing is created until something is written."""
        self.artifacts = place_of(store)
        self.root = self.artifacts if isinstance(self.artifacts, Path) else Path(RECORDS_FOLDER).absolute()

    def artifact(self, node: Node) -> Artifact | None:
        """What is committed at the node's place; its fingerprint may differ where people chose the place."""
        return open_artifact(node.output)

    def last_artifact(self, node: Node, record: RunRecord) -> Artifact | None:
        """What this node was made from when the experiment last ran."""
        known = record.nodes.get(node.key)
        return open_artifact(self.artifacts / node.stage / known) if known else None

    def read_record(self, name: str) -> RunRecord:
        """The record of an experiment; an unreadable one counts as none, and only costs explanations."""
        try:
            return RunRecord.model_validate_json(self._record_file(name).read_text())
        except (OSError, ValidationError, UnicodeDecodeError):
            return RunRecord()

    def write_record(self, name: str, record: RunRecord) -> None:
        """Replace the record of an experiment."""
        path = self._record_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, record.model_dump_json(indent=2))

    def log_file(self, node: Node) -> Path:
        """Where the node's output goes; the job it was given stands beside it."""
        return self.root / "logs" / f"{node.key}-{node.fingerprint}.log"

    def report_file(self, name: str) -> Path:
        """Where the report of an experiment goes."""
        return self.root / "reports" / f"{name}.html"

    def _record_file(self, name: str) -> Path:
        return self.root / "runs" / f"{name}.json"
