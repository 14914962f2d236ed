"""What MLflow shows of a run, in MLflow's terms: params, metrics, datasets, tables. Asks no server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.history import RunRecord, StageRun
from pipeline.identity import dotted, fingerprint, flatten, spell
from pipeline.store import Store
from stages.contract import Artifact, Job, open_artifact
from stages.contract.artifact import has_work, work_folder
from stages.contract.files import JOB_FILE
from stages.contract.place import Place
from stages.contract.quarantine import BadLine

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Param

PARAM_CHARACTERS = 6000
"""MLflow cuts what is longer."""
METRICS_OF_A_BATCH, PARAMS_OF_A_BATCH = 1000, 100
"""MLflow takes this many in one request."""
_NOT_COMPARED = ("name", "store", "prepared", "prepare", "variants", "executor", "tracking")
"""Of an experiment: where and how it runs, and what is trained beside it."""
_OF_THE_BAR = ("step", "total", "unit", "time")
"""Of a journal line: no measurements."""


@dataclass(frozen=True)
class Content:
    """What the store holds of one stage of one run.

    Attributes:
        folder: of the files, among them the journal; the stage may still write there.
        identity: what the stage's fingerprint is made of.
        inputs: places by name.
        artifact: once it is committed.
    """

    folder: Place
    identity: dict[str, Any]
    inputs: dict[str, str]
    artifact: Artifact | None = None

    @classmethod
    def of_artifact(cls, artifact: Artifact) -> Content:
        """Of a stage that came to its end."""
        return cls(artifact.path, artifact.manifest.identity, artifact.manifest.inputs, artifact)

    @classmethod
    def of_work(cls, place: Place) -> Content | None:
        """Of a stage that runs, or did not come to its end; nothing before it wrote down its job."""
        folder = work_folder(place)
        if not has_work(place) or not (folder / JOB_FILE).is_file():
            return None
        job = Job.model_validate_json((folder / JOB_FILE).read_text())
        return cls(folder, job.identity, job.inputs)


def artifact_of(stage: StageRun, store: Store) -> Artifact | None:
    """What is committed where a stage of a run was to leave its result."""
    return open_artifact(place_of_stage(stage, store))


def place_of_stage(stage: StageRun, store: Store) -> Place:
    """Where a stage of a run leaves its result."""
    return store.artifacts / stage.stage / stage.fingerprint


def state_of(record: RunRecord | StageRun) -> str:
    """Hash of everything MLflow is to know; MLflow keeps it as the mark of what is whole."""
    said = record.model_dump(mode="json", exclude={"mlflow_run_id": True})
    for stage in said.get("stages", {}).values():
        stage.pop("mlflow_run_id")
    return fingerprint(said)


def configuration_params(configuration: dict[str, Any]) -> list[Param]:
    """What runs are compared by: every setting that can change a result, under the same key in every run."""
    compared = {key: value for key, value in configuration.items() if key not in _NOT_COMPARED}
    return _params(dotted(compared))


def identity_params(identity: dict[str, Any]) -> list[Param]:
    """The settings of one stage, under the keys that the whole run has for them."""
    return _params(flatten(identity))


def batches(lines: Iterable[Mapping[str, Any]]) -> Iterator[list[Metric]]:
    """The numbers of journal lines in requests of a size that MLflow takes, lines whole."""
    batch: list[Metric] = []
    for line in lines:
        numbers = list(_metrics(line))
        if batch and len(batch) + len(numbers) > METRICS_OF_A_BATCH:
            yield batch
            batch = []
        batch += numbers
    if batch:
        yield batch


def datasets(content: Content, stage: str) -> list[DatasetInput]:
    """The samples a stage read, with the digest that its fingerprint is made of."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    place = content.inputs.get("samples")
    if place is None:
        return []
    dataset = Dataset(Path(place.partition("#")[0]).stem, content.identity["inputs"]["samples"], "local", place)
    context = "evaluation" if stage == "evaluation" else "training"
    return [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]


def quarantine_table(bad: list[BadLine]) -> dict[str, Any]:
    """The samples that a stage left out, as MLflow stores tables."""
    columns = ("id", "line", "reason")
    return {"columns": columns, "data": [[getattr(line, name) for name in columns] for line in bad]}


def _metrics(line: Mapping[str, Any]) -> Iterator[Metric]:
    """The numbers of a journal line; a list of numbers becomes one metric for each entry."""
    from mlflow.entities import Metric

    for key, value in line.items():
        if key in _OF_THE_BAR:
            continue
        named = {f"{key}.{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {key: value}
        for name, number in named.items():
            if isinstance(number, int | float):
                yield Metric(name, float(number), milliseconds(line.get("time", 0)), int(line["step"]))


def milliseconds(seconds: float) -> int:
    """Since the epoch, as MLflow counts."""
    return round(seconds * 1000)


def _params(values: Mapping[str, Any]) -> list[Param]:
    from mlflow.entities import Param

    return [Param(key, spell(value)[:PARAM_CHARACTERS]) for key, value in values.items()]
