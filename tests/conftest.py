"""An object store for whoever wants one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stages.contract.place import Remote
from tests.object_store import BUCKET, ENVIRONMENT, Server, serve


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
