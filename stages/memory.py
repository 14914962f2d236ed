"""How much memory a worker has used."""

from __future__ import annotations

import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory_bytes() -> int:
    """Largest so far: of this process's GPUs together if it has any, else of the process itself.

    Pages of Ray's object store, which processes share, are not the process's own.
    """
    import torch

    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes where there is no /proc
    # Unlike ru_maxrss, the kernel's high-water mark does not go on from the process that started this one.
    lines = (line.split() for line in STATUS.read_text().splitlines())
    kibibytes = {line[0].rstrip(":"): int(line[1]) for line in lines if line[-1] == "kB"}
    return 1024 * (kibibytes["VmHWM"] - kibibytes["RssShmem"])
