"""Peak memory: of this process alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

MIB = 2**20


def measured(lines: str = "") -> int:
    """In a process of its own that runs some lines first."""
    program = f"import numpy, torch\nfrom stages.memory import peak_memory_bytes\n{lines}\nprint(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_was_freed_counts_and_what_others_used_does_not() -> None:
    """Red if the number goes on from the process that started this one, as ru_maxrss does, or shared pages count."""
    alone = measured()
    ballast = np.ones(alone // 4)
    assert measured() < alone + 20 * MIB
    del ballast
    assert 180 * MIB < measured("numpy.ones(25 * 2**20)") - alone < 220 * MIB
    shared = "import mmap\npages = mmap.mmap(-1, 200 * 2**20)\nfor i in range(0, 200 * 2**20, 4096): pages[i] = 1"
    assert measured(shared) < alone + 20 * MIB
