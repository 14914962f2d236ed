"""Garbage: what no kept run of a store refers to.

Only what looks like an artifact, or was left beside one, is looked at. What a process holds the lease
of is being made: it stays, and so does what it is made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import ConfigError
from pipeline.history import History, RunRecord
from pipeline.references import made_from, needed, places_in, referred
from stages.contract.artifact import MANIFEST_FILE, discard, folders_of
from stages.contract.lease import LEASE_FILE, is_held, lease
from stages.contract.place import Place, dates_below


@dataclass(frozen=True)
class Waste:
    """An artifact, or what attempts to make one have left.

    Attributes:
        place: where the artifact is asked for.
        committed: whether there is one.
        bytes: of all files there and beside it.
        modified: time of the newest file, in seconds since the epoch; None if there is no file.
        why: it may go.
    """

    place: Place
    committed: bool
    bytes: int
    modified: float | None
    why: str

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        stage, fingerprint = self.place.parent.name, self.place.name
        facts = {"committed": self.committed, "bytes": self.bytes, "modified": self.modified, "why": self.why}
        return {"stage": stage, "fingerprint": fingerprint, "place": str(self.place), **facts}


@dataclass(frozen=True)
class Garbage:
    """What may go.

    Attributes:
        kept: runs that stay.
        dropped: runs that are forgotten.
        waste: what only dropped runs refer to, or none.
        held: places that no run refers to, and that stay because a process makes something there.
    """

    kept: tuple[RunRecord, ...]
    dropped: tuple[RunRecord, ...]
    waste: tuple[Waste, ...]
    held: tuple[Place, ...]

    @property
    def bytes(self) -> int:
        """Of everything that goes."""
        return sum(waste.bytes for waste in self.waste)


def find_garbage(store: Place, history: History, names: Sequence[str] = (), last: int | None = None) -> Garbage:
    """What goes if some runs are kept: those named, the last ones of each experiment, those that are going on.

    Args:
        store: the folder of all artifacts.
        history: its runs.
        names: runs that are kept, as `History.find` takes them.
        last: how many of each experiment are kept; with neither all are.

    Raises:
        ConfigError: a record cannot be read, so that nobody knows what it refers to; or there is no such run.
        ArtifactError: the manifest of an artifact that stays cannot be read.
    """
    # Places are listed before runs: a run that begins in between has its record before its artifacts.
    places = places_in(store)
    if unreadable := history.unreadable():
        raise ConfigError(
            f"{unreadable[0]} cannot be read, and what its run needs is not known: nothing can be deleted; "
            "repair the file or delete it"
        )
    kept, dropped = _chosen(history, names, last)
    held = {fingerprint for fingerprint, place in places.items() if is_held(place)}
    of_dropped = {record.id: referred(record) for record in dropped}
    of_runs = needed(set().union(*map(referred, kept)), places)
    in_use = held.union(*(made_from(places[fingerprint]) for fingerprint in held))
    stays = of_runs | needed(in_use, places)
    return Garbage(
        kept=tuple(kept),
        dropped=tuple(dropped),
        waste=tuple(_waste(place, of_dropped) for fingerprint, place in places.items() if fingerprint not in stays),
        held=tuple(places[fingerprint] for fingerprint in sorted(held - of_runs)),
    )


def delete(garbage: Garbage, history: History) -> Iterator[Waste]:
    """Forget the dropped runs, then delete one thing after the other; yields each that is gone.

    What is worked on by now, or has changed, stays. A kill on the way leaves what no run refers to, and nothing that
    looks whole: finding garbage again finds it.

    Raises:
        ConfigError: a run began meanwhile, which may reuse what was garbage before.
    """
    for record in garbage.dropped:
        history.remove(record)
    kept = {record.id for record in garbage.kept}
    for waste in garbage.waste:
        if is_held(waste.place):
            continue
        with lease(waste.place):
            if began := history.ids() - kept:
                raise ConfigError(f"run {min(began)} began meanwhile: the rest is kept; run `vlsi gc` again")
            if _state(waste.place) != (waste.bytes, waste.modified):
                continue
            discard(waste.place)
        yield waste


def _chosen(history: History, names: Sequence[str], last: int | None) -> tuple[list[RunRecord], list[RunRecord]]:
    """The runs that are kept, and the others."""
    records = history.records()
    if not names and last is None:
        return records, []
    kept = {history.find(name).id for name in names}
    kept |= {record.id for record in records if record.status == "running" and not record.is_interrupted}
    if last is not None:
        for experiment in {record.experiment for record in records}:
            kept |= {record.id for record in [r for r in records if r.experiment == experiment][-last:]}
    return [r for r in records if r.id in kept], [r for r in records if r.id not in kept]


def _waste(place: Place, dropped: Mapping[str, set[str]]) -> Waste:
    runs = [run for run, fingerprints in dropped.items() if place.name in fingerprints]
    why = f"only dropped runs refer to it: {', '.join(runs)}" if runs else "no run refers to it"
    return Waste(place, (place / MANIFEST_FILE).is_file(), *_state(place), why)


def _state(place: Place) -> tuple[int, float | None]:
    """Bytes and newest time of all files of an artifact and of attempts to make it."""
    dates = [date for folder in folders_of(place) for name, date in dates_below(folder).items() if name != LEASE_FILE]
    return sum(size for size, _ in dates), max((time for _, time in dates), default=0) / 1e9 or None
