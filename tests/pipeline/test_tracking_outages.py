"""MLflow is away, silent, full, or dies in the middle: the run ends well, and the gap is filled afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Command, FakeExecutor, Runs

from pipeline.history import RunRecord
from pipeline.session import Session
from stages.contract import read_journal
from stages.contract.place import place_of

START_SECONDS = 200
"""That a server may take to start on a busy machine; alone it takes about ten."""


class Server:
    """A real MLflow server with its database in a folder; it can be killed and started again at its address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Return when it answers."""
        options = {"backend-store-uri": f"sqlite:///{self._folder}/server.db", "port": self._port, "workers": 1}
        options |= {"artifacts-destination": self._folder / "files", "host": "127.0.0.1"}
        command = [sys.executable, "-m", "mlflow", "server", *(f"--{k}={v}" for k, v in options.items())]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._folder, env=environment, start_new_session=True
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            assert time.monotonic() < end, (self._folder / "server.log").read_text()
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """With everything that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False


class Odd(BaseHTTPRequestHandler):
    """Answers 507 to everything, once it may."""

    may_answer: threading.Event

    def do_GET(self) -> None:
        self.may_answer.wait(60)
        with suppress(OSError):
            self.send_error(507)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, fresh_database: bytes) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "server.db").write_bytes(fresh_database)
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def odd_server() -> Iterator[tuple[str, threading.Event]]:
    may_answer = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Odd,), {"may_answer": may_answer}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", may_answer
    may_answer.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setattr("pipeline.tracking.tracker.PATIENCE_SECONDS", 60.0)


def whole_record() -> RunRecord:
    """The last run's record, which lacks nothing, nor do the journals of its stages."""
    session = Session.open(["~variants"])
    record = session.history.last("digits")
    assert record is not None
    assert record.status == "finished"
    assert {stage.status for stage in record.stages.values()} == {"made"}
    for stage in record.stages.values():
        folder = place_of(record.configuration["store"]) / stage.stage / stage.fingerprint
        assert [line["step"] for line in read_journal(folder)] == [1, 2, 3]
    return record


def assert_brought(runs: Runs, record: RunRecord) -> None:
    """One parent, one child for each stage, every step once."""
    (parent,) = runs.parents
    assert (parent.info.status, parent.data.tags["vlsi.run"]) == ("FINISHED", record.id)
    assert set(runs.children) == set(record.stages)
    assert len(runs.all) == 1 + len(record.stages)
    for child in runs.children.values():
        assert (child.info.status, runs.steps(child)) == ("FINISHED", [1, 2, 3])
    assert len(runs.client.search_model_versions("name = 'digits'")) == 1


def bring_to_a_database(
    world: Path, fresh_database: bytes, monkeypatch: pytest.MonkeyPatch, call_vlsi: Command, record: RunRecord
) -> None:
    """What `vlsi sync-tracking` does when MLflow is back."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    database = world / "store" / "mlflow.db"
    database.write_bytes(fresh_database)
    code, printed = call_vlsi("sync-tracking")
    assert code == 0, printed
    assert "brought there" in printed
    assert_brought(Runs(f"sqlite:///{database}"), record)


@pytest.mark.usefixtures("patience")
def test_a_server_that_is_not_there_costs_one_line(
    tracked: Callable[..., str],
    world: Path,
    fresh_database: bytes,
    monkeypatch: pytest.MonkeyPatch,
    call_vlsi: Command,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    printed = tracked()
    record = whole_record()
    assert printed.count("MLflow") == 1
    assert f"bring it there with: vlsi sync-tracking {record.id}" in printed
    code, printed = call_vlsi("sync-tracking")
    assert code == 1
    assert f"MLflow at {uri} does not work; everything is kept" in printed
    bring_to_a_database(world, fresh_database, monkeypatch, call_vlsi, record)


@pytest.mark.usefixtures("patience")
def test_a_server_that_is_full_costs_one_line(
    tracked: Callable[..., str],
    odd_server: tuple[str, threading.Event],
    world: Path,
    fresh_database: bytes,
    monkeypatch: pytest.MonkeyPatch,
    call_vlsi: Command,
) -> None:
    uri, may_answer = odd_server
    may_answer.set()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracked().count("sync-tracking") == 1
    bring_to_a_database(world, fresh_database, monkeypatch, call_vlsi, whole_record())


@pytest.mark.usefixtures("patience")
def test_nothing_waits_for_a_server_that_does_not_answer(
    tracked: Callable[..., str], odd_server: tuple[str, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, may_answer = odd_server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr("pipeline.tracking.tracker.PATIENCE_SECONDS", 0.05)
    printed = tracked()
    assert not may_answer.is_set()
    assert "it does not answer" in printed
    whole_record()


@pytest.mark.usefixtures("patience")
@pytest.mark.timeout(900)
def test_a_server_that_dies_in_the_middle_has_everything_afterwards(
    tracked: Callable[..., str],
    server: Server,
    executor: FakeExecutor,
    monkeypatch: pytest.MonkeyPatch,
    call_vlsi: Command,
) -> None:
    run = executor.run

    def killing(job, log, environment):  # type: ignore[no-untyped-def]
        if job.stage == "interaction":
            runs = wait_for_a_child(server.uri)
            seen.update(run.info.run_id for run in runs.all)
            server.kill()
        run(job, log, environment)

    seen: set[str] = set()
    executor.run = killing  # type: ignore[method-assign]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert tracked().count("sync-tracking") == 1
    record = whole_record()
    server.start()
    code, printed = call_vlsi("sync-tracking")
    assert code == 0, printed
    runs = Runs(server.uri)
    assert_brought(runs, record)
    assert seen <= {run.info.run_id for run in runs.all}
    (version,) = runs.client.search_model_versions("name = 'digits'")
    assert version.source.startswith("models:/")
    assert Path(version.tags["weights"].removeprefix("file://")).is_dir()


def wait_for_a_child(uri: str) -> Runs:
    """What the server knows once it knows of a stage."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with suppress(AssertionError):
            runs = Runs(uri)
            if runs.children:
                return runs
        time.sleep(0.1)
    raise AssertionError("no stage arrived at the server")
