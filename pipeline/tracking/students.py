"""The students a run exports, as versions of registered models whose weights stay in the store.

A version leads back to everything it was made from: teacher, data, cache, configuration, code, and the
MLflow run of every stage before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.history import RunRecord
from pipeline.origin import GIT_COMMIT, GIT_DIRTY
from stages.contract import Artifact, Manifest, open_artifact
from stages.contract.place import place_of, uri_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow.entities import LoggedModel
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

EXPORTING_STAGE = "reinforcement"
_IS_EXTERNAL = "mlflow.model.isExternal"
_NO_REGISTRY = ("ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "NOT_IMPLEMENTED")
_LEAVES = {"teacher": "teacher", "student": "backbone", "samples": "data"}
"""Names of what comes from outside the store: as stages call it, as a version's tags do."""


def model_name(record: RunRecord, key: str) -> str:
    """The experiment's name, followed by the variant's where the student is one; MLflow forbids dots."""
    variant = key.partition("@")[2]
    return "-".join(part for part in (record.experiment, variant) if part).replace(".", "_")


def register(
    client: MlflowClient,
    record: RunRecord,
    key: str,
    artifact: Artifact,
    runs: dict[str, str],
    maker: Callable[[Manifest], str | None],
) -> None:
    """Make the student of a run a version of its registered model, once for each fingerprint.

    Args:
        client: of the server.
        record: of the run that made the student.
        key: of the node that exported it.
        artifact: the student.
        runs: MLflow ids of the run (under the empty name) and its stages.
        maker: the MLflow id of the run that made an artifact, if there is one.
    """
    name, fingerprint = model_name(record, key), artifact.manifest.fingerprint
    if client.search_model_versions(f"name = '{name}' AND tags.fingerprint = '{fingerprint}'"):
        return
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"Students of the experiment {record.experiment}.")
    tags = _lineage_tags(record, artifact, runs[""], maker)
    model = _logged_model(client, name, tags, runs[key])
    _create_version(client, name, artifact, runs[key], model, tags)


def lacks_registry(error: MlflowException) -> bool:
    """Whether a server says that it has none, rather than that something went wrong."""
    return str(getattr(error, "error_code", "")) in _NO_REGISTRY or "UnsupportedModelRegistry" in type(error).__name__


def upstream_of(artifact: Artifact) -> dict[str, Manifest]:
    """The manifests of everything an artifact was made from, by stage, the nearest first."""
    found: dict[str, Manifest] = {}
    for place in artifact.manifest.inputs.values():
        source = open_artifact(place_of(place))
        if source is not None and source.manifest.stage not in found:
            found[source.manifest.stage] = source.manifest
            found |= upstream_of(source)
    return found


def _lineage_tags(
    record: RunRecord, student: Artifact, run_id: str, maker: Callable[[Manifest], str | None]
) -> dict[str, str]:
    upstream = upstream_of(student)
    manifests = {EXPORTING_STAGE: student.manifest, **upstream}
    tags = {
        "fingerprint": student.manifest.fingerprint,
        "weights": uri_of(student.path),
        "run": record.id,
        "configuration": f"runs:/{run_id}/config.yaml",
        "cache": upstream["precompute"].fingerprint if "precompute" in upstream else "none",
    }
    for stage, manifest in manifests.items():
        tags[f"fingerprint.{stage}"] = manifest.fingerprint
        if maker_id := maker(manifest):
            tags[f"run.{stage}"] = maker_id
        tags |= _leaf_tags(manifest)
    code = {key: record.origin[key] for key in (GIT_COMMIT, GIT_DIRTY, "version.vlsi") if key in record.origin}
    return tags | code


def _leaf_tags(manifest: Manifest) -> dict[str, str]:
    """Place and digest of what a stage read from outside the store."""
    tags: dict[str, str] = {}
    for name, called in _LEAVES.items():
        place = manifest.inputs.get(name)
        if place is not None and open_artifact(place_of(place)) is None:
            tags |= {called: place, f"{called}.digest": str(manifest.identity["inputs"][name])}
    return tags


def _logged_model(client: MlflowClient, name: str, tags: dict[str, str], run_id: str) -> LoggedModel:
    """What MLflow shows as the output of a run; a mark without files, made once."""
    experiment = client.get_run(run_id).info.experiment_id
    wanted = f"name = '{name}' AND tags.fingerprint = '{tags['fingerprint']}'"
    found = client.search_logged_models([experiment], filter_string=wanted)
    if found:
        return found[0]
    model = client.create_logged_model(
        experiment, name, run_id, tags | {_IS_EXTERNAL: "true"}, model_type="image-text-to-text"
    )
    return client.finalize_logged_model(model.model_id, "READY")


def _create_version(
    client: MlflowClient, name: str, artifact: Artifact, run_id: str, model: LoggedModel, tags: dict[str, str]
) -> None:
    """Point to the weights; servers refuse paths of other machines, and then the logged model stands for them."""
    from mlflow.exceptions import MlflowException

    rest: dict[str, Any] = {"run_id": run_id, "tags": tags, "await_creation_for": 0}
    try:
        client.create_model_version(name, uri_of(artifact.path), **rest)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        client.create_model_version(name, f"models:/{model.model_id}", model_id=model.model_id, **rest)
