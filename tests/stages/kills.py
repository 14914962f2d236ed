"""Run a stage's job to its end, killed with SIGKILL at random moments on the way.

    python -m tests.stages.kills JOB.json SEED KILLS

Prints one JSON line: for each killed attempt the files of shards that stood before it and after it.
The heavy modules are imported once; every attempt is a fork of this process.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import random
import sys
from pathlib import Path

import torch

from stages.contract import Job
from stages.contract.artifact import work_folder
from stages.contract.job import execute
from stages.contract.place import Remote, place_of
from tests.object_store import Server

MOST_SHARDS = 4
"""That an attempt may finish before it is killed."""
POLL_SECONDS = 0.001
MOST_SECONDS = 0.05
"""Between the last of them and the kill; a shard takes about this long."""


def shards(job: Job) -> dict[str, int]:
    """Every shard there is, with the inode that its rename gave it, or how often it was put: another number is
    another making."""
    output = place_of(job.output)
    if isinstance(output, Remote):
        puts = Server(os.environ["AWS_ENDPOINT_URL"]).puts(f"{output.name}/")
        return {path: count for path, count in puts.items() if "/shard-" in path}
    places = (output, work_folder(output))
    return {path.name: path.stat().st_ino for place in places for path in place.glob("[!.]*/shard-*.parquet")}


def attempt(job: Job, finished: int | None, seconds: float) -> bool:
    """Whether an attempt came to its end; it is killed `seconds` after it has `finished` so many shards."""
    run = importlib.import_module(f"stages.{job.stage}").run
    before = len(shards(job))
    process = multiprocessing.get_context("fork").Process(target=execute, args=(job, run))
    process.start()
    while process.exitcode is None and (finished is None or len(shards(job)) < before + finished):
        process.join(POLL_SECONDS)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == 0


def main(job: Job, seed: int, kills: int) -> list[dict[str, dict[str, int]]]:
    """Kill, and kill again, then let it finish."""
    torch.set_num_threads(1)
    source, history = random.Random(seed), []
    while len(history) < kills:
        before = shards(job)
        if attempt(job, source.randint(0, MOST_SHARDS), source.uniform(0, MOST_SECONDS)):
            break
        history.append({"before": before, "after": shards(job)})
    if not attempt(job, None, 0):
        raise SystemExit("the stage does not end")
    history.append({"before": history[-1]["after"] if history else {}, "after": shards(job)})
    return history


if __name__ == "__main__":
    print(json.dumps(main(Job.model_validate_json(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3]))))
