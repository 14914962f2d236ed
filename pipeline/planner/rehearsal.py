"""A rehearsal: capture and precompute on a few samples, in a scratch folder, to weigh their caches."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.planner.shards import CODECS, STATES
from stages.contract import Job, Resources
from stages.contract.files import TEACHER_VERBALIZERS_FILE
from stages.contract.job import execute
from stages.contract.settings import Settings, Verbalizer, resolve_target_layers

if TYPE_CHECKING:
    from pipeline.planner.survey import Request
    from stages.data.sample import Sample


def rehearse(request: Request, samples: Sequence[Sample]) -> dict[str, int]:
    """Bytes of the samples' captured states and of their cache in every codec.

    Without trained verbalizers those that were never trained stand in: the logit lens.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        inputs = {"teacher": request.teacher, "samples": str(_copied(samples, folder / "samples"))}
        everything = request.capture.model_copy(update={"fraction": 1.0})
        sizes = {STATES: _run("capture", everything, inputs, folder / "capture")}
        if request.precompute is None:
            return sizes
        inputs |= {"student": request.student, "capture": str(folder / "capture")}
        inputs |= {"verbalization": request.verbalization or str(_untrained(request, folder))}
        for codec in CODECS:
            settings = request.precompute.model_copy(update={"codec": codec})
            sizes[codec] = _run("precompute", settings, inputs, folder / codec)
        return sizes


def _run(stage: str, settings: Settings, inputs: dict[str, str], output: Path) -> int:
    """Run a stage in this process; returns the bytes of its shards."""
    job = Job(stage=stage, settings=settings, inputs=inputs, output=str(output), resources=Resources(workers=0))
    return execute(job, importlib.import_module(f"stages.{stage}").run).summary["bytes"]


def _copied(samples: Sequence[Sample], folder: Path) -> Path:
    """A sample file of these samples, with copies of their pictures beside it."""
    folder.mkdir()
    lines = []
    for number, sample in enumerate(samples):
        images = [f"{number}-{place}" for place in range(len(sample.images))]
        for data, name in zip(sample.read_images(), images, strict=True):
            (folder / name).write_bytes(data)
        line: dict[str, Any] = {"id": sample.id, "images": images, "messages": sample.messages, "task": sample.task}
        lines.append(json.dumps(line) + "\n")
    file = folder / "samples.jsonl"
    file.write_text("".join(lines))
    return file


def _untrained(request: Request, folder: Path) -> Path:
    """An artifact's folder with verbalizers for the captured layers."""
    from transformers import AutoConfig

    from stages.models.verbalizer import Verbalizers

    text = AutoConfig.from_pretrained(request.teacher).get_text_config()
    layers = resolve_target_layers(request.capture.target_layers, text.num_hidden_layers)
    made = folder / "verbalization"
    made.mkdir()
    Verbalizers(layers, text.hidden_size, Verbalizer()).save(made / TEACHER_VERBALIZERS_FILE)
    return made
