"""Time and memory of two sides of a comparison, measured side by side.

Each side lives in a fresh process of its own, which builds its inputs once and then runs when it is
told to; the sides take turns, A B A B, so that a slow minute of the machine slows both. Memory is the
kernel's high-water mark of the process's resident set, reset before each run, above what was
resident once the inputs were built: what a run needs beyond its inputs.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

THREADS = 2
MIB = 2**20
PACKAGES = ("torch", "transformers", "ray", "pyarrow", "liger-kernel", "trl", "tuned-lens")


@dataclass
class Built:
    """A side whose inputs are in memory.

    Attributes:
        run: one run; returns numbers that show what was computed.
        notes: what else is worth reporting of the building.
        finish: called after the last run; returns further notes.
        warm: called before each run, outside its time.
    """

    run: Callable[[], dict[str, float]]
    notes: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[], dict[str, Any]] = dict
    warm: Callable[[], object] = dict


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a function of a module, called in a fresh process, and its arguments."""

    build: Callable[..., Built]
    arguments: dict[str, Any]


@dataclass
class Measured:
    """What was measured of one side.

    Attributes:
        resident_bytes: of the process, with the inputs in memory.
        notes: of its building and finishing.
        seconds, peak_bytes: of each run; memory above `resident_bytes`.
        values: what the last run returned.
    """

    resident_bytes: int
    notes: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)

    @property
    def median_seconds(self) -> float:
        """Of all repeats."""
        return statistics.median(self.seconds)

    @property
    def median_peak_bytes(self) -> float:
        """Of all repeats; what the allocator keeps between them makes them differ."""
        return statistics.median(self.peak_bytes)


def alternate(sides: dict[str, Side], repeats: int, warmups: int = 0) -> dict[str, Measured]:
    """Run the sides in turns.

    Args:
        sides: by name. They are built one after the other, so only their inputs share the memory.
        repeats: measured runs of each.
        warmups: runs of each before them.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(side)) for name, side in sides.items()}
        measured = {name: Measured(*_receive(worker)) for name, worker in workers.items()}
        for turn in range(warmups + repeats):
            for name, worker in workers.items():
                seconds, peak_bytes, values = _ask(worker, "run")
                if turn >= warmups:
                    measured[name].seconds.append(seconds)
                    measured[name].peak_bytes.append(peak_bytes)
                    measured[name].values = values
        for name, worker in workers.items():
            measured[name].notes |= _ask(worker, "finish")
    return measured


def apart(function: Callable[..., None], **arguments: Any) -> None:
    """Call a function of a module in a fresh process and wait for it."""
    process = multiprocessing.get_context("spawn").Process(target=_call, args=(function, arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__module__}.{function.__name__} stopped; its own message stands above")


@contextmanager
def _worker(side: Side) -> Any:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, side), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.poll(None)  # built before the next one starts
        yield ours
    finally:
        ours.close()
        process.join(timeout=10)
        process.kill()


def _ask(worker: Connection, what: str) -> Any:
    worker.send(what)
    return _receive(worker)


def _receive(worker: Connection) -> Any:
    try:
        return worker.recv()
    except EOFError as error:
        raise RuntimeError("a side of a comparison stopped; its own message stands above") from error


def _serve(connection: Connection, side: Side) -> None:
    _prepare_process()
    built = side.build(**side.arguments)
    base = _resident_bytes()
    connection.send((base, built.notes))
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        if what == "run":
            built.warm()
        connection.send(once(built.run, base) if what == "run" else built.finish())


def once(run: Callable[[], Any], base: int | None = None) -> tuple[float, int, Any]:
    """Seconds of one call, peak of its memory above `base` (else what is resident before it), and its result."""
    resident = _resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, _status_bytes("VmHWM") - (resident if base is None else base), result


def _call(function: Callable[..., None], arguments: dict[str, Any]) -> None:
    _prepare_process()
    function(**arguments)


def _prepare_process() -> None:
    """The threads of every side; what it prints goes to standard error, standard output is for results."""
    import torch

    torch.set_num_threads(THREADS)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def _resident_bytes() -> int:
    """After everything that can be freed has been given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def machine() -> str:
    """Processor, cores and memory of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text().split()[1]
    return f"{names[0] if names else platform.machine()}, {len(names)} cores, {int(memory) / MIB:.0f} GiB"


def versions() -> dict[str, str]:
    """Of what was measured, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_line(path: Path, line: dict[str, Any]) -> None:
    """Append one JSON line."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
