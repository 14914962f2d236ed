"""Time and memory are measured, side by side, and a target missed is said to be missed."""

import pytest

from tests.bench.measure import MIB, Built, Measured, Side, alternate
from tests.bench.results import Check, Finding, Result


def build_allocation(mib: int) -> Built:
    return Built(lambda: {"bytes": len(bytearray(b"x") * (mib * MIB))})


def test_sides_take_turns_in_processes_of_their_own():
    sides = {"small": Side(build_allocation, {"mib": 40}), "large": Side(build_allocation, {"mib": 80})}
    measured = alternate(sides, repeats=2)
    for name, mib in (("small", 40), ("large", 80)):
        assert len(measured[name].seconds) == 2
        assert max(measured[name].peak_bytes) / MIB == pytest.approx(mib, abs=2)


def test_a_target_missed_is_reported_as_missed():
    result = Result("name", "what", Measured(0, {}, [2.0], [MIB]), Measured(0, {}, [1.0], [5 * MIB]), slowdown=True)
    result.checks = [Check("time", result.ratio, 1.25, at_most=True), Check("memory", result.memory_ratio, 5)]
    line = result.to_json(quick=False)
    assert (line["ratio"], line["target"], line["target_met"]) == (2.0, "time ≤ 1.25 and memory ≥ 5", False)
    assert line["measured"] == {"time": 2.0, "memory": 5.0}
    assert result.to_json(quick=True)["target_met"] is None


@pytest.mark.parametrize(("less_is_better", "ratio"), [(False, 0.25), (True, 4.0)])
def test_a_finding_says_how_much_better_ours_is(less_is_better, ratio):
    finding = Finding("name", "what", 2.0, 8.0, "bytes", less_is_better)
    finding.checks = [Check("bytes", finding.ours, 3, at_most=True)]
    line = finding.to_json(quick=False)
    assert (line["ours"], line["baseline"], line["unit"], line["ratio"]) == (2.0, 8.0, "bytes", ratio)
    assert (line["target"], line["target_met"]) == ("bytes ≤ 3", True)
