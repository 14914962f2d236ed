"""What all tests share: how they are dealt to processes, and an object store for whoever wants one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stages.contract.place import Remote
from tests.object_store import BUCKET, ENVIRONMENT, Server, serve


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much chaos there is."""
    parser.addoption("--kills", type=int, default=6, help="kills in tests/test_chaos.py, over all six stages")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay in one process, for its fixtures; those with a Ray share one too, and begin first."""
    items.sort(key=lambda item: "ray" not in item.keywords)
    for item in items:
        uses_ray = "ray" in item.keywords
        item.add_marker(pytest.mark.xdist_group("ray" if uses_ray else item.nodeid.partition("::")[0]))
        if uses_ray:
            item.add_marker(pytest.mark.flaky(reruns=1))


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
