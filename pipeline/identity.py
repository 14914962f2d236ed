"""What makes two results the same: fingerprints of nodes, digests of what comes from outside.

A fingerprint is a hash of an identity: the stage, its version, the settings that can change its
result, and the fingerprints or digests of its inputs. Where something lies, and where or how fast
it is made, is in neither.
"""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from stages.contract import StageError
from stages.contract.artifact import canonical_json
from stages.contract.place import Remote, dates_below, place_of, sha256_of, write_whole
from stages.data.mixture import Source, open_sources
from stages.data.records import data_files
from stages.data.sample import read_samples

DIGEST_LENGTH = 16
DIGESTS_FILE = ".digests.json"
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
    `stat` per file.
    """

    def __init__(self, store: Path) -> None:
        """Continue with what `store` remembers; a damaged memory is forgotten."""
        self._path = store / DIGESTS_FILE
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        self._data: dict[tuple[str, bool], str] = {}
        try:
            self._known = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self._known = {}

    def checkpoint(self, path: str) -> str:
        """Of a folder: names and contents of the files that make the model; in an object store their sizes and
        dates stand for the contents. Of a hub id: the id itself."""
        place = place_of(path)
        if isinstance(place, Remote):
            return _remote_checkpoint(place)
        folder = place
        if not folder.is_absolute():
            return path if "@" in path else f"{path}@main"
        if not folder.is_dir():
            raise MissingInput(f"{folder} does not exist")
        files = {file for pattern in _CHECKPOINT_PATTERNS for file in folder.glob(pattern)}
        files = {file for file in files if file.name not in _NOT_OF_THE_MODEL}
        if not any(file.name == "config.json" for file in files):
            raise MissingInput(f"{folder} is no checkpoint: it has no config.json")
        return fingerprint({file.name: self._file(file) for file in sorted(files)})

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
            named = _pictures(Path(place)) if pictures else []
        except StageError as error:
            raise MissingInput(str(error).removeprefix("data: ")) from error
        return fingerprint({"seed": mixture.seed, "sources": sources, "pictures": [self._file(path) for path in named]})

    def _source(self, source: Source) -> dict[str, Any]:
        how = source.model_dump(mode="json", exclude={"path", "images"})
        return how | {"files": [self._file(file) for file in data_files(source.path)]}

    def save(self) -> None:
        """Remember what was read."""
        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(self._known))
            self._changed = False

    def _file(self, path: Path) -> str:
        """The digest of one file; a missing image has one too, and gets another when it appears."""
        try:
            stat = path.stat()
        except OSError:
            return "missing"
        key, state = str(path), [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(key)
        if known is None or known[:2] != state:
            self._known[key] = known = [*state, sha256_of(path)]
            self._changed = True
        return str(known[2])


def _remote_checkpoint(folder: Remote) -> str:
    files = {name: date for name, date in dates_below(folder).items() if "/" not in name}
    files = {n: date for n, date in files.items() if any(fnmatch(n, pattern) for pattern in _CHECKPOINT_PATTERNS)}
    if "config.json" not in files:
        raise MissingInput(f"{folder} is no checkpoint: it has no config.json")
    return fingerprint({name: date for name, date in files.items() if name not in _NOT_OF_THE_MODEL})


def _pictures(place: Path) -> list[Path]:
    """The picture files that a data set names, each once."""
    samples, _ = read_samples(place)
    return list(dict.fromkeys(picture for s in samples for picture in s.images if isinstance(picture, Path)))


def flatten(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity's settings by dotted key, with the stage in front, and its version."""
    return {f"{identity['stage']}.version": identity["version"], **flat(identity["settings"], f"{identity['stage']}.")}


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            found |= flat(item, f"{prefix}{key}.")
        else:
            found[prefix + key] = item
    return found


def changed_fields(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """`interaction.schedule.learning_rate 1e-4 → 5e-5`, one line for each setting that differs."""
    old, new = flatten(before), flatten(after)
    return [
        f"{key} {spell(old.get(key, 'absent'))} → {spell(new.get(key, 'absent'))}"
        for key in sorted({*old, *new})
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def spell(value: Any) -> str:
    """A setting as a person would write it: `1e-4`, `null`, `[0, 1]`."""
    if isinstance(value, float) and value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return value if isinstance(value, str) else json.dumps(value)
