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
PACKAGES = ("torch", "transformers", "liger-kernel", "trl", "tuned-lens")


@dataclass
class Built:
    """A side whose inputs are in memory.

    Attributes:
        run: one run; returns numbers that show what was computed.
        notes: what else is worth reporting of the building.
        finish: called after the last run; returns further notes.
    """

    run: Callable[[], dict[str, float]]
    notes: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[], dict[str, Any]] = dict


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


@dataclass(frozen=True)
class Check:
    """One thing a target asks for.

    Attributes:
        quantity: what was measured.
        measured: its number.
        bound: the number it is held against.
        at_most: whether the bound is an upper one.
    """

    quantity: str
    measured: float
    bound: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the number is on the right side of its bound."""
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def __str__(self) -> str:
        return f"{self.quantity} {'≤' if self.at_most else '≥'} {self.bound:g}"


@dataclass
class Result:
    """One comparison; `to_json` is its line.

    Attributes:
        name: of the comparison.
        what: is compared with what.
        ours, baseline: what was measured.
        slowdown: the ratio is ours / baseline, else baseline / ours.
        checks: the target, or nothing for a line that only informs.
        dtype: of both sides.
        steps_per_run: times are given per step.
        details: further numbers.
    """

    name: str
    what: str
    ours: Measured
    baseline: Measured
    slowdown: bool = False
    checks: list[Check] = field(default_factory=list)
    dtype: str = "float32"
    steps_per_run: int = 1
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Of the median times."""
        ratio = self.baseline.median_seconds / self.ours.median_seconds
        return 1 / ratio if self.slowdown else ratio

    @property
    def memory_ratio(self) -> float:
        """Peak of the baseline over ours."""
        return self.baseline.median_peak_bytes / max(1, self.ours.median_peak_bytes)

    def to_json(self, *, quick: bool) -> dict[str, Any]:
        """All plain values; `quick` sizes have no target."""
        checks = [] if quick else self.checks
        return {
            "name": self.name,
            "what": self.what,
            "ours": self.ours.median_seconds / self.steps_per_run,
            "baseline": self.baseline.median_seconds / self.steps_per_run,
            "unit": "seconds",
            "ratio": self.ratio,
            "ratio_is": "ours / baseline" if self.slowdown else "baseline / ours",
            "target": " and ".join(map(str, checks)) or None,
            "target_met": all(check.met for check in checks) if checks else None,
            "measured": {check.quantity: check.measured for check in checks},
            "peak_ours_mib": self.ours.median_peak_bytes / MIB,
            "peak_baseline_mib": self.baseline.median_peak_bytes / MIB,
            "all_peaks_ours_mib": [peak / MIB for peak in self.ours.peak_bytes],
            "all_peaks_baseline_mib": [peak / MIB for peak in self.baseline.peak_bytes],
            "resident_ours_mib": self.ours.resident_bytes / MIB,
            "resident_baseline_mib": self.baseline.resident_bytes / MIB,
            "repeats": len(self.ours.seconds),
            "all_ours": [seconds / self.steps_per_run for seconds in self.ours.seconds],
            "all_baseline": [seconds / self.steps_per_run for seconds in self.baseline.seconds],
            "details": self.details | {"ours": self.ours.notes, "baseline": self.baseline.notes},
            "dtype": self.dtype,
            "threads": THREADS,
            "quick": quick,
            "machine": machine(),
            "versions": versions(),
        }


def relative_differences(ours: Measured, baseline: Measured) -> dict[str, float]:
    """How far the numbers of the two sides' last runs are apart: both have to have computed the same."""
    return {
        f"difference_of_{name}": abs(ours.values[name] - value) / abs(value)
        for name, value in baseline.values.items()
        if name in ours.values
    }


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
