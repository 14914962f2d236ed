"""How much memory a worker has used."""

from __future__ import annotations

import resource
import sys


def peak_memory_bytes() -> int:
    """Largest so far: of this process's GPUs together if it has any, else of the process itself."""
    import torch

    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
