"""References: what a run needs of a store.

A run refers to what it wanted, to what it ran and to whatever its configuration names; each of these
refers to what it was made from. Artifacts are told by their fingerprints, wherever these are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.history import RunRecord
from stages.contract import STAGES, open_artifact
from stages.contract.artifact import REPLACED_SUFFIX, WORK_SUFFIX, work_folder
from stages.contract.files import JOB_FILE
from stages.contract.lease import LOCK_SUFFIX
from stages.contract.place import Place, names_in

_STAGES_IN_STORE = tuple(name for name in STAGES if name != "prepare")
"""What `vlsi prepare` makes stands where people choose."""
_SUFFIXES = "|".join(map(re.escape, (WORK_SUFFIX, REPLACED_SUFFIX, LOCK_SUFFIX)))
_ENTRY = re.compile(rf"([0-9a-f]{{16}})({_SUFFIXES})?")
_FINGERPRINT = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")


def places_in(store: Place) -> dict[str, Place]:
    """By fingerprint the place of everything that is committed in a store, was begun, or left something beside it."""
    found = {}
    for stage in _STAGES_IN_STORE:
        for name in names_in(store / stage):
            if entry := _ENTRY.fullmatch(name):
                found[entry[1]] = store / stage / entry[1]
    return found


def referred(record: RunRecord) -> set[str]:
    """Fingerprints that a run refers to itself."""
    ran = [stage.fingerprint for stage in record.stages.values()]
    return _fingerprints([record.wanted, ran, record.configuration])


def made_from(place: Place) -> set[str]:
    """Fingerprints of what the artifact at `place` was made from, and of what an attempt there reads.

    Raises:
        ArtifactError: the manifest cannot be read.
    """
    artifact = open_artifact(place)
    job = work_folder(place) / JOB_FILE
    told = _fingerprints(job.read_text()) if job.is_file() else set()
    return told | (_fingerprints([artifact.manifest.identity, artifact.manifest.inputs]) if artifact else set())


def needed(roots: Iterable[str], places: Mapping[str, Place]) -> set[str]:
    """The roots and, as far as their places are known, everything upstream of them.

    Raises:
        ArtifactError: a manifest on the way cannot be read.
    """
    reached: set[str] = set()
    waiting = list(roots)
    while waiting:
        fingerprint = waiting.pop()
        if fingerprint not in reached:
            reached.add(fingerprint)
            waiting += made_from(places[fingerprint]) if fingerprint in places else ()
    return reached


def _fingerprints(value: Any) -> set[str]:
    return set(_FINGERPRINT.findall(json.dumps(value)))
