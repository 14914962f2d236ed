"""Where a run comes from: the code, the command, the machine. As tags, under MLflow's own names where it has some."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGE = "vlsi-distill"
GIT_COMMIT = "mlflow.source.git.commit"
GIT_DIRTY = "git.dirty"
PATIENCE_SECONDS = 5.0
"""For one program that is asked."""


def describe_origin() -> dict[str, str]:
    """Code, command and machine of this process, by tag; what cannot be found out is left out."""
    described = {**_code(), **_machine(), "mlflow.source.name": _command(), "mlflow.source.type": "LOCAL"}
    return {key: value for key, value in described.items() if value}


@cache
def _code() -> dict[str, str]:
    """Commit and state of the checkout that this package is in; else, as always, its version."""
    folder = Path(__file__).parent
    version = {"version.vlsi": _version(), "version.python": platform.python_version()}
    if not _ask("git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py"):
        return version
    changed = _ask("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return version | {
        GIT_COMMIT: _ask("git", "-C", str(folder), "rev-parse", "HEAD"),
        "mlflow.source.git.branch": _ask("git", "-C", str(folder), "branch", "--show-current"),
        GIT_DIRTY: "true" if changed else "false",
    }


@cache
def _machine() -> dict[str, str]:
    """Host, user, processor, memory, accelerators."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cards = _ask("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines()
    return {
        "host": socket.gethostname(),
        "mlflow.user": _user(),
        "hardware.cpu": _processor(),
        "hardware.cores": str(os.cpu_count() or ""),
        "hardware.memory_gb": f"{gigabytes:.0f}",
        "hardware.gpus": "; ".join(cards) or "none",
    }


def _command() -> str:
    """As a person would type it."""
    return shlex.join([Path(sys.argv[0]).name.removesuffix(".py"), *sys.argv[1:]])


def _version() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return ""


def _user() -> str:
    """Containers run as users that have no name."""
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return str(os.getuid())


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _ask(program: str, *arguments: str) -> str:
    """What a program prints; nothing if it is not there, fails or does not answer."""
    if shutil.which(program) is None:
        return ""
    with suppress(OSError, subprocess.SubprocessError, UnicodeDecodeError):
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
        )
        return done.stdout.strip()
    return ""
