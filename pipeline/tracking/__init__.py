"""MLflow as a mirror of what the store says.

The record of a run, the artifacts and their journals are the truth; MLflow is brought to it, again and
again, by one function that may be interrupted anywhere: `mirror.Mirror.bring`. While a run goes on a thread
repeats it (`tracker`); afterwards `vlsi sync-tracking` does, once (`sync`). So a server that is away, slow
or full delays nothing and loses nothing. MLflow is imported where something is written.
"""

from pipeline.tracking.server import tracking_uri
from pipeline.tracking.tracker import Tracker

__all__ = ["Tracker", "tracking_uri"]
