"""While a run or a sweep goes on: an observer of the runner, and a thread that repeats the mirror.

The run never waits for MLflow. When it ends it waits some seconds for the last repetition, and if that does
not come says so in one line; `vlsi sync-tracking` brings the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.executors import StageFailed
from pipeline.experiment import Tracking
from pipeline.graph import Node
from pipeline.history import Recorder, RunRecord
from pipeline.store import Store
from pipeline.tracking.machines import MachineMonitor
from pipeline.tracking.mirror import PARENT, Mirror
from pipeline.tracking.server import brief, connect, experiment_id, tracking_uri
from stages.contract import Artifact

REPEAT_SECONDS = 3.0
PATIENCE_SECONDS = 5.0
"""That the end of a run waits for a server, which may never answer."""
LOCAL_PATIENCE_SECONDS = 20.0
"""That it waits for a database on this machine."""


class Tracker:
    """Mirrors runs in MLflow between entering and leaving; what it knows of MLflow's ids goes into their records."""

    def __init__(
        self, settings: Tracking, store: Store, recorders: Sequence[Recorder], warn: Callable[[str], None]
    ) -> None:
        """Nothing is imported or written before the tracker is entered; a sweep has several recorders."""
        self._settings = settings
        self._store = store
        self._recorders = recorders
        self._warn = warn
        self._snapshots: list[RunRecord] = []
        self._brought: dict[str, RunRecord] = {}
        self._ids: dict[str, Mapping[str, str]] = {}
        self._error: Exception | None = None
        self._warnings: list[str] = []
        self._mirror: Mirror | None = None
        self._machine = MachineMonitor(tracking_uri(store))
        self._awake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="mlflow", daemon=True)

    def __enter__(self) -> Tracker:
        """Begin to repeat, unless tracking is off."""
        self._changed()
        if self._settings.enabled:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Mirror the end of the run, with some patience."""
        if not self._settings.enabled:
            return
        self._changed()
        self._closing.set()
        self._awake.set()
        uri = tracking_uri(self._store)
        self._thread.join(LOCAL_PATIENCE_SECONDS if uri.startswith("sqlite:") else PATIENCE_SECONDS)
        self._keep_ids()
        for recorder in self._recorders:
            recorder.save()
        for warning in self._warnings:
            self._warn(warning)
        if self._thread.is_alive() or self._error is not None:
            reason = brief(self._error) if self._error is not None else "it does not answer"
            runs = [recorder.record.id for recorder in self._recorders]
            command = " ".join(["vlsi sync-tracking", *(runs if len(runs) == 1 else [])])
            self._warn(f"MLflow at {uri} does not have all of this run ({reason}); bring it there with: {command}")

    def reused(self, node: Node, artifact: Artifact) -> None:
        """A stage to link."""
        self._changed()

    def started(self, node: Node) -> dict[str, str]:
        """A stage to follow."""
        self._changed()
        return {}

    def line(self, node: Node, line: Mapping[str, Any]) -> None:
        """Nothing: the thread reads the journal itself."""

    def finished(self, node: Node, artifact: Artifact) -> None:
        """A stage to close."""
        self._changed()

    def failed(self, node: Node, error: StageFailed) -> None:
        """A stage to close."""
        self._changed()

    def _changed(self) -> None:
        """Hand the thread copies of the records that nobody changes."""
        if not self._settings.enabled:
            return
        self._keep_ids()
        self._snapshots = [recorder.record.snapshot() for recorder in self._recorders]
        self._awake.set()

    def _keep_ids(self) -> None:
        for recorder in self._recorders:
            record = recorder.record
            ids = self._ids.get(record.id, {})
            record.mlflow_run_id = ids.get(PARENT, record.mlflow_run_id)
            for key, stage in record.stages.items():
                stage.mlflow_run_id = ids.get(key, stage.mlflow_run_id)

    def _repeat(self) -> None:
        """The thread: mirror whenever something happens, and from time to time; a last time at the end."""
        closing = False
        while not closing:
            self._awake.wait(REPEAT_SECONDS)
            self._awake.clear()
            closing = self._closing.is_set()
            self._bring()
        self._machine.leave()

    def _bring(self) -> None:
        try:
            self._mirror = self._mirror or self._open()
            for record in self._snapshots:
                if self._brought.get(record.id) != record or _has_running_stages(record):
                    self._ids[record.id] = self._mirror.bring(record)
                    self._brought[record.id] = record
            self._warnings = list(self._mirror.warnings)
            if running := [record for record in self._snapshots if record.status == "running"]:
                self._machine.watch(self._ids[running[0].id][PARENT])
            self._error = None
        except Exception as error:
            # What the mirror and the monitor remember may not have arrived.
            self._mirror, self._error = None, error
            self._brought.clear()
            self._machine.leave()

    def _open(self) -> Mirror:
        client = connect(self._store)
        return Mirror(client, experiment_id(client, self._settings.experiment, self._store), self._store)


def _has_running_stages(record: RunRecord) -> bool:
    """Whether there are journals to follow."""
    return any(stage.status == "running" for stage in record.stages.values())
