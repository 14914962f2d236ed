"""The store: one folder for artifacts, the history of runs, logs and reports.

<store>/<stage>/<fingerprint>/     artifacts, see `stages.contract`
<store>/runs/<experiment>/         a record of every run, see `pipeline.history`
<store>/logs/                      what each stage printed, and the job it was given
<store>/reports/<experiment>.html  what `vlsi report` writes; of runs that are named `<run>-<run>.html`
<store>/reports/<experiment>-<sweep>.csv, .png, .svg   what `vlsi sweep` writes

With artifacts in an object store, logs and reports are in `vlsi-records` below the current folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.graph import Node
from stages.contract import Artifact, open_artifact
from stages.contract.place import place_of

RECORDS_FOLDER = "vlsi-records"


class Store:
    """The folders of one store."""

    def __init__(self, store: str | Path) -> None:
        """Nothing is created until something is written."""
        self.artifacts = place_of(store)
        self.root = self.artifacts if isinstance(self.artifacts, Path) else Path(RECORDS_FOLDER).absolute()

    def artifact(self, node: Node) -> Artifact | None:
        """What is committed at the node's place; its fingerprint may differ where people chose the place."""
        return open_artifact(node.output)

    def known_artifact(self, node: Node, fingerprint: str | None) -> Artifact | None:
        """What this node was made from before, if that is known and still there."""
        return open_artifact(self.artifacts / node.stage / fingerprint) if fingerprint else None

    def identity(self, name: str) -> dict[str, Any] | None:
        """What the artifact `stage/fingerprint` was made of, if it is still there."""
        artifact = open_artifact(self.artifacts / name)
        return artifact.manifest.identity if artifact else None

    def log_file(self, node: Node) -> Path:
        """Where the node's output goes; the job it was given stands beside it."""
        return self.root / "logs" / f"{node.key}-{node.fingerprint}.log"

    def report_file(self, name: str) -> Path:
        """Where the report of an experiment goes."""
        return self.root / "reports" / f"{name}.html"

    def sweep_file(self, name: str, suffix: str) -> Path:
        """Where the values or the figure of a sweep go."""
        return self.root / "reports" / f"{name}.{suffix}"
