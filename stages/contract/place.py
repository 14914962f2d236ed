"""Places: files and folders on this machine, or in an object store (`s3://…`, `gs://…`).

A place on this machine is a `pathlib.Path`; one in an object store is a `Remote`, which answers to the same
names. What differs between the two is in the functions below: writing whole, copying to this machine,
listing. Object stores are reached through pyarrow's file systems, which repeat failed requests;
credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS,
a pod's role, …), never from a URL. AWS_ENDPOINT_URL names another store that speaks S3.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")
SCHEMES = ("s3", "gs")
ATTEMPTS = 8
"""Of one request to an object store, with growing pauses, before it is an error."""
PATIENCE_SECONDS = 60
"""That one request may take."""
BLOCK_BYTES = 2**23
"""Of a file that is read through, in memory at a time."""
TEMPORARY_PREFIX = ".writing-"
"""Of files that are being written; what a kill leaves of them belongs to nothing."""
OF_A_STORE = ("AWS Error", "google::cloud", "curlCode")
"""In the messages of pyarrow's file systems."""
COPIES_VARIABLE = "VLSI_COPIES"
"""Names the folder for copies of what lies in an object store; else it is below ~/.cache."""


@dataclass(frozen=True, order=True)
class Remote:
    """A file or folder in an object store, with the part of pathlib's interface that both kinds share."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | Path) -> Remote:
        return Remote(f"{self.url}/{name}") if str(name) else self

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        """Without the last part."""
        return Remote(self.url.rpartition("/")[0])

    @property
    def key(self) -> str:
        """Bucket and key, as pyarrow's file systems take them."""
        return self.url.partition("://")[2]

    @property
    def filesystem(self) -> FileSystem:
        """The store, one for each process."""
        return _filesystem(self.url.partition("://")[0], self.key.partition("/")[0])

    def exists(self) -> bool:
        """Whether there is such a file, or a folder with anything in it."""
        return self.info().type.name != "NotFound"

    def is_file(self) -> bool:
        """Whether there is such a file."""
        return self.info().is_file

    def info(self) -> FileInfo:
        """Type, size and time."""
        return patiently(lambda: self.filesystem.get_file_info(self.key))

    def read_bytes(self) -> bytes:
        """The whole file as it was at one moment."""

        def read() -> bytes:
            while True:
                with self.filesystem.open_input_file(self.key) as file:
                    content = file.read()
                # It is read up to where it ended when it was opened, even if a longer one has taken its place since.
                if len(content) == self.info().size:
                    return content

        return patiently(read)

    def read_text(self) -> str:
        """The whole file as text."""
        return self.read_bytes().decode()

    def write_text(self, text: str) -> None:
        """Put the whole file with one request: a reader sees the old one or the new."""

        def write() -> None:
            with self.filesystem.open_output_stream(self.key) as file:
                file.write(text.encode())

        patiently(write)

    def mkdir(self, **_: Any) -> None:
        """Nothing: an object store has no folders."""

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Delete the file."""
        if not missing_ok or self.is_file():
            patiently(lambda: self.filesystem.delete_file(self.key))

    def move_to(self, other: Remote) -> None:
        """Copy within the store, then delete."""
        patiently(lambda: self.filesystem.copy_file(self.key, other.key))
        self.unlink()


Place = Path | Remote


def patiently(request: Callable[[], T]) -> T:
    """Repeat a request to an object store whose failure the store's client takes for final too early."""
    for pause in (*(0.2 * 2**attempt for attempt in range(ATTEMPTS)), None):
        try:
            return request()
        except OSError as error:
            if pause is None or not is_transient(error):
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def is_transient(error: BaseException) -> bool:
    """Whether a request failed for a reason that may pass, rather than the file or the right to it being missing."""
    refused = isinstance(error, FileNotFoundError | PermissionError) or "ACCESS_DENIED" in str(error)
    return isinstance(error, OSError) and not refused and any(mark in str(error) for mark in OF_A_STORE)


