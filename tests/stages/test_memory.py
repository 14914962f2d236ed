"""Peak memory: of this process alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

MIB = 2**20
PROGRAM = f"""
import mmap
import numpy, torch
from stages.memory import peak_memory_bytes

print(peak_memory_bytes())
pages = mmap.mmap(-1, 200 * {MIB})
for start in range(0, len(pages), mmap.PAGESIZE):
    pages[start] = 1
print(peak_memory_bytes())
numpy.ones(200 * {MIB} // 8)
print(peak_memory_bytes())
"""


def measured() -> list[int]:
    """In a process of its own: at its start, once it shares pages, and after it had and freed as many of its own."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def test_what_was_freed_counts_and_what_others_used_does_not() -> None:
    """Red if the number goes on from the process that started this one, as ru_maxrss does, or shared pages count."""
    alone, sharing, afterwards = measured()
    assert sharing < alone + 20 * MIB
    assert 180 * MIB < afterwards - sharing < 220 * MIB
    ballast = np.ones(alone // 4)
    assert measured()[0] < alone + 20 * MIB
    del ballast
