"""Copies of runs in another store: the same bytes, whole or not there, and good to go on with."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Command, FakeExecutor
from rich.console import Console

from pipeline import transfer as module
from pipeline.config import ConfigError
from pipeline.history import RunRecord
from pipeline.runner import Outcome
from pipeline.session import Session
from pipeline.transfer import Depot, Transfer, plan_transfer, send, send_record
from stages.contract import ArtifactError, Job, open_artifact
from stages.contract.artifact import MANIFEST_FILE, commit, has_work, prepare_work
from stages.contract.place import Place, Remote, files_below, write_whole

ALONE = ("~variants", "tracking.enabled=false")
FASTER = "interaction.schedule.steps=5"


class Killed(BaseException):
    """Stands for SIGKILL."""


class PreparingExecutor(FakeExecutor):
    """Its prepare stage leaves checkpoints and samples."""

    def _stage(self, job: Job, work: Place) -> dict[str, object]:
        summary = super()._stage(job, work)
        assert isinstance(work, Path)
        for name in ("teacher", "backbone"):
            (work / name).mkdir()
            (work / name / "config.json").write_text(json.dumps({"name": name}))
        for name in ("train", "test"):
            (work / f"{name}.jsonl").write_text("{}\n")
        return summary


@pytest.fixture(autouse=True, scope="module")
def unsynced() -> Iterator[None]:
    """Kills are those of a process, not of a machine: nothing has to wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("artifact", "place"):
            patch.setattr(f"stages.contract.{name}.sync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with prepared models and data, and one finished run."""
    store = tmp_path_factory.mktemp("finished") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLSI_STORE", str(store))
        patch.setattr("pipeline.session.render", lambda *_: "")
        patch.setattr("pipeline.session.check_pairs", lambda *_: None)
        for session, executor in (
            (Session.open_preparation, PreparingExecutor()),
            (Session.open, FakeExecutor()),
        ):
            opened = session(ALONE)
            assert not opened.execute(opened.decide(), Console(quiet=True), executor).failed
    return store


@pytest.fixture
def home(world: Path, finished: Path) -> Depot:
    """The same in a folder of the test's own."""
    shutil.rmtree(world / "store")
    shutil.copytree(finished, world / "store")
    return Depot(world / "store")


@pytest.fixture
def away(tmp_path: Path) -> Depot:
    return Depot(tmp_path / "away")


@pytest.fixture
def cloud(bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Depot:
    """A store in an object store, whose leases are had at once."""
    monkeypatch.setattr("stages.contract.lease.SETTLE_SECONDS", 0.0)
    return Depot(bucket / tmp_path.name)


def last(depot: Depot) -> RunRecord:
    record = depot.history.last("digits")
    assert record is not None
    return record


def beginning(depot: Depot) -> RunRecord:
    """The last run as if it had wanted the first stage alone: few files for a slow store."""
    record = last(depot)
    record.configuration["prepare"] = None
    record.wanted, record.stages = {"capture": record.wanted["capture"]}, {}
    return record


def copy(source: Depot, target: Depot, record: RunRecord | None = None) -> tuple[Transfer, int]:
    """Copy a run, else the last one; what was planned, and how many bytes arrived."""
    arrived: list[int] = []
    transfer = plan_transfer(source, target, [record or last(source)])
    for parcel in transfer.waiting:
        send(parcel, arrived.append)
    for record in transfer.records:
        send_record(record, target.history)
    return transfer, sum(arrived)


def content(depot: Depot) -> dict[str, bytes]:
    """Every file of every artifact and record."""
    names = [n for n in files_below(depot.store) if n.split("/")[0] not in ("logs", "reports", ".digests.json")]
    return {name: (depot.store / name).read_bytes() for name in names}


def test_a_copy_has_the_same_bytes_and_is_up_to_date(home: Depot, away: Depot, call_vlsi: Command) -> None:
    transfer, arrived = copy(home, away)
    assert (len(transfer.parcels), transfer.there, transfer.missing) == (9, frozenset(), ())
    assert arrived == sum(parcel.bytes for parcel in transfer.parcels)
    assert content(away) == content(home)
    _, text = call_vlsi("status", *ALONE, f"store={away.store}")
    assert "Everything is up to date." in text


def test_nothing_is_copied_twice(home: Depot, away: Depot) -> None:
    copy(home, away)
    transfer, arrived = copy(home, away)
    assert (transfer.waiting, arrived) == ([], 0)


def test_through_an_object_store_and_back_the_bytes_are_the_same(
    home: Depot, cloud: Depot, away: Depot, call_vlsi: Command
) -> None:
    copy(home, cloud)
    copy(cloud, away)
    assert content(away) == content(home)
    _, text = call_vlsi("status", *ALONE, f"store={away.store}")
    assert "Everything is up to date." in text


def test_an_artifact_in_a_second_folder_of_an_object_store_is_copied_out_of_it(
    home: Depot, cloud: Depot, away: Depot
) -> None:
    """There a forced rerun stands beside what it replaces."""
    record = beginning(home)
    copy(home, cloud, record)
    (parcel,) = plan_transfer(cloud, away, [record]).parcels
    work = prepare_work(parcel.source.place, fresh=True, identity="again")
    for name in files_below(parcel.source.path):
        if name != MANIFEST_FILE:
            write_whole(work / name, (parcel.source.path / name).read_text())
    commit(work, parcel.source.place, parcel.source.manifest.of_copy(work))
    (parcel,) = copy(cloud, away, record)[0].parcels
    assert parcel.source.manifest.root
    arrived = open_artifact(parcel.place)
    assert arrived is not None
    assert arrived.manifest.root == ""
    arrived.verify()


class Dying:
    """Copies files until the n-th, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.copied: list[str] = []
        self._original, self._lock, self._at = module.copy_verified, threading.Lock(), at
        monkeypatch.setattr(module, "copy_verified", self)

    def __call__(self, source: Place, target: Place, *details: object) -> bool:
        with self._lock:
            if len(self.copied) == self._at:
                raise Killed
            self.copied.append(str(target))
        return self._original(source, target, *details)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [0, 1, 12, 30])
def test_after_a_kill_only_the_rest_is_sent(home: Depot, away: Depot, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    first = Dying(monkeypatch, at)
    with pytest.raises(Killed):
        copy(home, away)
    monkeypatch.setattr(module, "copy_verified", first._original)
    for parcel in plan_transfer(home, away, [last(home)]).parcels:
        assert parcel.is_there() or not (parcel.place / MANIFEST_FILE).exists()
    assert away.history.records() == []
    second = Dying(monkeypatch, -1)
    copy(home, away)
    total = sum(len(p.source.manifest.files) for p in plan_transfer(home, away, [last(home)]).parcels)
    assert len(first.copied) + len(second.copied) == total
    assert content(away) == content(home)


def test_after_a_kill_only_the_rest_is_sent_to_an_object_store(
    home: Depot, cloud: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = beginning(home)
    first = Dying(monkeypatch, 2)
    with pytest.raises(Killed):
        copy(home, cloud, record)
    monkeypatch.setattr(module, "copy_verified", first._original)
    second = Dying(monkeypatch, -1)
    (parcel,) = copy(home, cloud, record)[0].parcels
    assert len(first.copied) + len(second.copied) == len(parcel.source.manifest.files)
    assert parcel.is_there()


def weights(depot: Depot, stage: str) -> Path:
    (path,) = Path(str(depot.store)).glob(f"{stage}/*/weights.bin")
    return path


def test_a_file_that_is_missing_at_the_source_is_named_before_anything_is_sent(home: Depot, away: Depot) -> None:
    weights(home, "interaction").unlink()
    with pytest.raises(ArtifactError, match=r"interaction/\w+/weights\.bin is missing; rebuild with"):
        copy(home, away)
    assert not Path(str(away.store)).exists()


@pytest.mark.parametrize("kind", ["away", "cloud"])
def test_a_file_that_was_altered_at_the_source_is_named_and_does_not_arrive(
    home: Depot, kind: str, request: pytest.FixtureRequest
) -> None:
    target: Depot = request.getfixturevalue(kind)
    path = weights(home, "capture")
    path.write_text(path.read_text()[::-1])
    with pytest.raises(ArtifactError, match=r"capture/\w+/weights\.bin is not what was committed"):
        copy(home, target, beginning(home))
    assert target.history.records() == []
    copied = target.store / "capture" / path.parent.name
    assert open_artifact(copied) is None
    assert "weights.bin" not in files_below(copied) | files_below(copied.parent / f"{copied.name}.partial")


def test_a_copy_that_has_lost_a_file_is_mended_by_that_file_alone(
    home: Depot, away: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(home, away)
    weights(away, "capture").unlink()
    again = Dying(monkeypatch, -1)
    copy(home, away)
    assert len(again.copied) == 1
    assert content(away) == content(home)


def test_work_that_was_interrupted_at_the_target_gives_way_to_the_whole(home: Depot, away: Depot) -> None:
    goal = Path(str(away.store)) / "capture" / weights(home, "capture").parent.name
    work = goal.with_name(f"{goal.name}.partial")
    work.mkdir(parents=True)
    (work / "owner.txt").write_text("somebody first")
    (work / "left.bin").write_text("half")
    copy(home, away)
    assert content(away) == content(home)
    assert not has_work(goal)


def test_two_at_once_send_everything_once(home: Depot, away: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Dying(monkeypatch, -1)
    plans = [plan_transfer(home, away, [last(home)]) for _ in range(2)]

    def send_all(transfer: Transfer) -> int:
        arrived: list[int] = []
        for parcel in transfer.waiting:
            send(parcel, arrived.append)
        return sum(arrived)

    with ThreadPoolExecutor(2) as threads:
        arrived = list(threads.map(send_all, plans))
    assert arrived[0] == arrived[1]
    assert len(counting.copied) == sum(len(parcel.source.manifest.files) for parcel in plans[0].parcels)
    copy(home, away)
    assert content(away) == content(home)


def test_prepared_models_of_other_settings_are_not_replaced(home: Depot, away: Depot, world: Path) -> None:
    copy(home, away)
    manifest = Path(str(away.store)) / "prepared" / "digits" / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace('"fingerprint": "', '"fingerprint": "f'))
    with pytest.raises(ConfigError, match="was made with other settings"):
        copy(home, away)


def test_a_failed_run_goes_with_what_it_has_and_is_finished_over_there(
    home: Depot, away: Depot, run: Callable[..., Outcome], executor: FakeExecutor
) -> None:
    executor.failing = {"interaction"}
    run(*ALONE, FASTER)
    transfer, _ = copy(home, away)
    assert {name.split("/")[0] for name in transfer.missing} == {"interaction", "reinforcement", "evaluation"}
    executor.failing = set()
    run(*ALONE, FASTER, f"store={away.store}")
    assert set(executor.stages) == {"interaction", "reinforcement", "evaluation"}
    (record,) = away.history.records()
    assert (record.id, record.status) == (last(home).id, "finished")
    copy(home, away)
    assert away.history.records() == [record], "the failed record came over the finished one"


def test_push_and_pull_as_commands(
    home: Depot, away: Depot, call_vlsi: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = last(home).id
    code, text = call_vlsi("push", str(away.store), "--dry-run", width=120)
    assert (code, "9 to copy to" in text, Path(str(away.store)).exists()) == (0, True, False)
    code, text = call_vlsi("push", str(away.store), "digits", "--json", width=120)
    told = json.loads(text)
    assert (code, told["runs"], {entry["status"] for entry in told["artifacts"]}) == (0, [run_id], {"copied"})
    code, text = call_vlsi("push", str(away.store), width=120)
    assert (code, "0 to copy to" in text) == (0, True)
    monkeypatch.setenv("VLSI_STORE", str(home.store.parent / "third"))
    code, text = call_vlsi("pull", str(away.store), run_id[:6], width=120)
    assert (code, f"{run_id}: all is at" in text) == (0, True)
    _, text = call_vlsi("status", *ALONE)
    assert "Everything is up to date." in text


def test_what_cannot_be_transferred_ends_with_2(home: Depot, away: Depot, call_vlsi: Command) -> None:
    for arguments, message in (
        (["push", str(home.store)], "is this store; name another one"),
        (["push", "ftp://host/a"], "ftp:// is unknown"),
        (["push", str(away.store), "nowhere"], "there is no run 'nowhere'"),
        (["pull", str(away.store)], "has no run of digits; experiments that have runs there: none"),
    ):
        code, text = call_vlsi(*arguments, width=200)
        assert (code, message in text) == (2, True), text


def test_a_damaged_source_ends_with_1_and_names_the_file(home: Depot, away: Depot, call_vlsi: Command) -> None:
    weights(home, "capture").unlink()
    code, text = call_vlsi("push", str(away.store), width=200)
    assert (code, "weights.bin is missing" in text) == (1, True)