def place_of(where: str | Place) -> Place:
    """A path, or the URL of a file or folder in an object store.

    Raises:
        ValueError: the URL's scheme is unknown, or it holds more than a bucket and a key.
    """
    scheme, found, key = str(where).partition("://")
    if not found:
        return Path(where)  # type: ignore[arg-type]
    if scheme not in SCHEMES:
        raise ValueError(f"{where}: {scheme}:// is unknown; allowed: a path, {', '.join(f'{s}://' for s in SCHEMES)}")
    if "@" in key or "?" in key:
        raise ValueError(
            f"{scheme}://…{key.rpartition('@')[2].partition('?')[0]}: a URL holds a bucket and a key and nothing else; "
            "credentials and endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …)"
        )
    return Remote(f"{scheme}://{key.rstrip('/')}")


def absolute(where: str) -> str:
    """The same place for a process that runs in another folder."""
    place = place_of(where)
    return str(place) if isinstance(place, Remote) else str(place.expanduser().absolute())


def uri_of(place: Place) -> str:
    """With its scheme: `file:///…`, `s3://…`."""
    return str(place) if isinstance(place, Remote) else place.as_uri()


@contextmanager
def staged(place: Place) -> Iterator[Path]:
    """A temporary file or folder to fill; it stands at `place`, whole, once it is left without an error.

    A folder that is already there stays as it is: whoever comes first has made it.
    """
    folder = None if isinstance(place, Remote) else place.parent
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as scratch:
        path = Path(scratch) / place.name
        yield path
        if isinstance(place, Remote):
            _upload(path, place)
        elif path.is_dir() and place.exists():
            return
        else:
            path.replace(place)


@contextmanager
def filled(folder: Place) -> Iterator[Path]:
    """A folder on this machine whose files are in `folder` once it is left without an error."""
    if not isinstance(folder, Remote):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        _upload(Path(scratch), folder)


