"""A lease: of several processes that want to make one artifact, one works and the others wait.

On this machine it is a lock of the operating system, which a killed process gives back by dying. In an
object store it is an object with its holder's name and the time of its last sign of life; a holder
that is silent for `STALE_SECONDS` has lost it. Whoever comes second finds the artifact made when its
turn comes. The lease saves work; it is not what keeps an artifact whole: files are written whole
and are the same whoever makes them.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stages.contract.place import Place, Remote, write_whole

LOCK_SUFFIX = ".lock"
LEASE_FILE = ".lease.json"
BEAT_SECONDS = 10.0
"""Between two signs of life."""
STALE_SECONDS = 60.0
SETTLE_SECONDS = 1.0
"""After which a claim that nobody has written over holds."""


@contextmanager
def lease(place: Place) -> Iterator[None]:
    """Hold the right to make the artifact at `place`; waits for whoever has it, and says so."""
    with _lease_remote(place) if isinstance(place, Remote) else _lease_here(place):
        yield


@contextmanager
def _lease_here(place: Path) -> Iterator[None]:
    lock = place.with_name(place.name + LOCK_SUFFIX)
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(lock)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, _me().encode())
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path) -> int:
    """An open file with an exclusive lock that still stands at `lock` once the lock is ours."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say_waiting(lock, os.read(descriptor, 200).decode(errors="replace"))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                return descriptor
        os.close(descriptor)


@contextmanager
def _lease_remote(place: Remote) -> Iterator[None]:
    file = place / LEASE_FILE
    me = f"{_me()} {secrets.token_hex(4)}"
    _claim(file, me)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(file, me, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        if _holder(file)[0] == me:
            file.unlink(missing_ok=True)


def _claim(file: Remote, me: str) -> None:
    """Write the lease once it is free; of two that write at one time the later one has it."""
    told = ""
    while True:
        holder, silent = _holder(file)
        if holder == me:
            return
        if holder and silent < STALE_SECONDS:
            if holder != told:
                _say_waiting(file, holder)
            told = holder
            time.sleep(BEAT_SECONDS / 2)
            continue
        if holder:
            print(f"{holder} has been silent for {silent:.0f} s; taking over from it", file=sys.stderr)
        _write(file, me)
        time.sleep(SETTLE_SECONDS)


def _beat(file: Remote, me: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            _write(file, me)


def _holder(file: Remote) -> tuple[str, float]:
    """Who has the lease, and for how many seconds there has been no sign of life; nobody if it is free."""
    if not file.is_file():
        return "", 0.0
    try:
        lease: dict[str, Any] = json.loads(file.read_text())
    except (ValueError, FileNotFoundError):
        return "", 0.0
    return lease["holder"], time.time() - lease["time"]


def _write(file: Remote, me: str) -> None:
    write_whole(file, json.dumps({"holder": me, "time": time.time()}))


def _say_waiting(file: Place, holder: str) -> None:
    print(f"waiting for {holder or 'another process'}, which holds {file}", file=sys.stderr)


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
