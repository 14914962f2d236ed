"""Brings MLflow to what the record of a run, its artifacts and their journals say.

One MLflow run is the parent of all its stages; a stage that was executed is a child, a stage that was reused
is a tag that names the child of another run. Everything may be done again and is then done once: runs
are found by their tags, metrics follow the last step that MLflow has, and a run whose state tag is that of
the record is whole. The tag is set last.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.figures import save_stage_figures
from pipeline.history import RunRecord, StageRun
from pipeline.store import Store
from pipeline.tracking import content as c
from pipeline.tracking import students
from pipeline.tracking.server import brief
from stages.contract import Artifact, Follower, Manifest
from stages.contract.place import Place, uri_of
from stages.contract.quarantine import read_quarantine

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

RUN_TAG, STAGE_TAG, SWEEP_TAG = "vlsi.run", "vlsi.stage", "vlsi.sweep"
"""By which MLflow's runs are found: id of the record, node key on a child, name of a sweep on the run above."""
STEP_TAG = "vlsi.step"
"""The last step of the journal that MLflow has."""
STATE_TAG = "vlsi.state"
"""The state of record or stage that MLflow has whole."""
PARENT = ""
"""Where stages go by their key, the run itself goes by this."""
_PARENT_TAG, _NAME_TAG, _TABLES_TAG = "mlflow.parentRunId", "mlflow.runName", "mlflow.loggedArtifacts"
_STATUS = {"made": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "running": "KILLED", "stopped": "KILLED"}
_TAG_CHARACTERS = 5000


