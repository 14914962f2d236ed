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
from typing import Any, NamedTuple

from stages.contract.place import Place, Remote, write_whole

LOCK_SUFFIX = ".lock"
LEASE_FILE = ".lease.json"
BEAT_SECONDS = 10.0
"""Between two signs of life."""
STALE_SECONDS = 60.0
SETTLE_SECONDS = 1.0
"""After which a claim that nobody has written over holds."""
POLL_SECONDS = 2.0
READINGS = 5
"""Of a lease that cannot be understood, before it counts as none."""
_THIS_PROCESS = secrets.token_hex(4)
"""Tells it from another one of the same number, as every first process of a container is."""


class Holder(NamedTuple):
    """Who has a lease in an object store; `life` tells a thread of a process from all others of the same number."""

    host: str
    pid: int
    life: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_dead(self, me: Holder) -> bool:
        """Whether the process is known to be gone: it was on this host, and now there is none or another one."""
        if self.host != me.host:
            return False
        if self.pid == me.pid:
            return not self.life.startswith(_THIS_PROCESS)
        return not Path(f"/proc/{self.pid}").exists()


@contextmanager
def lease(place: Place) -> Iterator[None]:
    """Hold the right to make the artifact at `place`; waits for whoever has it, and says so."""
    with _lease_remote(place) if isinstance(place, Remote) else _lease_here(place):
        yield


def is_held(place: Place) -> bool:
    """Whether a process that lives has the lease of `place`."""
    if isinstance(place, Remote):
        found = _read(place / LEASE_FILE)
        return found is not None and found[1] <= STALE_SECONDS and not found[0].is_dead(_me())
    try:
        with place.with_name(place.name + LOCK_SUFFIX).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def _lease_here(place: Path) -> Iterator[None]:
    lock = place.with_name(place.name + LOCK_SUFFIX)
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(lock)
    try:
        if left := os.pread(descriptor, 200, 0).decode(errors="replace"):
            print(f"{left} is gone; taking over from it", file=sys.stderr)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
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
            _say_waiting(lock, os.pread(descriptor, 200, 0).decode(errors="replace"))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                return descriptor
        os.close(descriptor)


@contextmanager
def _lease_remote(place: Remote) -> Iterator[None]:
    file = place / LEASE_FILE
    me = _me()
    _claim(file, me)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(file, me, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with suppress(OSError):  # a lease that cannot be given back goes stale
            if (found := _read(file)) and found[0] == me:
                file.unlink(missing_ok=True)


def _me() -> Holder:
    return Holder(socket.gethostname(), os.getpid(), f"{_THIS_PROCESS}-{threading.get_ident()}")


def _claim(file: Remote, me: Holder) -> None:
    """Write the lease once it is free; of two that write at one time the later one has it."""
    told = None
    while (found := _read(file)) is None or found[0] != me:
        if found is None:
            _write(file, me)
            time.sleep(SETTLE_SECONDS)
            continue
        holder, silent = found
        if silent > STALE_SECONDS or holder.is_dead(me):
            print(f"{holder} is gone; taking over from it", file=sys.stderr)
            file.unlink(missing_ok=True)
            continue
        if holder != told:
            _say_waiting(file, str(holder))
        told = holder
        time.sleep(POLL_SECONDS)


def _beat(file: Remote, me: Holder, ended: threading.Event) -> None:
    """Show signs of life, until another one has taken over: both then make the same files."""
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            if (found := _read(file)) and found[0] != me:
                return
            _write(file, me)


def _read(file: Remote) -> tuple[Holder, float] | None:
    """Who has the lease, and for how many seconds there has been no sign of life; None if it is free."""
    for _ in range(READINGS):
        try:
            lease: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        except FileNotFoundError:
            return None
        except json.JSONDecodeError:  # written anew between the question how long it is and the reading
            continue
        return (Holder(*lease["holder"]), time.time() - lease["time"]) if lease else None
    return None


def _write(file: Remote, me: Holder) -> None:
    write_whole(file, json.dumps({"holder": me, "time": time.time()}))


def _say_waiting(file: Place, holder: str) -> None:
    print(f"waiting for {holder or 'another process'}, which holds {file}", file=sys.stderr)
