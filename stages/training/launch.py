"""Launch: run a training stage's workers with Ray Train and bring their result home."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from stages.contract import Job, StageError, read_journal
from stages.contract.artifact import SCRATCH_FOLDER
from stages.contract.failures import explain
from stages.contract.files import NOTICE_FILE, STOP_FILE
from stages.contract.job import Stopped
from stages.contract.place import Place, Remote, filled, place_of, write_whole
from stages.contract.quarantine import write_quarantine
from stages.memory import peak_memory_bytes

if TYPE_CHECKING:
    from stages.training.loop import Loop

_STOPPED_FILE = "stopped.txt"
_SUMMARY_FILE = "summary.json"
_ERROR_FILE = "error.txt"


def train(job: Job, work: Place, objective: str) -> dict[str, Any]:
    """Train on `job.resources.workers` workers; 0 trains in this process.

    Args:
        job: passed to every worker.
        work: on storage that all workers share; holds checkpoints until the stage is done.
        objective: `module:function` that builds the objective from (job); imported in the workers.

    Returns:
        The summary for the manifest.

    Raises:
        StageError: a worker failed for a reason that has a message of its own.
        Stopped: a SIGTERM came, and the workers left a checkpoint.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from stages.cluster import connect

    resources = job.resources
    if resources.workers:
        connect()
    scratch = work / SCRATCH_FOLDER
    scratch.mkdir(exist_ok=True)
    for left in (_ERROR_FILE, NOTICE_FILE, STOP_FILE, _STOPPED_FILE):
        (scratch / left).unlink(missing_ok=True)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job.model_dump_json(), "work": str(work), "objective": objective},
        scaling_config=ScalingConfig(
            num_workers=resources.workers,  # type: ignore[arg-type]  # the stub knows no (least, most)
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker},
        ),
        run_config=RunConfig(
            name="train",
            **_storage(scratch),
            failure_config=FailureConfig(max_failures=resources.max_failures, controller_failure_limit=1),  # type: ignore[call-arg]
        ),
    )
    try:
        with _sigterm_leaves(scratch / STOP_FILE):
            trainer.fit()
    except Exception as error:
        raise StageError(_reason(error, scratch / _ERROR_FILE, job)) from error
    finally:
        _pass_on_notice(scratch / NOTICE_FILE, job.stage)
    if (scratch / _STOPPED_FILE).is_file():
        raise Stopped((scratch / _STOPPED_FILE).read_text())
    return json.loads((scratch / _SUMMARY_FILE).read_text())


def _train_worker(config: dict[str, str]) -> None:
    from stages.training.loop import Loop

    job, work = Job.model_validate_json(config["job"]), place_of(config["work"])
    module, _, function = config["objective"].partition(":")
    build: Callable[[Job], Any] = getattr(importlib.import_module(module), function)
    try:
        objective = build(job)
        loop = Loop(objective, work, job.resources)
        outcome = loop.run()
        if outcome.stopped_at is not None:
            _say_stopped(work, loop, outcome.stopped_at)
            return
    except StageError as error:
        write_whole(work / SCRATCH_FOLDER / _ERROR_FILE, f"{job.stage}: {error}")
        raise
    if job.resources.parallelism == "fsdp":
        objective = _made_whole(build, job, loop)
    if not loop.is_first_worker:
        return
    with filled(work) as folder:
        summary = objective.save(folder, read_journal(work))
    summary |= {
        "quarantined": len(outcome.bad),
        "waiting_share": outcome.waiting_share,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    write_quarantine(work, outcome.bad, job.stage)
    write_whole(work / SCRATCH_FOLDER / _SUMMARY_FILE, json.dumps(summary))


@contextmanager
def _sigterm_leaves(file: Place) -> Iterator[None]:
    """Let a SIGTERM tell the workers to stop; in a thread, which gets no signals, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: write_whole(file, ""))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _reason(error: Exception, file: Place, job: Job) -> str:
    """A worker's own words if it could write them, else what is known of the error."""
    with suppress(OSError):
        return file.read_text()
    return f"{job.stage}: {explain(error, job.output) or error}"


def _pass_on_notice(file: Place, stage: str) -> None:
    with suppress(OSError):
        print(f"{stage}: {file.read_text()}", file=sys.stderr, flush=True)


def _say_stopped(work: Place, loop: Loop, step: int) -> None:
    if loop.is_first_worker:
        write_whole(work / SCRATCH_FOLDER / _STOPPED_FILE, f"the next start goes on after step {step}")


def _storage(scratch: Place) -> dict[str, Any]:
    """Where Ray Train keeps what it writes itself; no checkpoints are among it."""
    if isinstance(scratch, Remote):
        return {"storage_path": scratch.key, "storage_filesystem": scratch.filesystem}
    return {"storage_path": str(scratch)}


def _made_whole(build: Callable[[Job], Any], job: Job, loop: Any) -> Any:
    """The first worker's objective, built again in the CPU's memory with the trained parameters of all shards."""
    trained, _ = loop.trained_state()
    if not loop.is_first_worker:
        return None
    objective = build(job)
    if unexpected := objective.load_state_dict(trained, strict=False).unexpected_keys:
        raise StageError(f"{job.stage}: the workers trained {unexpected[:3]}, which the student does not have")
    return objective
