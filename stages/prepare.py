"""Prepare (the embedded default): a task, its teacher and its small backbone, made from scratch.

Reads   nothing; the handwritten digits come with scikit-learn, easy-VQA with its package.
Writes  the samples (train.jsonl and test.jsonl, or train.json and test.json), images/, teacher/ and
        backbone/ (checkpoints with their processor).
Runs on two cores: both models are trained at the same time, each by one single-threaded process.
Starts  again from the beginning after an interruption.

The teacher learns all kinds of question, the backbone only those that read; what the backbone lacks is what
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
from stages.data import digits, easy_vqa
from stages.data.lessons import Lessons

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
    counts = write_task(settings, work)
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
        **{f"{split}_samples": count for split, count in counts.items()},
        **{f"{role}_loss": _final_loss(work, role) for role in _ROLES},
    }


def write_task(settings: PrepareSettings, work: Path) -> dict[str, int]:
    """Write both sample files, and say how many samples are in each."""
    return easy_vqa.write_samples(work) if settings.task == "easy-vqa" else _write_digits(settings, work)


def _write_digits(settings: PrepareSettings, work: Path) -> dict[str, int]:
    """No digit image of the test pictures occurs in any training picture."""
    train, test = digits.load_digits(settings.train_digits)
    parts = (
        (TRAIN_FILE, train, "train", settings.train_samples),
        (TEST_FILE, test, "test", settings.test_samples),
    )
    for file, images, prefix, count in parts:
        generator = _generator(settings, f"{prefix} samples")
        digits.write_samples(
            work / file, images, prefix=prefix, count=count, kinds=tuple(digits.KINDS), generator=generator
        )
    return {prefix: count for _, _, prefix, count in parts}


def _lessons(settings: PrepareSettings) -> Lessons:
    if settings.task == "easy-vqa":
        return easy_vqa.ShapeLessons()
    return digits.DigitLessons(digits.load_digits(settings.train_digits)[0])


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
    lessons = _lessons(settings)
    processor = scratch.build_processor(lessons.corpus())
    model = scratch.build_model(model_settings, processor, seed=settings.seed)
    encoder = pretraining.Encoder(processor, lessons.draw(np.random.default_rng(0)).image)
    journal = Journal(_journal_folder(work, role), total=training.total_steps, unit="steps")

    def record_answers(step: int, **numbers: float) -> None:
        journal.write(training.vision_steps + step, **numbers)

    pretraining.train_vision(model, encoder, lessons, training, generator=generator, record=journal.write)
    pretraining.train_answers(model, encoder, lessons, training, generator=generator, record=record_answers)
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
