"""Places: the same names for files here and in an object store, and nothing half written in either."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.contract import place as module
from stages.contract.place import (
    Place,
    Remote,
    absolute,
    copy_verified,
    dates_below,
    files_below,
    filled,
    local_copy,
    names_in,
    open_file,
    place_of,
    remove,
    sha256_of,
    size_of,
    staged,
    write_whole,
)
from tests.object_store import Server


@pytest.fixture(params=["here", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "here":
        yield tmp_path / "folder"
    else:
        yield request.getfixturevalue("bucket") / tmp_path.name


def put(place: Place, content: str) -> Place:
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
    write_whole(place, content)
    return place


def test_what_is_written_is_read(folder: Place) -> None:
    file = put(folder / "a" / "b.txt", "one")
    put(file, "three")
    assert (file.read_text(), file.read_bytes(), size_of(file)) == ("three", b"three", 5)
    assert sha256_of(file) == hashlib.sha256(b"three").hexdigest()
    assert open_file(file).read_at(2, 1) == b"hr"
    assert (file.is_file(), file.exists(), (folder / "a").is_file(), (folder / "a").exists()) == (
        True,
        True,
        False,
        True,
    )
    assert (folder / "none").exists() is False
    assert size_of(folder / "none") is None
    file.unlink()
    file.unlink(missing_ok=True)
    assert not file.exists()


def test_files_below_a_folder_are_listed_without_those_being_written(folder: Place) -> None:
    put(folder / "a" / "b.txt", "one")
    put(folder / "c.txt", "three")
    put(folder / f"{module.TEMPORARY_PREFIX}x" / "d.txt", "torn")
    assert files_below(folder) == {"a/b.txt": 3, "c.txt": 5}
    remove(folder / "a")
    remove(folder / "none")
    assert files_below(folder) == {"c.txt": 5}


def test_what_is_directly_in_a_folder_is_named_and_all_below_it_dated(folder: Place) -> None:
    assert names_in(folder) == []
    put(folder / "a" / "b.txt", "one")
    put(folder / "c.txt", "three")
    assert names_in(folder) == ["a", "c.txt"]
    assert {name: size for name, (size, _) in dates_below(folder).items()} == {"a/b.txt": 3, "c.txt": 5}
    assert all(time > 1e18 for _, time in dates_below(folder).values())


@pytest.mark.parametrize("content", ["", "some blocks of text"])
def test_a_verified_copy_is_there_whole(folder: Place, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 4)
    told: list[int] = []
    source = put(folder / "source", content)
    assert copy_verified(source, folder / "copy", hashlib.sha256(content.encode()).hexdigest(), told.append)
    assert (folder / "copy").read_text() == content
    assert sum(told) == len(content)


def test_a_copy_of_another_content_than_was_promised_is_not_there(folder: Place) -> None:
    source = put(folder / "source", "altered")
    assert not copy_verified(source, folder / "copy", hashlib.sha256(b"promised").hexdigest())
    assert files_below(folder) == {"source": 7}


def test_a_copy_that_is_repeated_counts_its_bytes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(tmp_path / "source", "12345678")
    monkeypatch.setattr(module, "BLOCK_BYTES", 4)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    told: list[int] = []

    def tell(count: int) -> None:
        told.append(count)
        if len(told) == 2:
            raise OSError("AWS Error NETWORK_CONNECTION")

    assert copy_verified(source, tmp_path / "copy", hashlib.sha256(b"12345678").hexdigest(), tell)
    assert sum(told) == 8
    assert names_in(tmp_path) == ["copy", "source"]


def test_a_staged_file_is_there_once_it_is_left_without_an_error(folder: Place) -> None:
    def dies(place: Place) -> None:
        with staged(place) as path:
            path.write_text("half")
            raise KeyError

    put(folder / "other", "x")
    with pytest.raises(KeyError):
        dies(folder / "file")
    assert files_below(folder) == {"other": 1}
    with staged(folder / "file") as path:
        path.write_text("whole")
        assert files_below(folder) == {"other": 1}
    assert (folder / "file").read_text() == "whole"


def test_the_first_staged_folder_stays(folder: Place) -> None:
    """Several actors leave the same folder. Red if a later one fails, or what a reader has open goes away."""
    for _ in range(2):
        with staged(folder / "readout") as path:
            path.mkdir()
            (path / "config.json").write_text("{}")
    assert files_below(folder) == {"readout/config.json": 2}


def test_a_folder_is_filled_beside_what_is_there(folder: Place) -> None:
    put(folder / "job.json", "{}")
    with filled(folder) as path:
        (path / "model").mkdir()
        (path / "model" / "weights").write_text("w")
    assert files_below(folder) == {"job.json": 2, "model/weights": 1}


def test_a_copy_on_this_machine_follows_the_content(
    bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made once; red if another content at the same place gives the old copy."""
    monkeypatch.setenv(module.COPIES_VARIABLE, str(tmp_path / "copies"))
    place = bucket / tmp_path.name / "model"
    put(place / "config.json", "{}")
    first = local_copy(place)
    assert (first / "config.json").read_text() == "{}"
    monkeypatch.setattr(module, "_download", lambda *_: pytest.fail("copied twice"))
    assert local_copy(place) == first
    monkeypatch.undo()
    monkeypatch.setenv(module.COPIES_VARIABLE, str(tmp_path / "copies"))
    put(place / "config.json", '{"a": 1}')
    assert (local_copy(place) / "config.json").read_text() == '{"a": 1}'
    assert local_copy(tmp_path) == tmp_path


