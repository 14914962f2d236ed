"""What a store can do without: nothing that a kept run refers to, and nothing that is being made."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from conftest import Command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.garbage import Garbage, delete, find_garbage
from pipeline.history import History, RunRecord, StageRun
from pipeline.runner import Outcome
from stages.contract import artifact as contract
from stages.contract import open_artifact
from stages.contract.artifact import MANIFEST_FILE, Manifest, commit, prepare_work, work_folder
from stages.contract.files import JOB_FILE
from stages.contract.lease import LEASE_FILE, lease
from stages.contract.place import Place, Remote, files_below, write_whole

STAGES = ("capture", "precompute", "reinforcement")
ALONE = "~variants"
FASTER = "interaction.schedule.steps=5"


class Killed(BaseException):
    """Stands for SIGKILL."""


def fingerprint_of(number: int) -> str:
    return f"{number:016x}"


def place_in(store: Place, number: int) -> Place:
    return store / STAGES[number % len(STAGES)] / fingerprint_of(number)


def begin(store: Place, number: int, sources: set[int]) -> Place:
    """An attempt that has not come to its end."""
    work = prepare_work(place_in(store, number), fresh=False, identity="f")
    write_whole(work / "weights.bin", str(number))
    write_whole(work / JOB_FILE, json.dumps({"inputs": {str(n): str(place_in(store, n)) for n in sources}}))
    return work


def make(store: Place, number: int, sources: set[int]) -> None:
    place, work = place_in(store, number), begin(store, number, sources)
    manifest = Manifest.of_folder(
        work,
        stage=place.parent.name,
        fingerprint=place.name,
        identity={"inputs": {str(n): fingerprint_of(n) for n in sources}},
        inputs={},
        summary={},
        started=0.0,
    )
    commit(work, place, manifest)


def record(number: int, wanted: set[int], **changes: Any) -> RunRecord:
    names = {str(n): f"{STAGES[n % len(STAGES)]}/{fingerprint_of(n)}" for n in wanted}
    facts = {"id": f"run{number}", "experiment": "digits", "started": 1e9 + number, "host": "h", "pid": 1}
    facts |= {"status": "finished", "overrides": (), "configuration": {}, "graph": "g", "wanted": names}
    return RunRecord.model_validate(facts | changes)


def waste_of(garbage: Garbage) -> set[int]:
    return {int(waste.place.name, 16) for waste in garbage.waste}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A store on this machine."""
    return tmp_path / "store"


