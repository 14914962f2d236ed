"""The Ray cluster that a stage runs on."""

from __future__ import annotations

import logging
import os
import signal
import threading
from math import ceil
from typing import Any


def initialize(**settings: Any) -> None:
    """`ray.init` without a dashboard, which leaves what a SIGTERM does to the program that calls it."""
    import ray

    before = signal.getsignal(signal.SIGTERM)
    ray.init(include_dashboard=False, log_to_driver=False, **settings)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def connect(least_cpus: float = 0) -> None:
    """Join the Ray cluster at RAY_ADDRESS, or start one on this machine that hands out as many CPUs as are needed.

    A cluster that has too few is named in the log: Ray waits for them without a word.
    """
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    address = os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized():
        cpus = None if address else max(os.cpu_count() or 1, ceil(least_cpus))
        initialize(address=address, num_cpus=cpus, logging_level=logging.WARNING)
    there = ray.cluster_resources().get("CPU", 0)
    if there < least_cpus:
        print(f"the cluster has {there:g} CPUs, the stage waits until it has {least_cpus:g}", flush=True)
