"""Leases: of several that want one artifact one works, and the others wait, take over, and say so."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.contract import lease as leases
from stages.contract import open_artifact
from stages.contract.lease import LEASE_FILE, Holder, lease
from stages.contract.place import Place, Remote, write_whole

NO_PROCESS = 2**22 + 1
"""Above the greatest number that Linux gives a process."""
STARTS = 4
TINY_STAGE = """
import sys, time
from pathlib import Path
from stages.contract.job import Job, execute

def run(job, work):
    with Path(sys.argv[2]).open("a") as made:
        made.write("made\\n")
    time.sleep(0.05)
    (work / "result").write_text("1")
    return {}

Path(sys.argv[3]).touch()
while not Path(sys.argv[4]).exists():
    time.sleep(0.001)
inputs = {"model": "/model", "samples": "/samples.jsonl"}
execute(Job(stage="evaluation", settings={}, inputs=inputs, output=sys.argv[1], fingerprint="f"), run)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)


@pytest.fixture(params=["here", "s3"])
def place(request: pytest.FixtureRequest, quick: None, tmp_path: Path) -> Place:
    root: Place = tmp_path if request.param == "here" else request.getfixturevalue("bucket")
    return root / tmp_path.name


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_second_waits_for_the_first_and_says_for_whom(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    events: list[str] = []
    said = ""

    def second() -> None:
        with lease(place):
            events.append("second")

    def has_said() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "waiting for process" in said

    with lease(place):
        thread = threading.Thread(target=second)
        thread.start()
        wait_until(has_said)
        events.append("first")
    thread.join(60)
    assert events == ["first", "second"]
    assert f"on {socket.gethostname()}, which holds {place}" in said


def test_a_lease_is_given_back_whatever_happens(place: Place) -> None:
    with pytest.raises(KeyError, match="a mistake"), lease(place):
        raise KeyError("a mistake")
    with lease(place):
        pass


def leave_lease(place: Remote, holder: Holder, seconds_ago: float) -> None:
    write_whole(place / LEASE_FILE, json.dumps({"holder": holder, "time": time.time() - seconds_ago}))


HERE = socket.gethostname()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("holder", "seconds_ago"),
    [
        (Holder("elsewhere", 7, "1234"), leases.STALE_SECONDS + 1),
        (Holder(HERE, NO_PROCESS, "1234"), 0.0),
    ],
    ids=["silent", "dead"],
)
def test_a_lease_whose_holder_is_gone_is_taken_over_and_it_is_named(
    bucket: Remote, tmp_path: Path, capfd: pytest.CaptureFixture[str], holder: Holder, seconds_ago: float
) -> None:
    place = bucket / tmp_path.name
    leave_lease(place, holder, seconds_ago)
    with lease(place):
        pass
    assert f"process {holder.pid} on {holder.host} is gone; taking over from it" in capfd.readouterr().err


def test_a_process_of_the_same_number_is_not_taken_for_this_one() -> None:
    """Every first process of a container is number 1. But another thread of this process lives."""
    me = leases._me()
    assert Holder(me.host, me.pid, "of before").is_dead(me)
    assert not me._replace(life=f"{me.life}0").is_dead(me)


@pytest.mark.usefixtures("quick")
def test_who_was_taken_for_dead_does_not_take_the_lease_back(bucket: Remote, tmp_path: Path) -> None:
    place = bucket / tmp_path.name
    other = Holder("elsewhere", 7, "1234")
    with lease(place):
        leave_lease(place, other, 0.0)
        time.sleep(0.1)
    found = leases._read(place / LEASE_FILE)
    assert found is not None
    assert found[0] == other


def test_a_lease_that_is_written_while_it_is_read_is_read_again(
    bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = bucket / tmp_path.name
    leave_lease(place, Holder("elsewhere", 7, "1234"), 0.0)
    whole = (place / LEASE_FILE).read_text()
    readings = iter([whole[:-1], whole])
    monkeypatch.setattr(Remote, "read_text", lambda _: next(readings))
    found = leases._read(place / LEASE_FILE)
    assert found is not None
    assert found[0].host == "elsewhere"


@pytest.mark.usefixtures("quick")
def test_a_store_that_fails_when_the_lease_is_given_back_hides_no_error(
    bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("AWS Error UNKNOWN (HTTP status 500)")

    def work() -> None:
        with lease(bucket / tmp_path.name):
            monkeypatch.setattr(leases, "_read", fail)
            raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        work()


def test_who_was_killed_here_is_named_by_who_takes_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "0123"
    place.with_name("0123.lock").write_text("process 7 on elsewhere")
    with lease(place):
        pass
    assert "process 7 on elsewhere is gone; taking over from it" in capfd.readouterr().err
    assert not place.with_name("0123.lock").exists()


@pytest.mark.parametrize("where", ["here", "s3"])
def test_of_many_starts_at_once_one_works_and_all_have_the_artifact(
    request: pytest.FixtureRequest, tmp_path: Path, where: str
) -> None:
    root: Place = tmp_path if where == "here" else request.getfixturevalue("bucket")
    output, made, go = root / tmp_path.name, tmp_path / "made", tmp_path / "go"
    ready = [tmp_path / f"ready-{start}" for start in range(STARTS)]
    command = [sys.executable, "-c", TINY_STAGE, str(output), str(made)]
    starts = [subprocess.Popen([*command, str(mark), str(go)], stderr=subprocess.PIPE, text=True) for mark in ready]
    try:
        wait_until(lambda: all(mark.exists() for mark in ready))
        go.touch()
        said = [start.communicate(timeout=100)[1] for start in starts]
    finally:
        for start in starts:
            start.kill()
    assert [start.returncode for start in starts] == [0] * STARTS, said
    assert made.read_text() == "made\n"
    artifact = open_artifact(output)
    assert artifact is not None
    artifact.verify()
    if where == "s3":
        puts = request.getfixturevalue("store").puts(tmp_path.name)
        assert [count for path, count in puts.items() if path.endswith("/result")] == [1]
