"""The Ray cluster that a stage runs on."""

from __future__ import annotations

import logging
import os
from math import ceil


def connect(least_cpus: float = 0) -> None:
    """Join the Ray cluster at RAY_ADDRESS, or start one on this machine that hands out as many CPUs as are needed.

    A cluster that has too few is named in the log: Ray waits for them without a word.
    """
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    address = os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized():
        ray.init(
            address=address,
            num_cpus=None if address else max(os.cpu_count() or 1, ceil(least_cpus)),
            log_to_driver=False,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    there = ray.cluster_resources().get("CPU", 0)
    if there < least_cpus:
        print(f"the cluster has {there:g} CPUs, the stage waits until it has {least_cpus:g}", flush=True)