def test_requests_that_fail_are_repeated(bucket: Remote, store: Server, tmp_path: Path) -> None:
    """A third of all requests are answered with 500."""
    place = bucket / tmp_path.name
    before = store.faults(errors=0.3)
    try:
        for index in range(8):
            put(place / f"{index}.txt", str(index))
        assert [(place / f"{index}.txt").read_text() for index in range(8)] == [str(index) for index in range(8)]
        assert len(files_below(place)) == 8
    finally:
        failed = store.faults(errors=0.0) - before
    assert failed > 0


def test_a_slow_answer_is_waited_for(bucket: Remote, store: Server, tmp_path: Path) -> None:
    place = put(bucket / tmp_path.name / "file", "late")
    store.faults(slow=5.0)
    try:
        assert place.read_text() == "late"
    finally:
        store.faults(slow=0.0)


@pytest.mark.parametrize("later", ["four", "the longest", "no"])
def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(
    bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    """It is replaced between the request for its size and that for its content. Red if the size is believed."""
    place = put(bucket / tmp_path.name / "file", "long")
    store = place.filesystem

    class ReplacedOnce:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def open_input_file(self, key: str) -> object:
            monkeypatch.undo()
            file = store.open_input_file(key)
            put(place, later)
            return file

    monkeypatch.setattr(module, "_filesystem", lambda *_: ReplacedOnce())
    assert place.read_text() == later


def test_no_secret_is_in_what_travels_to_workers(bucket: Remote) -> None:
    """Not in a place, nor in the file system that Ray Train gets."""
    for thing in (bucket, bucket.filesystem):
        assert b"test-secret-key" not in pickle.dumps(thing)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/a", "credentials and endpoints come from the environment"),
        ("s3://bucket/a?endpoint_override=x", "credentials and endpoints come from the environment"),
        ("ftp://host/a", "ftp:// is unknown; allowed: a path, s3://, gs://"),
    ],
)
def test_a_url_holds_a_bucket_and_a_key_and_nothing_else(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        place_of(url)
    assert "secret@" not in str(error.value)


def test_places_have_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place_of("gs://bucket/a/") == Remote("gs://bucket") / "a"
    assert str(Remote("s3://bucket/a/b").parent) == "s3://bucket/a"
    assert absolute("a") == str(tmp_path / "a")
    assert absolute("s3://bucket/a/") == "s3://bucket/a"
    assert (Remote("s3://b/a") / "").url == "s3://b/a"


def test_google_storage_is_reached_through_its_own_file_system() -> None:
    """No request is made; red if the scheme has none or pyarrow was built without it."""
    assert type(Remote("gs://bucket/a").filesystem).__name__ == "GcsFileSystem"