@pytest.fixture(autouse=True, scope="module")
def unsynced() -> Iterator[None]:
    """Kills are those of a process, not of a machine: nothing has to wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("artifact", "place"):
            patch.setattr(f"stages.contract.{module}.sync", lambda _: None)
        yield


@dataclass(frozen=True)
class World:
    """A random store: artifacts 0, 1, … each made from some before it, some of them unfinished or held."""

    sources: tuple[frozenset[int], ...]
    unfinished: frozenset[int]
    held: frozenset[int]
    runs: tuple[frozenset[int], ...]
    last: int | None

    def closure(self, roots: Iterator[int] | frozenset[int]) -> set[int]:
        found = set(roots)
        for number in reversed(range(len(self.sources))):
            found |= self.sources[number] if number in found else set()
        return found

    @property
    def kept(self) -> set[int]:
        """What kept runs need."""
        runs = self.runs if self.last is None else self.runs[-self.last :]
        return self.closure(frozenset().union(*runs))

    @property
    def waste(self) -> set[int]:
        return set(range(len(self.sources))) - self.kept - self.closure(self.held)

    def build(self, store: Path) -> History:
        history = History(store)
        for number, sources in enumerate(self.sources):
            (begin if number in self.unfinished else make)(store, number, set(sources))
        for number, wanted in enumerate(self.runs):
            history.write(record(number, set(wanted)))
        return history


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(0, 7))
    some = st.frozensets(st.integers(0, count - 1), max_size=3) if count else st.just(frozenset())
    sources = tuple(draw(st.frozensets(st.integers(0, n - 1), max_size=2)) if n else frozenset() for n in range(count))
    runs = tuple(draw(st.lists(some, max_size=3)))
    last = draw(st.none() | st.integers(1, 3))
    return World(sources, draw(some), draw(some), runs, last)


def content(store: Path) -> dict[int, str]:
    """Artifacts that open as committed; each has to be whole."""
    found = {}
    for stage in STAGES:
        for path in (store / stage).glob("*") if (store / stage).is_dir() else ():
            artifact = open_artifact(path) if len(path.name) == 16 else None
            if artifact is not None:
                artifact.verify()
                found[int(path.name, 16)] = (artifact.path / "weights.bin").read_text()
    return found


few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(worlds())
def test_all_that_is_kept_stays_and_all_else_that_nobody_holds_goes(world: World) -> None:
    with TemporaryDirectory() as folder, ExitStack() as leases:
        store = Path(folder)
        history = world.build(store)
        stranger = store / "capture" / "notes"
        stranger.mkdir(parents=True)
        before = content(store)
        for number in world.held:
            leases.enter_context(lease(place_in(store, number)))
        garbage = find_garbage(store, history, last=world.last)
        assert waste_of(garbage) == world.waste
        assert {int(place.name, 16) for place in garbage.held} == world.held - world.kept
        assert content(store) == before, "listing changed something"
        assert {int(waste.place.name, 16) for waste in delete(garbage, history)} == world.waste
        assert content(store) == {n: text for n, text in before.items() if n not in world.waste}
        assert not any(path.exists() for n in world.waste for path in contract.folders_of(place_in(store, n)))
        assert stranger.is_dir()
        assert len(history.records()) == len(world.runs if world.last is None else world.runs[-world.last :])


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Deleting ends at the so many-th file or folder."""
    calls = iter(range(1, 1000))

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == step:
                raise Killed
            return original(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        for name in ("unlink", "rmdir"):
            patch.setattr(os, name, dying(getattr(os, name)))
        yield


@few
@given(worlds(), st.integers(1, 25))
def test_a_kill_at_any_step_leaves_what_is_kept_and_nothing_half(world: World, step: int) -> None:
    with TemporaryDirectory() as folder:
        store = Path(folder)
        history = world.build(store)
        before = content(store)
        kept = {n: text for n, text in before.items() if n in world.kept}
        with killed_at(step):
            list(delete(find_garbage(store, history, last=world.last), history))
        after = content(store)
        assert kept.items() <= after.items() <= before.items()
        list(delete(find_garbage(store, history, last=world.last), history))
        assert content(store) == kept


@pytest.mark.parametrize("step", range(1, 16))
def test_an_artifact_that_is_deleted_is_whole_or_no_artifact(here: Path, step: int) -> None:
    make(here, 0, set())
    for name in "abcdefgh":
        (place_in(here, 0) / name).write_text(name)
    with killed_at(step):
        contract.discard(place_in(here, 0))
    assert len(list(place_in(here, 0).glob("[a-h]"))) == 8 or content(here) == {}


def test_a_half_deleted_work_folder_is_not_taken_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = begin(here, 0, set())
    monkeypatch.setattr(contract, "remove", lambda _: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        contract.discard(place_in(here, 0))
    monkeypatch.undo()
    assert (work / "weights.bin").exists()
    assert not contract.has_work(place_in(here, 0))


def test_an_interrupted_replacement_goes_whole(here: Path) -> None:
    """Between the two renames of a commit the old artifact stands beside its place."""
    make(here, 0, set())
    place = place_in(here, 0)
    place.rename(place.with_name(place.name + contract.REPLACED_SUFFIX))
    list(delete(find_garbage(here, History(here)), History(here)))
    assert list(place.parent.iterdir()) == []


def test_what_is_being_made_keeps_what_it_is_made_from(here: Path) -> None:
    make(here, 0, set())
    begin(here, 1, {0})
    with lease(place_in(here, 1)):
        garbage = find_garbage(here, History(here))
    assert (waste_of(garbage), len(garbage.held)) == (set(), 1)
    assert waste_of(find_garbage(here, History(here))) == {0, 1}


def test_a_model_that_a_configuration_names_is_kept(here: Path) -> None:
    make(here, 2, set())
    history = History(here)
    history.write(record(0, set(), configuration={"teacher": {"path": str(place_in(here, 2))}}))
    assert waste_of(find_garbage(here, history)) == set()


def test_what_a_run_made_beside_what_it_wanted_is_kept(here: Path) -> None:
    make(here, 1, set())
    history = History(here)
    history.write(record(0, set(), stages={"precompute": StageRun(stage="precompute", fingerprint=fingerprint_of(1))}))
    assert waste_of(find_garbage(here, history)) == set()


def test_runs_are_kept_by_name_and_those_that_go_on_always(here: Path) -> None:
    history = History(here)
    for number in range(3):
        make(here, number, set())
    going_on = {"status": "running", "host": "elsewhere"}
    for run in (record(0, {0}), record(1, {1}), record(2, {2}, **going_on)):
        history.write(run)
    garbage = find_garbage(here, history, names=["run1"])
    assert (waste_of(garbage), [run.id for run in garbage.dropped]) == ({0}, ["run0"])
    assert garbage.waste[0].why == "only dropped runs refer to it: run0"
    list(delete(garbage, history))
    assert [run.id for run in history.records()] == ["run1", "run2"]


def test_a_record_that_cannot_be_read_stops_it_all(here: Path) -> None:
    make(here, 0, set())
    torn = here / "runs" / "digits" / "000000000001-abcdef01.json"
    torn.parent.mkdir(parents=True)
    torn.write_text("{torn")
    with pytest.raises(ConfigError, match=r"abcdef01\.json cannot be read"):
        find_garbage(here, History(here))


def test_a_run_that_begins_meanwhile_stops_the_rest(here: Path) -> None:
    history = History(here)
    for number in range(2):
        make(here, number, set())
    steps = delete(find_garbage(here, history), history)
    next(steps)
    history.write(record(7, {0, 1}))
    with pytest.raises(ConfigError, match="run run7 began meanwhile"):
        next(steps)
    assert len(content(here)) == 1


def test_what_changed_since_it_was_listed_stays(here: Path) -> None:
    make(here, 0, set())
    garbage = find_garbage(here, History(here))
    make(here, 0, set())
    (place_in(here, 0) / "more").write_text("more")
    assert list(delete(garbage, History(here))) == []
    assert set(content(here)) == {0}


def test_in_an_object_store_the_same_goes_and_a_live_lease_holds(
    bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.contract.lease.SETTLE_SECONDS", 0.0)
    store = bucket / tmp_path.name
    history = History(store)
    make(store, 0, set())
    make(store, 1, {0})
    make(store, 2, {0})
    begin(store, 3, set())
    begin(store, 4, set())
    begin(store, 5, set())
    for number, silent in ((4, 0.0), (5, 1e6)):
        holder = {"holder": ["elsewhere", 1, "life"], "time": time.time() - silent}
        write_whole(place_in(store, number) / LEASE_FILE, json.dumps(holder))
    history.write(record(0, {1}))
    garbage = find_garbage(store, history)
    assert waste_of(garbage) == {2, 3, 5}
    assert [place.name for place in garbage.held] == [fingerprint_of(4)]
    list(delete(garbage, history))
    assert {name.split("/")[1] for name in files_below(store) if not name.startswith("runs/")} == {
        fingerprint_of(number) for number in (0, 1, 4)
    }
    assert open_artifact(place_in(store, 1)) is not None


def test_a_kill_in_an_object_store_leaves_no_artifact_that_opens(
    bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = bucket / tmp_path.name
    make(store, 0, set())
    monkeypatch.setattr(contract, "remove", lambda _: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        contract.discard(place_in(store, 0))
    monkeypatch.undo()
    assert (place_in(store, 0) / "weights.bin").is_file()
    assert open_artifact(place_in(store, 0)) is None
    assert not (place_in(store, 0) / MANIFEST_FILE).exists()


@pytest.fixture
def two_runs(run: Callable[..., Outcome], world: Path) -> Path:
    """The store of two runs, of which the second made interaction and what follows anew."""
    run(ALONE)
    run(ALONE, FASTER)
    return world / "store"


def test_the_command_lists_and_deletes_only_when_told(two_runs: Path, call_vlsi: Command) -> None:
    code, text = call_vlsi("gc", width=140)
    assert (code, "Kept runs refer to every artifact there is." in text) == (0, True)
    code, text = call_vlsi("gc", "--keep-last", "1", width=140)
    assert (code, "3 may go" in text, "--delete deletes what is listed" in text) == (0, True, True)
    assert text.count("only dropped runs refer to it") == 3
    first, second = History(two_runs).records()
    code, text = call_vlsi("gc", "--keep-last", "1", "--delete", width=140)
    assert (code, f"forget run {first.id}" in text, "Deleted 3" in text) == (0, True, True)
    assert History(two_runs).records() == [second]
    assert (two_runs / "prepared" / "digits" / "teacher" / "config.json").is_file()
    code, text = call_vlsi("status", ALONE, FASTER)
    assert "Everything is up to date." in text


def test_json_says_what_goes_and_what_went(two_runs: Path, call_vlsi: Command) -> None:
    code, text = call_vlsi("gc", "--keep-runs", "digits", "--json")
    found = json.loads(text)
    assert (code, found["deleted"], {entry["stage"] for entry in found["artifacts"]}) == (
        0,
        False,
        {"interaction", "reinforcement", "evaluation"},
    )
    code, text = call_vlsi("gc", "--keep-runs", "digits", "--json", "--delete")
    gone = json.loads(text)
    assert (gone["deleted"], gone["bytes"], gone["runs"]) == (True, found["bytes"], found["runs"])
    assert not any(Path(entry["place"]).exists() for entry in gone["artifacts"])


def test_a_run_that_is_not_there_ends_with_2(two_runs: Path, call_vlsi: Command) -> None:
    code, text = call_vlsi("gc", "--keep-runs", "nowhere")
    assert (code, "there is no run 'nowhere'" in text) == (2, True)


def test_work_of_a_kept_run_that_is_unfinished_stays(here: Path) -> None:
    begin(here, 0, set())
    history = History(here)
    history.write(record(0, {0}, status="failed"))
    assert waste_of(find_garbage(here, history)) == set()
    assert work_folder(place_in(here, 0)).is_dir()