class Mirror:
    """Of the runs in one store, in one MLflow experiment; used by one thread."""

    def __init__(self, client: MlflowClient, experiment_id: str, store: Store) -> None:
        """Nothing is asked yet."""
        self._client = client
        self._experiment_id = experiment_id
        self._store = store
        self._followers: dict[str, Follower] = {}
        self._linked: set[tuple[str, str]] = set()
        self.warnings: dict[str, None] = {}
        """What MLflow could not take, each sentence once."""

    def is_whole(self, record: RunRecord) -> bool:
        """Whether MLflow has everything of a run."""
        parent = self._runs(record).get(PARENT)
        return parent is not None and parent.data.tags.get(STATE_TAG) == c.state_of(record)

    def bring(self, record: RunRecord) -> dict[str, str]:
        """Bring MLflow to what is there of a run now; MLflow's ids of the run and its stages, by node key.

        Raises:
            Exception: MLflow or the store did not do its part; what was brought stays.
        """
        runs = self._runs(record)
        parent = runs.get(PARENT) or self._create(record, self._parent_tags(record), record.started)
        ids = {key: run.info.run_id for key, run in runs.items()} | {PARENT: parent.info.run_id}
        if parent.data.tags.get(STATE_TAG) == c.state_of(record):
            return ids
        self._open(parent, record)
        self._describe(parent, record)
        for key, stage in record.stages.items():
            if stage.status not in ("waiting", "skipped"):
                self._bring_stage(record, key, stage, runs.get(key), ids)
        if _has_ended(record):
            self._close(parent, record)
        return ids

    def sweep(self, name: str) -> str:
        """MLflow's id of the run above all points of a sweep, made if it is not there."""
        found = self._search(f"tags.`{SWEEP_TAG}` = '{name}'")
        if found:
            return str(found[-1].info.run_id)
        tags = {SWEEP_TAG: name, _NAME_TAG: name}
        run_id = str(self._client.create_run(self._experiment_id, tags=tags).info.run_id)
        self._client.set_terminated(run_id, "FINISHED")
        return run_id

    def above(self, record: RunRecord) -> str | None:
        """MLflow's id of the run that a run is a point of."""
        return self.sweep(record.sweep) if record.sweep else None

    def _runs(self, record: RunRecord) -> dict[str, Run]:
        """The MLflow runs of a record, by node key; of two by accident the older one."""
        return {run.data.tags.get(STAGE_TAG, PARENT): run for run in self._search(f"tags.`{RUN_TAG}` = '{record.id}'")}

    def _search(self, wanted: str) -> list[Run]:
        """Newest first."""
        newest_first = ["attributes.start_time DESC"]
        return list(self._client.search_runs([self._experiment_id], wanted, order_by=newest_first))

    def _create(self, record: RunRecord, tags: dict[str, str], started: float | None) -> Run:
        start = c.milliseconds(started or time.time())
        return self._client.create_run(self._experiment_id, start, tags | {RUN_TAG: record.id} | record.origin)

    def _parent_tags(self, record: RunRecord) -> dict[str, str]:
        tags = {
            _NAME_TAG: record.experiment,
            "teacher": record.configuration["teacher"]["path"],
            "student": record.configuration["student"]["path"],
            "overrides": " ".join(record.overrides)[:_TAG_CHARACTERS],
        }
        return tags | {_PARENT_TAG: above} if (above := self.above(record)) else tags

    def _open(self, run: Run, record: RunRecord) -> None:
        """A run that goes on is running again, perhaps on another machine."""
        if run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, "RUNNING")
        self._set_tags(run, record.origin)

    def _describe(self, parent: Run, record: RunRecord) -> None:
        """Configuration and params; the params last, so that they say that it was done."""
        if not parent.data.params:
            self._client.log_dict(parent.info.run_id, record.configuration, "config.yaml")
            self._log_params(parent, c.configuration_params(record.configuration))

    def _bring_stage(
        self, record: RunRecord, key: str, stage: StageRun, child: Run | None, ids: dict[str, str]
    ) -> None:
        if child is not None and child.data.tags.get(STATE_TAG) == c.state_of(stage):
            return
        artifact = c.artifact_of(stage, self._store) if stage.status in ("made", "reused") else None
        if not _is_own(record, stage, artifact):
            self._link(ids[PARENT], key, stage, artifact)
            if child is None:
                return
            artifact = None
        if child is None:
            tags = {
                _NAME_TAG: key,
                _PARENT_TAG: ids[PARENT],
                STAGE_TAG: key,
                "fingerprint": stage.fingerprint,
                "artifact": uri_of(c.place_of_stage(stage, self._store)),
            }
            child = self._create(record, tags, stage.started)
        ids[key] = child.info.run_id
        self._open(child, record)
        content = c.Content.of_artifact(artifact) if artifact else self._work(stage)
        if content is not None:
            self._bring_content(child, content, stage, ids[PARENT])
        if artifact is not None:
            self._bring_artifact(child, artifact)
            self._register(record, key, artifact, ids)
        if stage.status != "running" or _has_ended(record):
            self._close_stage(child, record, stage)

    def _link(self, parent_id: str, key: str, stage: StageRun, artifact: Artifact | None) -> None:
        """Name the run that made what was reused, or what was made if no run is known."""
        if (parent_id, key) in self._linked:
            return
        maker = self._maker(artifact.manifest) if artifact else None
        self._client.set_tag(parent_id, f"reused.{key}".replace("@", "."), maker or stage.fingerprint)
        if artifact is not None:
            self._client.log_inputs(parent_id, c.datasets(c.Content.of_artifact(artifact), stage.stage))
        self._linked.add((parent_id, key))

    def _maker(self, manifest: Manifest) -> str | None:
        """MLflow's id of the run of a stage that made an artifact."""
        made = f"tags.fingerprint = '{manifest.fingerprint}' AND tags.`{RUN_TAG}` = '{manifest.run}'"
        found = self._search(made) if manifest.run else []
        return str(found[-1].info.run_id) if found else None

    def _bring_content(self, child: Run, content: c.Content, stage: StageRun, parent_id: str) -> None:
        """Settings, data and the measurements so far."""
        if not child.data.params:
            for run_id in (child.info.run_id, parent_id):
                self._client.log_inputs(run_id, c.datasets(content, stage.stage))
            self._client.log_dict(child.info.run_id, content.identity, "identity.json")
            self._log_params(child, c.identity_params(content.identity))
        self._follow(child, content.folder)

    def _follow(self, child: Run, folder: Place) -> None:
        """Append what the journal has after the last step that MLflow has."""
        from mlflow.entities import RunTag

        run_id = child.info.run_id
        last = float(child.data.tags.get(STEP_TAG, "-inf"))
        lines = self._followers.setdefault(run_id, Follower()).new_lines(folder)
        for batch in c.batches(line for line in lines if line["step"] > last):
            self._client.log_batch(run_id, metrics=batch, tags=[RunTag(STEP_TAG, str(batch[-1].step))])

    def _bring_artifact(self, child: Run, artifact: Artifact) -> None:
        """Figures, summary, versions, and what was left out."""
        run_id = child.info.run_id
        with TemporaryDirectory() as folder:
            save_stage_figures(artifact, Path(folder))
            self._client.log_artifacts(run_id, folder, "figures")
        self._client.log_dict(run_id, artifact.manifest.summary, "summary.json")
        bad = read_quarantine(artifact.path)
        self._client.log_metric(run_id, "quarantined", len(bad), c.milliseconds(artifact.manifest.started), 0)
        if bad:
            self._client.log_dict(run_id, c.quarantine_table(bad), "quarantine.json")
            self._client.set_tag(run_id, _TABLES_TAG, '[{"path": "quarantine.json", "type": "table"}]')
        self._set_tags(child, {f"version.{name}": version for name, version in artifact.manifest.versions.items()})

    def _register(self, record: RunRecord, key: str, artifact: Artifact, ids: dict[str, str]) -> None:
        """A server without a registry goes without the student, and nothing else."""
        from mlflow.exceptions import MlflowException

        if artifact.manifest.stage != students.EXPORTING_STAGE:
            return
        try:
            students.register(self._client, record, key, artifact, ids, self._maker)
        except MlflowException as error:
            if not students.lacks_registry(error):
                raise
            self.warnings[f"MLflow has no model registry, the student is not registered there: {brief(error)}"] = None

    def _close_stage(self, child: Run, record: RunRecord, stage: StageRun) -> None:
        run_id = child.info.run_id
        if stage.error:
            self._client.set_tag(run_id, "error", stage.error[:_TAG_CHARACTERS])
        elif "error" in child.data.tags:
            self._client.delete_tag(run_id, "error")
        took = stage.seconds if stage.status in ("made", "reused") else None
        ended = (stage.started or 0) + took if took is not None else record.ended or time.time()
        self._client.set_terminated(run_id, _STATUS.get(stage.status, "FINISHED"), c.milliseconds(ended))
        self._client.set_tag(run_id, STATE_TAG, c.state_of(stage))

    def _close(self, parent: Run, record: RunRecord) -> None:
        """Scores, the report if it was written in this run, the status."""
        run_id, ended = parent.info.run_id, record.ended or time.time()
        for row in record.scores:
            self._client.log_metric(run_id, row.metric, row.overall, c.milliseconds(ended), 0)
        report = self._store.report_file(record.experiment)
        if report.is_file() and record.started <= report.stat().st_mtime <= ended:
            self._client.log_artifact(run_id, str(report))
        self._client.set_terminated(run_id, _STATUS[record.status], c.milliseconds(ended))
        self._client.set_tag(run_id, STATE_TAG, c.state_of(record))

    def _work(self, stage: StageRun) -> c.Content | None:
        return (
            c.Content.of_work(c.place_of_stage(stage, self._store)) if stage.status in ("running", "failed") else None
        )

    def _log_params(self, run: Run, params: list[Any]) -> None:
        for start in range(0, len(params), c.PARAMS_OF_A_BATCH):
            self._client.log_batch(run.info.run_id, params=params[start : start + c.PARAMS_OF_A_BATCH])

    def _set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        """Those that are not there yet, with one request."""
        from mlflow.entities import RunTag

        changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
        if changed:
            self._client.log_batch(run.info.run_id, tags=changed)


def _is_own(record: RunRecord, stage: StageRun, artifact: Artifact | None) -> bool:
    """Whether this run made the stage's artifact, or tries to; also in an attempt before this one."""
    if artifact is None:
        return stage.status != "reused"
    return artifact.manifest.run == record.id or (artifact.manifest.run is None and stage.status == "made")


def _has_ended(record: RunRecord) -> bool:
    """Also when the process that ran it could not say so."""
    return record.status != "running" or record.is_interrupted
