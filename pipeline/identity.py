"""What makes two results the same: fingerprints of nodes, digests of what comes from outside.

A fingerprint is a hash of an identity: the stage, its version, the settings that can change its
result, and the fingerprints or digests of its inputs. Where something lies, and where or how fast
it is made, is in neither.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contract import StageError
from stages.contract.artifact import canonical_json
from stages.contract.place import Remote, dates_below, place_of, sha256_of, write_whole
from stages.data.mixture import Mixture, Source, data_files, open_sources

if TYPE_CHECKING:
    from stages.data.sample import Sample

DIGEST_LENGTH = 16
DIGESTS_FILE = ".digests.json"
ABSENT = "absent"
_CHECKPOINT_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.bin", "*.py")
"""Configuration, weights, tokenizer, processor, chat template, code."""
_NOT_OF_THE_MODEL = ("manifest.json", "job.json")


class MissingInput(Exception):
    """Something that an experiment names does not exist."""


def fingerprint(identity: dict[str, Any]) -> str:
    """16 hex digits for one identity, the same in every process.

    Raises:
        TypeError, ValueError: a value cannot be written the same way everywhere.
    """
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:DIGEST_LENGTH]


class Digests:
    """Content digests of checkpoints and data sets, remembered in the store.

    A file is read again only when its size or modification time changes; asking again costs one
    `stat` per file. Which pictures a data set names is remembered too.
    """

    def __init__(self, store: Path) -> None:
        """Continue with what `store` remembers; a damaged memory is forgotten."""
        self._path = store / DIGESTS_FILE
        self._checkpoints: dict[str, str] = {}
        self._data: dict[tuple[str, bool], str] = {}
        self._changed = False
        memory = _read_memory(self._path)
        self._files: dict[str, list[Any]] = memory["files"]
        self._pictures: dict[str, dict[str, Any]] = memory["pictures"]

    def checkpoint(self, path: str) -> str:
        """Of a folder: names and contents of the files that make the model; in an object store their sizes and
        dates stand for the contents. Of a hub id: the id itself."""
        if path not in self._checkpoints:
            self._checkpoints[path] = self._identify_checkpoint(path)
        return self._checkpoints[path]

    def _identify_checkpoint(self, path: str) -> str:
        place = place_of(path)
        if isinstance(place, Remote):
            return _remote_checkpoint(place)
        if not place.is_absolute():
            return path if "@" in path else f"{path}@main"
        if not place.is_dir():
            raise MissingInput(f"{place} does not exist")
        names = sorted(file.name for file in place.iterdir() if is_of_the_model(file.name))
        if "config.json" not in names:
            raise MissingInput(f"{place} is no checkpoint: it has no config.json")
        return fingerprint({name: self._file(place / name) for name in names})

    def samples(self, place: str, *, pictures: bool = True) -> str:
        """Of a data set: what is taken of which content; where that lies is not in it.

        Args:
            pictures: read the pictures too; without, the files that name (or hold) them stand for them.

        Raises:
            MissingInput: a file does not exist or is damaged as a whole.
        """
        if (place, pictures) not in self._data:
            self._data[place, pictures] = self._identify(place, pictures)
        return self._data[place, pictures]

    def _identify(self, place: str, pictures: bool) -> str:
        try:
            mixture = open_sources(Path(place))
            sources = [self._source(source) for source in mixture.sources]
            named = self._pictures_of(place, mixture, sources) if pictures else []
        except StageError as error:
            raise MissingInput(str(error).removeprefix("data: ")) from error
        return fingerprint({"seed": mixture.seed, "sources": sources, "pictures": [self._file(path) for path in named]})

    def _pictures_of(self, place: str, mixture: Mixture, sources: list[dict[str, Any]]) -> list[str]:
        """The picture files that a data set names; its samples are read only when their files are other ones."""
        roots = [str(source.root) for source in mixture.sources]
        state = fingerprint({"seed": mixture.seed, "sources": sources, "roots": roots})
        return self._remembered(place, state, lambda: _named_pictures(Path(place)))

    def _remembered(self, key: str, state: str, find: Callable[[], list[str]]) -> list[str]:
        """Paths of pictures, found anew when what names them is in another state."""
        known = self._pictures.get(key)
        if known is None or known["state"] != state:
            self._pictures[key] = known = {"state": state, "paths": find()}
            self._changed = True
        return list(known["paths"])

    def questions(self, benchmark: str, place: str) -> str:
        """Of a local copy of a benchmark: names and contents of its files and contents of the pictures they name.

        Raises:
            MissingInput: there are no such files, or one is damaged as a whole.
        """
        from stages.benchmarks import SAMPLES

        if benchmark == SAMPLES:
            return self.samples(place)
        try:
            files = {name: self._file(path) for name, path in _benchmark_files(benchmark, Path(place)).items()}
            pictures = self._remembered(f"{benchmark}={place}", fingerprint(files), lambda: _shown(benchmark, place))
        except StageError as error:
            raise MissingInput(str(error).removeprefix("benchmark: ")) from error
        return fingerprint({"files": files, "pictures": [self._file(path) for path in pictures]})

    def _source(self, source: Source) -> dict[str, Any]:
        how = source.model_dump(mode="json", exclude={"path", "images"})
        return how | {"files": [self._file(file) for file in data_files(source.path)]}

    def save(self) -> None:
        """Remember what was read."""
        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps({"files": self._files, "pictures": self._pictures}))
            self._changed = False

    def _file(self, path: str | Path) -> str:
        """The digest of one file; a missing image has one too, and gets another when it appears."""
        key = str(path)
        try:
            stat = os.stat(key)
        except OSError:
            return "missing"
        state = [stat.st_size, stat.st_mtime_ns]
        known = self._files.get(key)
        if known is None or known[:2] != state:
            self._files[key] = known = [*state, sha256_of(Path(path))]
            self._changed = True
        return str(known[2])


def _read_memory(path: Path) -> dict[str, Any]:
    try:
        memory = json.loads(path.read_text())
        return {"files": dict(memory["files"]), "pictures": dict(memory["pictures"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {"files": {}, "pictures": {}}


def _remote_checkpoint(folder: Remote) -> str:
    dates = {name: date for name, date in dates_below(folder).items() if "/" not in name and is_of_the_model(name)}
    if "config.json" not in dates:
        raise MissingInput(f"{folder} is no checkpoint: it has no config.json")
    return fingerprint(dates)


def is_of_the_model(name: str) -> bool:
    """Whether a file of a checkpoint's folder, by its name, belongs to the checkpoint."""
    return name not in _NOT_OF_THE_MODEL and any(fnmatch(name, pattern) for pattern in _CHECKPOINT_PATTERNS)


