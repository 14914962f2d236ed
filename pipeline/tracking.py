"""MLflow: one parent run for each `vlsi run`, a child for each stage that is executed.

An interrupted or failed run is continued under its old parent. Reused stages are tags on the parent
that name the run that made them. Everything is best effort: the first error is printed and ends
tracking for this run, never the run itself; the journals in the artifacts are the record.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from pipeline.executors import StageFailed
from pipeline.experiment import Experiment
from pipeline.figures import stage_figures
from pipeline.graph import Graph, Node, Source
from pipeline.history import RunRecord
from pipeline.identity import flatten, spell
from pipeline.results import Scores
from pipeline.store import Store
from stages.contract import Artifact
from stages.contract.place import uri_of
from stages.contract.quarantine import read_quarantine

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

URI_VARIABLE = "MLFLOW_TRACKING_URI"
FLUSH_SECONDS = 2.0
PARAM_CHARACTERS = 6000
BATCH = 100
"""MLflow takes this many params in one request."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""A dead server costs seconds; MLflow's own defaults would wait for minutes."""

P = ParamSpec("P")


def tracking_uri(store: Store) -> str:
    """The server named by MLFLOW_TRACKING_URI, else a database in the store."""
    return os.environ.get(URI_VARIABLE) or f"sqlite:///{store.root / 'mlflow.db'}"


