"""What all tests share: how they are dealt to processes, and an object store for whoever wants one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from stages.contract.place import Remote
from tests.object_store import BUCKET, ENVIRONMENT, Server, serve

RAY_FILES = (
    "tests/stages/test_on_ray.py",
    "tests/test_chaos.py",
    "tests/test_end_to_end.py",
    "tests/stages/test_cluster.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much chaos there is."""
    parser.addoption("--kills", type=int, default=6, help="kills in tests/test_chaos.py, over all six stages")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that start a Ray begin first, and have a second try."""
    items.sort(key=lambda item: not _starts_ray(item.nodeid))
    for item in items:
        if _starts_ray(item.nodeid):
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.flaky(reruns=1))


class ByFile(LoadScopeScheduling):
    """A file's tests stay in one process, for its fixtures; one process has all that start a Ray."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if _starts_ray(nodeid) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """How tests are dealt to processes."""
    return ByFile(config, log)


def _starts_ray(nodeid: str) -> bool:
    return nodeid.partition("::")[0] in RAY_FILES


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