def _benchmark_files(benchmark: str, place: Path) -> dict[str, Path]:
    """The files that a benchmark takes of a folder, by their names there, or the one that is named."""
    from stages.benchmarks import benchmark_named
    from stages.benchmarks.rows import files_of

    files = files_of(place, benchmark_named(benchmark).files)
    return {file.name if file == place else str(file.relative_to(place)): file for file in files}


def _named_pictures(place: Path) -> list[str]:
    """The picture files that a data set names, each once."""
    from stages.data.sample import read_samples

    return _paths(read_samples(place)[0])


def _shown(benchmark: str, place: str) -> list[str]:
    """The picture files that a benchmark names, each once."""
    from stages.benchmarks import read_questions

    return _paths(read_questions(benchmark, Path(place))[0])


def _paths(samples: Iterable[Sample]) -> list[str]:
    return list(dict.fromkeys(str(picture) for s in samples for picture in s.images if isinstance(picture, Path)))


@dataclass(frozen=True)
class Change:
    """A value that differs between two sides; one that is missing on a side is `absent` there."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} {spell(self.before)} → {spell(self.after)}"


def flatten(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity's settings by dotted key, with the stage in front, and its version."""
    stage = identity["stage"]
    return {f"{stage}.version": identity["version"], **dotted(identity["settings"], f"{stage}.")}


def changed_fields(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """`interaction.schedule.learning_rate 1e-4 → 5e-5`, one line for each setting that differs."""
    return [str(change) for change in differences(flatten(before), flatten(after))]


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """What differs between two flat mappings, by key."""
    changes = [Change(key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in sorted({*before, *after})]
    return [change for change in changes if change.before != change.after]


def dotted(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one mapping: `schedule.seed`; an empty section is a value."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= dotted(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item
    return flat


def spell(value: Any) -> str:
    """A setting as a person would write it: `1e-4`, `null`, `[0, 1]`."""
    if isinstance(value, float) and value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return value if isinstance(value, str) else json.dumps(value)
