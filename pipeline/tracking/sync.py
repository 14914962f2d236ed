"""After runs: bring MLflow to what is recorded of those it does not have whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.history import RunRecord
from pipeline.store import Store
from pipeline.tracking.mirror import PARENT, Mirror
from pipeline.tracking.server import brief, connect, experiment_id

Result = Literal["brought", "whole", "running", "failed"]


@dataclass(frozen=True)
class Synced:
    """What became of one run in MLflow.

    Attributes:
        run: id of its record.
        experiment: its name.
        result: `brought` there now, `whole` before, `running` (its own process brings it), or `failed`.
        mlflow_run_id: where it is.
        reason: of a failure, and what MLflow could not take.
    """

    run: str
    experiment: str
    result: Result
    mlflow_run_id: str | None
    reason: str | None = None


def sync(records: Sequence[RunRecord], store: Store) -> Iterator[Synced]:
    """Bring runs to MLflow, in this order: a run links the runs before it. A failure is the last result."""
    for record in records:
        try:
            yield _sync_one(record, store)
        except Exception as error:
            yield Synced(record.id, record.experiment, "failed", record.mlflow_run_id, brief(error))
            return


def _sync_one(record: RunRecord, store: Store) -> Synced:
    if record.status == "running" and not record.is_interrupted:
        return Synced(record.id, record.experiment, "running", record.mlflow_run_id)
    client = connect(store)
    name = record.configuration["tracking"]["experiment"]
    mirror = Mirror(client, experiment_id(client, name, store), store)
    was_whole = mirror.is_whole(record)
    ids = mirror.bring(record)
    reason = "; ".join(mirror.warnings) or None
    return Synced(record.id, record.experiment, "whole" if was_whole else "brought", ids[PARENT], reason)
