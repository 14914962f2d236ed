"""What the benchmarks report: comparisons with their targets, one JSON line each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.bench.measure import MIB, THREADS, Measured, machine, versions


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
        return {
            "name": self.name,
            "what": self.what,
            "ours": self.ours.median_seconds / self.steps_per_run,
            "baseline": self.baseline.median_seconds / self.steps_per_run,
            "unit": "seconds",
            "ratio": self.ratio,
            "ratio_is": "ours / baseline" if self.slowdown else "baseline / ours",
            **_judge([] if quick else self.checks),
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
            **_where(),
        }


@dataclass
class Finding:
    """A comparison of two numbers that are no times, or that other processes took; `to_json` is its line.

    Attributes:
        name: of the comparison.
        what: is compared with what.
        ours, baseline: the numbers.
        unit: of both.
        less_is_better: the ratio is baseline / ours, else ours / baseline; above 1 it is in our favour.
        checks: the target, or nothing for a line that only informs.
        dtype: of both sides.
        threads: of each process.
        details: further numbers.
    """

    name: str
    what: str
    ours: float
    baseline: float
    unit: str
    less_is_better: bool = False
    checks: list[Check] = field(default_factory=list)
    dtype: str = "float32"
    threads: int = THREADS
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How much better ours is."""
        better, worse = (self.baseline, self.ours) if self.less_is_better else (self.ours, self.baseline)
        return better / worse

    def to_json(self, *, quick: bool) -> dict[str, Any]:
        """All plain values; `quick` sizes have no target."""
        return {
            "name": self.name,
            "what": self.what,
            "ours": self.ours,
            "baseline": self.baseline,
            "unit": self.unit,
            "ratio": self.ratio,
            "ratio_is": "baseline / ours" if self.less_is_better else "ours / baseline",
            **_judge([] if quick else self.checks),
            "details": self.details,
            "dtype": self.dtype,
            "threads": self.threads,
            "quick": quick,
            **_where(),
        }


def _judge(checks: list[Check]) -> dict[str, Any]:
    return {
        "target": " and ".join(map(str, checks)) or None,
        "target_met": all(check.met for check in checks) if checks else None,
        "measured": {check.quantity: check.measured for check in checks},
    }


def _where() -> dict[str, Any]:
    return {"machine": machine(), "versions": versions()}


def relative_differences(ours: Measured, baseline: Measured) -> dict[str, float]:
    """How far the numbers of the two sides' last runs are apart: both have to have computed the same."""
    return {
        f"difference_of_{name}": abs(ours.values[name] - value) / abs(value)
        for name, value in baseline.values.items()
        if name in ours.values
    }
