"""The processes of a Ray that a test started; there may be others on the machine."""

from __future__ import annotations

from contextlib import suppress

import psutil


def processes_below(pid: int, name: str) -> list[psutil.Process]:
    """Those that a process started, directly or not, with `name` in their command line."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it may have ended since
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found
