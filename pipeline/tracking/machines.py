"""What the machine does while stages run: MLflow's own monitor of processor, memory, disk, network and GPUs."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""MLflow's own variable; on unless it says false."""


class MachineMonitor:
    """Writes `system/<host>/…` of this machine to one run, from a thread of its own."""

    def __init__(self, uri: str) -> None:
        """Nothing is measured yet."""
        self._uri = uri
        self._monitor: SystemMetricsMonitor | None = None

    def watch(self, run_id: str) -> None:
        """Begin, or go on where an earlier process stopped; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is honoured."""
        if self._monitor is not None or os.environ.get(SWITCH, "true").lower() not in ("true", "1"):
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            run_id, node_id=socket.gethostname(), resume_logging=True, tracking_uri=self._uri
        )
        self._monitor.start()

    def leave(self) -> None:
        """Stop; it ends by itself at the first request that fails, and can then be begun again."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
