"""Prepare (the embedded default): the digits task, its teacher and its small backbone, made from scratch.

Reads   nothing; the handwritten digits come with scikit-learn.
Writes  train.jsonl, test.jsonl, images/, teacher/ and backbone/ (checkpoints with their processor).
Runs on two cores: both models are trained at the same time, each by one single-threaded process.
Starts  again from the beginning after an interruption.

The teacher learns all seven kinds of question, the backbone only the two that read; what the backbone lacks is what
distillation is there to bring. No network is used.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from stages.contract import Follower, Job, Journal, StageError, read_journal
from stages.contract.artifact import SCRATCH_FOLDER
from stages.contract.job import main
from stages.contract.settings import PrepareSettings, Pretraining, ScratchModel
from stages.data import digits as task

TEACHER_FOLDER = "teacher"
BACKBONE_FOLDER = "backbone"
TRAIN_FILE = "train.jsonl"
TEST_FILE = "test.jsonl"

_ROLES = (TEACHER_FOLDER, BACKBONE_FOLDER)
_STREAMS = ("train samples", "test samples", *_ROLES)
_POLL_SECONDS = 0.5
_FINAL_STEPS = 20


def run(job: Job, work: Path) -> dict[str, Any]:
    """Write the samples, train both models beside each other, and say how large and how good they became."""
    settings = job.typed(PrepareSettings)
    write_task(settings, work)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=train_model, args=(role, settings, work), daemon=True) for role in _ROLES]
    try:
        for process in processes:
            process.start()
        _follow_training(settings, work, processes)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
    return {
        "train_samples": settings.train_samples,
        "test_samples": settings.test_samples,
        **{f"{role}_loss": _final_loss(work, role) for role in _ROLES},
    }


def write_task(settings: PrepareSettings, work: Path) -> None:
    """Write both sample files; no digit image of the test pictures occurs in any training picture."""
    train, test = task.load_digits(settings.train_digits)
    parts = (
        (TRAIN_FILE, train, "train", settings.train_samples),
        (TEST_FILE, test, "test", settings.test_samples),
    )
    for file, digits, prefix, count in parts:
        generator = _generator(settings, f"{prefix} samples")
        task.write_samples(
            work / file, digits, prefix=prefix, count=count, kinds=tuple(task.KINDS), generator=generator
        )


def train_model(role: str, settings: PrepareSettings, work: Path) -> None:
    """Train one of the two models in this process, on one thread, and save its checkpoint."""
    import torch
    from transformers.utils import logging

    from stages.models import pretraining, scratch

    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    logging.disable_progress_bar()
    model_settings, training = _recipe(role, settings)
    generator = _generator(settings, role)
    digits, _ = task.load_digits(settings.train_digits)
    processor = scratch.build_processor(task.corpus())
    model = scratch.build_model(model_settings, processor, seed=settings.seed)
    encoder = pretraining.Encoder(processor)
    journal = Journal(_journal_folder(work, role), total=training.total_steps, unit="steps")

    def record_answers(step: int, **numbers: float) -> None:
        journal.write(training.vision_steps + step, **numbers)

    pretraining.train_vision(model, encoder, digits, training, generator=generator, record=journal.write)
    pretraining.train_answers(model, encoder, digits, training, generator=generator, record=record_answers)
    model.requires_grad_(True).eval().save_pretrained(work / role)
    processor.save_pretrained(work / role)


def _recipe(role: str, settings: PrepareSettings) -> tuple[ScratchModel, Pretraining]:
    if role == TEACHER_FOLDER:
        return settings.teacher, settings.teacher_training
    return settings.backbone, settings.backbone_training


def _generator(settings: PrepareSettings, stream: str) -> np.random.Generator:
    """An independent source of draws for each thing that is made."""
    return np.random.default_rng([settings.seed, _STREAMS.index(stream)])


def _follow_training(settings: PrepareSettings, work: Path, processes: Sequence[BaseProcess]) -> None:
    """Merge the journals of both processes into the stage's own until both are done.

    Raises:
        StageError: a process ended before its checkpoint was saved.
    """
    total = sum(_recipe(role, settings)[1].total_steps for role in _ROLES)
    journal = Journal(work, total=total, unit="steps")
    followers = {role: Follower() for role in _ROLES}
    latest: dict[str, dict[str, Any]] = {}
    running = True
    while running:
        running = any(process.is_alive() for process in processes)
        lines = {role: list(followers[role].new_lines(_journal_folder(work, role))) for role in _ROLES}
        latest |= {role: new[-1] for role, new in lines.items() if new}
        if any(lines.values()):
            journal.write(sum(line["step"] for line in latest.values()), **_merged(latest))
        for role, process in zip(_ROLES, processes, strict=True):
            if process.exitcode not in (None, 0):
                raise StageError(
                    f"prepare: the process that trains {role}/ ended with exit code {process.exitcode}; its error "
                    "stands above, a code of -9 means that memory ran out; start the stage again"
                )
        if running:
            time.sleep(_POLL_SECONDS)


def _merged(latest: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The numbers of both models' latest steps: `loss` is the teacher's as soon as there is one."""
    losses = {role: line["loss"] for role, line in latest.items()}
    return {
        "loss": losses.get(TEACHER_FOLDER, losses.get(BACKBONE_FOLDER, float("nan"))),
        **{f"{role}_loss": loss for role, loss in losses.items()},
        "samples_per_second": sum(line["samples_per_second"] for line in latest.values()),
    }


def _final_loss(work: Path, role: str) -> float:
    """Mean loss of the last steps, in nats per response token."""
    losses = [line["loss"] for line in read_journal(_journal_folder(work, role))[-_FINAL_STEPS:]]
    return float(np.mean(losses))


def _journal_folder(work: Path, role: str) -> Path:
    folder = work / SCRATCH_FOLDER / role
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main("prepare"))
