"""While a run goes on: an observer of the runner, and a thread that repeats the mirror.

The run never waits for MLflow. When it ends it waits some seconds for the last repetition, and if that does
not come says so in one line; `vlsi sync-tracking` brings the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.executors import StageFailed
from pipeline.experiment import Tracking
from pipeline.graph import Node
from pipeline.history import Recorder
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
    """Mirrors one run in MLflow between entering and leaving; what it knows of MLflow's ids goes into the record."""

    def __init__(self, settings: Tracking, store: Store, recorder: Recorder, warn: Callable[[str], None]) -> None:
        """Nothing is imported or written before the tracker is entered."""
        self._settings = settings
        self._store = store
        self._recorder = recorder
        self._warn = warn
        self._snapshot = recorder.record.model_copy(deep=True)
        self._ids: Mapping[str, str] = {}
        self._error: Exception | None = None
        self._warnings: list[str] = []
        self._mirror: Mirror | None = None
        self._machine = MachineMonitor(tracking_uri(store))
        self._awake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="mlflow", daemon=True)

    def __enter__(self) -> Tracker:
        """Begin to repeat, unless tracking is off."""
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
        self._recorder.save()
        for warning in self._warnings:
            self._warn(warning)
        if self._thread.is_alive() or self._error is not None:
            reason = brief(self._error) if self._error is not None else "it does not answer"
            command = f"vlsi sync-tracking {self._recorder.record.id}"
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
        """Hand the thread a copy of the record that nobody changes."""
        self._keep_ids()
        self._snapshot = self._recorder.record.model_copy(deep=True)
        self._awake.set()

    def _keep_ids(self) -> None:
        record, ids = self._recorder.record, self._ids
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
            self._ids = self._mirror.bring(self._snapshot)
            self._warnings = list(self._mirror.warnings)
            if self._snapshot.status == "running":
                self._machine.watch(self._ids[PARENT])
            self._error = None
        except Exception as error:
            # What the mirror and the monitor remember may not have arrived.
            self._mirror, self._error = None, error
            self._machine.leave()

    def _open(self) -> Mirror:
        client = connect(self._store)
        return Mirror(client, experiment_id(client, self._settings.experiment, self._store), self._store)