def write_whole(place: Place, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new, never a part."""
    if isinstance(place, Remote):
        place.write_text(text)
        return
    temporary = _temporary(place)
    try:
        temporary.write_text(text)
        sync(temporary)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def open_file(place: Place) -> pa.NativeFile:
    """A file for reading at any offset; one on this machine is mapped into memory."""
    import pyarrow as pa

    if isinstance(place, Remote):
        return patiently(lambda: place.filesystem.open_input_file(place.key))
    return pa.memory_map(str(place))


def size_of(place: Place) -> int | None:
    """Bytes of a file, or None if there is none."""
    if isinstance(place, Remote):
        info = place.info()
        return info.size if info.is_file else None
    return place.stat().st_size if place.is_file() else None


def files_below(folder: Place) -> dict[str, int]:
    """Size of every file below a folder by its relative path, without those that are being written."""
    if isinstance(folder, Remote):
        found = {info.path.removeprefix(f"{folder.key}/"): info.size for info in _listing(folder)}
    else:
        found = dict(_sizes_here(str(folder)))
    return {name: size for name, size in sorted(found.items()) if TEMPORARY_PREFIX not in name}


def _sizes_here(folder: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Caches have many shards, and data sets many pictures."""
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY_PREFIX):  # may be gone by now
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes_here(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size


def dates_below(folder: Place) -> dict[str, list[int]]:
    """Size and time (ns since the epoch) of every file below a folder."""
    if isinstance(folder, Remote):
        return {info.path.removeprefix(f"{folder.key}/"): [info.size, info.mtime_ns] for info in _listing(folder)}
    stats = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def names_in(folder: Place) -> list[str]:
    """Names of the files and folders directly in a folder, sorted; none if it is not there."""
    if not isinstance(folder, Remote):
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    from pyarrow.fs import FileSelector

    selector = FileSelector(folder.key, allow_not_found=True)
    return sorted(info.base_name for info in patiently(lambda: folder.filesystem.get_file_info(selector)))


def sha256_of(place: Place) -> str:
    """Hex SHA-256 of a file's content."""
    if not isinstance(place, Remote):
        with place.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    return patiently(lambda: _each_block(place, lambda block: None))


def copy_verified(source: Place, target: Place, sha256: str, told: Callable[[int], None] = lambda count: None) -> bool:
    """Copy a file; it stands at `target` only if its content has this checksum.

    Args:
        source: the file.
        target: where the copy goes, in any kind of store.
        sha256: hex, of what the file should hold.
        told: is told how many bytes were written, again and again; fewer than none when an attempt is repeated.

    Returns:
        Whether the content has the checksum.
    """
    written = target if isinstance(target, Remote) else _temporary(target)
    same = False
    try:
        same = patiently(lambda: _copy(source, written, sha256, told))
        if same and isinstance(target, Path) and isinstance(written, Path):
            written.replace(target)
    finally:
        if not same:
            written.unlink(missing_ok=True)
    return same


def remove(folder: Place) -> None:
    """Delete a folder with all that is in it, if it is there."""
    if not isinstance(folder, Remote):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        patiently(lambda: folder.filesystem.delete_dir(folder.key))


def local_copy(place: Place) -> Path:
    """The file or folder itself, or a copy on this machine's disk, made once for each content."""
    if not isinstance(place, Remote):
        return place
    infos = _listing(place) or [place.info()]
    state = repr([(info.path, info.size, info.mtime_ns) for info in infos])
    copy = _copies() / hashlib.sha256(state.encode()).hexdigest()[:32] / place.name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with staged(copy) as path:
            _download(place, path)
    return copy


@contextmanager
def borrowed(file: Place) -> Iterator[Path]:
    """A file itself, or a copy on this machine's disk that is gone afterwards."""
    if not isinstance(file, Remote):
        yield file
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / file.name
        _download(file, path)
        yield path


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(place: Path) -> Path:
    return place.with_name(f"{TEMPORARY_PREFIX}{place.name}-{secrets.token_hex(4)}")


def _copy(source: Place, target: Place, sha256: str, told: Callable[[int], None]) -> bool:
    """One attempt to copy a file; says whether it has this checksum, and takes back what it told if it fails."""
    written = 0

    def write(block: bytes) -> None:
        nonlocal written
        output.write(block)
        written += len(block)
        told(len(block))

    try:
        with _output(target) as output:
            return _each_block(source, write) == sha256
    except BaseException:
        told(-written)
        raise


def _output(place: Place) -> Any:
    return place.filesystem.open_output_stream(place.key) if isinstance(place, Remote) else place.open("wb")


def _each_block(place: Place, use: Callable[[bytes], None]) -> str:
    """Read a file once, block by block; its hex SHA-256."""
    digest = hashlib.sha256()
    with place.filesystem.open_input_file(place.key) if isinstance(place, Remote) else place.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            use(block)
    return digest.hexdigest()


def _copies() -> Path:
    return Path(os.environ.get(COPIES_VARIABLE) or Path.home() / ".cache" / "vlsi").absolute()


def _listing(folder: Remote) -> list[FileInfo]:
    from pyarrow.fs import FileSelector

    selector = FileSelector(folder.key, allow_not_found=True, recursive=True)
    infos = patiently(lambda: folder.filesystem.get_file_info(selector))
    return sorted((info for info in infos if info.is_file), key=lambda info: info.path)


def _upload(path: Path, place: Remote) -> None:
    """A file with one put (one multipart upload if it is large), or every file of a folder."""
    from pyarrow.fs import LocalFileSystem, copy_files

    files = {path: place} if path.is_file() else {path / name: place / name for name in files_below(path)}
    for source, target in files.items():
        patiently(partial(copy_files, str(source), target.key, LocalFileSystem(), target.filesystem))


def _download(place: Remote, path: Path) -> None:
    """A file, or every file of a folder."""
    from pyarrow.fs import LocalFileSystem, copy_files

    for name in files_below(place) or [""]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        patiently(partial(copy_files, (place / name).key, str(path / name), place.filesystem, LocalFileSystem()))


@lru_cache
def _filesystem(scheme: str, bucket: str) -> FileSystem:
    from pyarrow import fs

    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=ATTEMPTS * PATIENCE_SECONDS))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        region=region or (None if endpoint else fs.resolve_s3_region(bucket)),
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        request_timeout=PATIENCE_SECONDS,
        connect_timeout=PATIENCE_SECONDS,
        allow_delayed_open=True,
    )
