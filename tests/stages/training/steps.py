"""One optimizer step of a genuine stage, its gradients caught before they are clipped.

As a program it is one of several workers, joined by gloo through a file:

    python -m tests.stages.training.steps CASES.json FOLDER RANK WORKERS
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from stages.contract import Job, read_journal
from stages.training.loop import Loop
from stages.training.objective import Objective

OBJECTIVES = {
    "verbalization": "VerbalizationObjective",
    "interaction": "InteractionObjective",
    "reinforcement": "ReinforcementObjective",
}


def build(job: Job) -> Objective:
    """The stage's own objective; LoRA starts away from zero, where half of its gradients would vanish."""
    objective = getattr(importlib.import_module(f"stages.{job.stage}"), OBJECTIVES[job.stage])(job)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            if "lora_B" in name or (name.endswith("down.weight") and parameter.requires_grad):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return objective


class Taken(Exception):
    """The gradients are there; nothing else is wanted of the step."""


def take_step(job: Job, work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gradients by parameter name, whole, and the journal's line."""
    gradients: dict[str, Tensor] = {}
    clip: Callable[[Loop], float] = Loop._clip

    def keep(self: Loop) -> float:
        for name, parameter in self._objective.named_parameters():
            if parameter.grad is not None:
                gradients[name] = _whole(parameter.grad).clone()
        return clip(self)

    work.mkdir(parents=True)
    Loop._clip = keep  # type: ignore[method-assign]
    try:
        Loop(build(job), work, job.resources).run()
    finally:
        Loop._clip = clip  # type: ignore[method-assign]
    lines = read_journal(work)
    return gradients, lines[0] if lines else {}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(cases: Path, folder: Path, rank: int, workers: int) -> None:
    """Take the step of every case together with the other workers; the first one saves the gradients."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting-place'}", rank=rank, world_size=workers
    )
    for name, job in json.loads(cases.read_text()).items():
        gradients, line = take_step(Job.model_validate(job), folder / f"{name}-{rank}")
        if rank == 0:
            torch.save((gradients, json.dumps(line)), folder / f"{name}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
