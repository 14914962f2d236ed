"""One thread a process: two cores that spin for each other are slower than one. And an object store."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator

import pytest
import torch

from stages.contract.place import Remote
from tests.stages.object_store import BUCKET, ENVIRONMENT, Server, serve

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def store() -> Iterator[Server]:
    """An S3 server, which the environment then names."""
    with serve() as server, pytest.MonkeyPatch.context() as environment:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server.endpoint}).items():
            environment.setenv(name, value)
        yield server


@pytest.fixture
def bucket(store: Server) -> Remote:
    """Its bucket."""
    return Remote(f"s3://{BUCKET}")
