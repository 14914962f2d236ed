"""Transfer: whole artifacts from one store to another, and the runs that they belong to.

An artifact is there whole or not there, on the other side too: its files are copied into a work folder,
each is compared with the manifest on its way, and the manifest is committed last. A transfer that was
interrupted goes on: what is in the work folder and is right is not copied again. A run's record comes
after everything it refers to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from pipeline.config import ConfigError
from pipeline.history import History, RunRecord
from pipeline.references import needed, places_in, referred
from stages.contract import Artifact, open_artifact
from stages.contract.artifact import File, commit, prepare_work, reopen
from stages.contract.lease import lease
from stages.contract.place import Place, copy_verified, files_below, sha256_of

PREPARED_FOLDER = "prepared"
THREADS = 8
"""That copy files of one artifact side by side."""

Told = Callable[[int], None]
"""Is told of bytes that have arrived."""


@dataclass(frozen=True)
class Depot:
    """One side of a transfer.

    Attributes:
        store: the folder of all artifacts.
        prepared: where experiments have what `vlsi prepare` made, if that is not in the store.
    """

    store: Place
    prepared: Mapping[str, Place] = field(default_factory=dict)

    @property
    def history(self) -> History:
        """The runs of the store."""
        return History(self.store)

    def prepared_place(self, experiment: str) -> Place:
        """Where the models and data of an experiment that brings its own are."""
        return self.prepared.get(experiment, self.store / PREPARED_FOLDER / experiment)


@dataclass(frozen=True)
class Parcel:
    """An artifact and where its copy goes."""

    name: str
    """`capture/0123456789abcdef`, `prepared/digits`."""
    source: Artifact
    place: Place

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.source.manifest.files)

    def is_there(self) -> bool:
        """Whether the copy stands, whole.

        Raises:
            ConfigError: something else stands in its place.
        """
        copy = open_artifact(self.place)
        if copy is None:
            return False
        if copy.manifest.fingerprint != self.source.manifest.fingerprint:
            raise ConfigError(
                f"{self.place} was made with other settings than {self.source.place}, and is not replaced; "
                "move it away, or transfer to another store"
            )
        return not copy.damage()


@dataclass(frozen=True)
class Transfer:
    """What is copied.

    Attributes:
        records: the runs.
        parcels: everything they refer to, inputs before what uses them.
        there: names of parcels that have arrived before.
        missing: names of what the runs refer to and the source does not have.
    """

    records: tuple[RunRecord, ...]
    parcels: tuple[Parcel, ...]
    there: frozenset[str]
    missing: tuple[str, ...]

    @property
    def waiting(self) -> list[Parcel]:
        """Those that have to be sent."""
        return [parcel for parcel in self.parcels if parcel.name not in self.there]


def plan_transfer(source: Depot, target: Depot, records: Sequence[RunRecord]) -> Transfer:
    """Everything that runs refer to, and what of it is there already.

    Raises:
        ArtifactError: an artifact at the source is damaged; the file is named.
        ConfigError: something else stands where prepared models and data would go.
    """
    parcels, missing = [], []
    for name, (origin, goal) in _moves(source, target, records).items():
        artifact = open_artifact(origin)
        if artifact is None:
            missing.append(name)
        elif damage := artifact.damage():
            raise artifact.complaint(damage[0])
        else:
            parcels.append(Parcel(name, artifact, goal))
    there = frozenset(parcel.name for parcel in parcels if parcel.is_there())
    return Transfer(tuple(records), tuple(parcels), there, tuple(missing))


def send(parcel: Parcel, told: Told) -> None:
    """Copy an artifact, or wait for who is copying it and find it there.

    Raises:
        ArtifactError: a file at the source is not what was committed.
    """
    manifest = parcel.source.manifest
    identity = hashlib.sha256(manifest.model_dump_json(exclude={"root"}).encode()).hexdigest()
    with lease(parcel.place):
        if parcel.is_there():
            told(parcel.bytes)
            return
        if damaged := open_artifact(parcel.place):
            reopen(damaged, identity=identity)
        work = prepare_work(parcel.place, fresh=False, identity=identity)
        _send_files(parcel, work, told)
        commit(work, parcel.place, manifest.of_copy(work))


def send_record(record: RunRecord, history: History) -> None:
    """Copy a run's record, unless the other side knows more of the run."""
    known = next((other for other in history.records(record.experiment) if other.id == record.id), None)
    if known is None or _progress(known) < _progress(record):
        history.write(record)


def _moves(source: Depot, target: Depot, records: Sequence[RunRecord]) -> dict[str, tuple[Place, Place]]:
    """By name where an artifact is and where it goes; inputs before what uses them."""
    places = places_in(source.store)
    roots = needed(set().union(*map(referred, records)), places)
    names = [f"{place.parent.name}/{fingerprint}" for fingerprint, place in places.items() if fingerprint in roots]
    wanted = [name for record in records for name in record.wanted.values()]
    brought = dict.fromkeys(r.configuration["name"] for r in records if r.configuration.get("prepare"))
    prepared = {
        f"{PREPARED_FOLDER}/{name}": (source.prepared_place(name), target.prepared_place(name)) for name in brought
    }
    return prepared | {name: (source.store / name, target.store / name) for name in [*names, *wanted]}


def _send_files(parcel: Parcel, work: Place, told: Told) -> None:
    arrived = files_below(work)
    with ThreadPoolExecutor(THREADS) as threads:
        copies = [
            threads.submit(_send_file, parcel, work, file, told, check=arrived.get(file.path) == file.bytes)
            for file in parcel.source.manifest.files
        ]
        try:
            for copy in as_completed(copies):
                copy.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _send_file(parcel: Parcel, work: Place, file: File, told: Told, *, check: bool) -> None:
    """Copy one file; with `check` one that may have arrived in a transfer that was interrupted."""
    origin, goal = parcel.source.path / file.path, work / file.path
    if check and sha256_of(goal) == file.sha256:
        told(file.bytes)
        return
    goal.parent.mkdir(parents=True, exist_ok=True)
    try:
        same = copy_verified(origin, goal, file.sha256, told)
    except FileNotFoundError:
        same = False
    if not same:
        raise parcel.source.complaint(file.path)


def _progress(record: RunRecord) -> tuple[bool, float]:
    """How far a run has come."""
    return record.status == "finished", record.ended or record.started