def best_effort(method: Callable[Concatenate[Tracker, P], None]) -> Callable[Concatenate[Tracker, P], None]:
    """Let an error in a tracking call end tracking and nothing else."""

    @wraps(method)
    def guarded(self: Tracker, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.alive:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.alive = False
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            self._warn(f"MLflow at {self.uri} does not work, going on without it: {reason}")

    return guarded


class Tracker:
    """An observer of the runner that writes to MLflow between entering and leaving."""

    def __init__(
        self, experiment: Experiment, graph: Graph, store: Store, record: RunRecord, warn: Callable[[str], None]
    ) -> None:
        """Nothing is imported or written before the tracker is entered."""
        self.alive = experiment.tracking.enabled
        self.uri = tracking_uri(store)
        self._experiment = experiment
        self._graph = graph
        self._store = store
        self._record = record
        self._warn = warn
        self._client: MlflowClient
        self._experiment_id = ""
        self._parent = ""
        self._children: dict[str, str] = {}
        self._pending: dict[str, list[Metric]] = {}
        self._flushed = 0.0
        self._failed = False

    def __enter__(self) -> Tracker:
        """Open the parent run, or open it again."""
        self._connect()
        self._open_parent()
        self._describe()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close every run that is still open."""
        self._close("FINISHED" if kind is None and not self._failed else "FAILED" if self._failed else "KILLED")

    @best_effort
    def reused(self, node: Node, artifact: Artifact) -> None:
        """Link the run that made what is reused."""
        maker = artifact.manifest.mlflow_run_id or artifact.manifest.fingerprint
        self._client.set_tag(self._parent, f"reused.{node.key}".replace("@", "."), maker)

    def started(self, node: Node) -> dict[str, str]:
        """Open a child run; the stage writes its id into the manifest."""
        self._open_child(node)
        run_id = self._children.get(node.key)
        return {URI_VARIABLE: self.uri, "MLFLOW_RUN_ID": run_id} if run_id and self.alive else {}

    @best_effort
    def line(self, node: Node, line: Mapping[str, Any]) -> None:
        """Mirror a journal line, a few seconds late at most."""
        self._pending.setdefault(node.key, []).extend(_metrics(line))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    @best_effort
    def finished(self, node: Node, artifact: Artifact) -> None:
        """Add figures and the exported student, close the child run."""
        self._flush()
        run_id = self._children.pop(node.key)
        for name, figure in stage_figures(artifact).items():
            self._client.log_figure(run_id, figure, f"figures/{name}.png")
        self._client.log_dict(run_id, artifact.manifest.summary, "summary.json")
        self._log_quarantine(artifact, run_id)
        if node.stage == "reinforcement":
            self._register_student(node, run_id)
        self._client.set_terminated(run_id, "FINISHED")

    @best_effort
    def failed(self, node: Node, error: StageFailed) -> None:
        """Keep the message, close the child run as failed."""
        self._failed = True
        self._flush()
        run_id = self._children.pop(node.key)
        self._client.log_text(run_id, str(error), "error.txt")
        self._client.set_terminated(run_id, "FAILED")

    @best_effort
    def headline(self, scores: Sequence[Scores]) -> None:
        """Put the scores on the parent, where the experiment's table compares runs."""
        for row in scores:
            self._client.log_metric(self._parent, row.metric, row.overall)

    @best_effort
    def attach(self, file: Path) -> None:
        """Keep a file with the parent run."""
        self._client.log_artifact(self._parent, str(file))

    @best_effort
    def _connect(self) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # set_tracking_uri writes the variable itself, so whose server it is has to be known before.
        local = None if URI_VARIABLE in os.environ else (self._store.root / "mlruns").as_uri()
        mlflow.set_tracking_uri(self.uri)
        self._store.root.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(self.uri)
        name = self._experiment.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        self._experiment_id = found.experiment_id if found else self._client.create_experiment(name, local)

    @best_effort
    def _open_parent(self) -> None:
        """Continue the run of the record, else begin one."""
        previous = self._record.mlflow_run_id
        if previous and self._run_exists(previous):
            self._parent = previous
            self._client.update_run(previous, "RUNNING")
            return
        tags = {
            "mlflow.runName": self._experiment.name,
            "teacher": self._experiment.teacher.path,
            "student": self._experiment.student.path,
        }
        self._parent = self._client.create_run(self._experiment_id, tags=tags).info.run_id
        self._record.mlflow_run_id = self._parent

    @best_effort
    def _describe(self) -> None:
        """Put what is compared on the parent as params, and the whole configuration as an artifact."""
        main = [node for node in self._graph.nodes if "@" not in node.key]
        self._log_params(self._parent, {key: value for node in main for key, value in flatten(node.identity).items()})
        self._client.log_dict(self._parent, self._experiment.model_dump(mode="json"), "config.yaml")

    def _run_exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(run_id).info.experiment_id == self._experiment_id
        except MlflowException:
            return False

    @best_effort
    def _open_child(self, node: Node) -> None:
        tags = {"mlflow.parentRunId": self._parent, "mlflow.runName": node.key, "fingerprint": node.fingerprint}
        run_id = self._client.create_run(self._experiment_id, tags=tags).info.run_id
        self._children[node.key] = run_id
        self._log_params(run_id, flatten(node.identity))
        self._client.log_dict(run_id, node.identity, "identity.json")
        self._log_datasets(run_id, node)

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entities = [Param(key, spell(value)[:PARAM_CHARACTERS]) for key, value in params.items()]
        for start in range(0, len(entities), BATCH):
            self._client.log_batch(run_id, params=entities[start : start + BATCH])

    def _log_datasets(self, run_id: str, node: Node) -> None:
        from mlflow.entities import Dataset, DatasetInput

        for name, source in node.inputs.items():
            if name == "samples" and isinstance(source, Source):
                dataset = Dataset(Path(source.place).stem, source.digest, "local", source.place)
                self._client.log_inputs(run_id, [DatasetInput(dataset)])

    def _log_quarantine(self, artifact: Artifact, run_id: str) -> None:
        """How many samples the stage left out, and which."""
        bad = read_quarantine(artifact.path)
        self._client.log_metric(run_id, "quarantined", len(bad))
        if bad:
            columns = {name: [getattr(line, name) for line in bad] for name in ("id", "line", "reason")}
            self._client.log_table(run_id, columns, "quarantine.json")

    def _register_student(self, node: Node, run_id: str) -> None:
        """Name the checkpoint as a model whose weights stay in the store."""
        import mlflow

        mlflow.create_external_model(
            name=f"{self._experiment.name}-{node.key}".replace(".", "_").replace("@", "-"),
            source_run_id=run_id,
            experiment_id=self._experiment_id,
            tags={"weights": uri_of(node.output), "fingerprint": node.fingerprint},
            model_type="image-text-to-text",
        )

    def _flush(self) -> None:
        for key, metrics in self._pending.items():
            for start in range(0, len(metrics), 10 * BATCH):
                self._client.log_batch(self._children[key], metrics=metrics[start : start + 10 * BATCH])
        self._pending.clear()
        self._flushed = time.monotonic()

    @best_effort
    def _close(self, status: str) -> None:
        for run_id in self._children.values():
            self._client.set_terminated(run_id, "KILLED")
        self._client.set_terminated(self._parent, status)


def _metrics(line: Mapping[str, Any]) -> Iterator[Metric]:
    """The numbers of a journal line; a list of numbers becomes one metric for each entry."""
    from mlflow.entities import Metric

    for key, value in line.items():
        if key in ("step", "total", "unit", "time"):
            continue
        named = {f"{key}.{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {key: value}
        for name, number in named.items():
            if isinstance(number, int | float):
                yield Metric(name, float(number), int(line.get("time", 0) * 1000), int(line["step"]))
