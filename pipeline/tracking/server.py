"""The MLflow that a store is mirrored in: where it is, and how long one request may take."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from pipeline.store import Store

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

URI_VARIABLE = "MLFLOW_TRACKING_URI"
_MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What fails is tried again later, where MLflow's own defaults would wait for minutes; and nothing is printed."""


def tracking_uri(store: Store) -> str:
    """The server named by MLFLOW_TRACKING_URI, else a database in the store."""
    return os.environ.get(URI_VARIABLE) or f"sqlite:///{store.root / 'mlflow.db'}"


def connect(store: Store) -> MlflowClient:
    """A client; a server is not asked yet, a database is made if it is not there."""
    for name, value in _MANNERS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if URI_VARIABLE not in os.environ:
        store.root.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri(store))


def experiment_id(client: MlflowClient, name: str, store: Store) -> str:
    """The MLflow experiment of this name, made if it is not there; without a server its files are in the store."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = None if URI_VARIABLE in os.environ else (store.root / "mlruns").as_uri()
    return str(client.create_experiment(name, local))


def brief(error: BaseException) -> str:
    """An error of MLflow's as part of a sentence."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
