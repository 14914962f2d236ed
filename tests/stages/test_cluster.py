"""What a Ray on this machine leaves as it is."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os, signal, time
from stages.cluster import initialize

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
initialize(address="local", num_cpus=1)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
except KeyboardInterrupt:
    print("stopped as the program says")
"""


def test_a_sigterm_does_what_the_program_says() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        timeout=120,
        check=False,
    )
    assert "stopped as the program says" in ended.stdout, ended.stderr
