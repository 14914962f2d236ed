"""How `vlsi` ends: what its exit codes mean, for scripts and for help texts."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit code of every command."""

    DONE = 0
    FAILED = 1
    INVALID = 2
    STOPPED = 3


MEANINGS = {
    Exit.DONE: "done",
    Exit.FAILED: "a stage failed, or what was asked to hold does not",
    Exit.INVALID: "the configuration or the command is not valid",
    Exit.STOPPED: "stopped by Ctrl-C or SIGTERM; what was made is kept",
}
EXIT_CODES = "Exit codes: " + " · ".join(f"{code.value} {meaning}" for code, meaning in MEANINGS.items()) + "."
