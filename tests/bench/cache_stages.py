"""Throughput of capture and precompute, which run a teacher over samples, against bare loops and of two actors.

The stages run as users run them: `python -m stages.capture --job FILE`, on Ray, with one actor or two,
every process with one thread. The other core is there for what a stage does beside the model; the loops
of `bare_loops` do everything in turn. Times are those of the steady state on both sides: a stage's from
the second half of its shards, when every actor has long been at work; a loop's without loading and without
its first group of samples.

The teacher is a genuine Qwen2-VL in float32 with 63 M parameters in its blocks and random weights; its
head has 8,200 real rows, which is as large a part of it as Qwen2-VL-7B's. A sample is a picture of
handwritten digits in one of three sizes and a question about it; the answer goes on with a piece of
English prose of 4 to 256 words, log-uniformly. Every shard has samples of the same lengths in an order
of its own, so that all cost the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers.utils import logging

from stages import capture
from stages.contract import Job, read_journal
from stages.contract.files import TEACHER_VERBALIZERS_FILE
from stages.contract.job import execute
from stages.contract.settings import EveryNth, ScratchModel, resolve_target_layers
from stages.contract.settings import Verbalizer as VerbalizerSettings
from stages.data.digits import IMAGE_FOLDER, KINDS, Picture, Question, ask, corpus, draw_picture, load_digits, messages
from stages.models.scratch import build_model, build_processor
from stages.models.verbalizer import Verbalizers
from tests.bench.bare_loops import Recipe, build_loop
from tests.bench.measure import Measured, Side, alternate, apart
from tests.bench.results import Check, Finding, relative_differences

ENLARGEMENTS = (2, 4, 5)
"""Of the 84 x 56 pixels of a digits picture: 24, 96 and 150 image tokens."""
WORDS_AT_LEAST, WORDS_AT_MOST = 4, 256
AGAINST_PLAIN_AT_LEAST = 1.3
AGAINST_GROUPED_AT_LEAST = 0.95
TWO_ACTORS_AT_LEAST = 1.7
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
STAGES = ("capture", "precompute")


class Sizes(NamedTuple):
    """Of the models, the samples and the batches."""

    teacher: ScratchModel = ScratchModel(
        layers=16, width=512, heads=8, mlp_width=2_048, vision_width=128, vision_heads=4
    )
    student: ScratchModel = ScratchModel(layers=1, width=384, heads=6, key_value_heads=2, mlp_width=1_024, tied=True)
    shards: int = 12
    shard_samples: int = 16
    batch_samples: int = 8
    batch_tokens: int = 2_048
    target_layers: EveryNth = EveryNth(offset=2, stride=4)


QUICK = Sizes(
    ScratchModel(layers=2, width=32, heads=2, key_value_heads=1, mlp_width=64, vision_width=32, vision_heads=2),
    ScratchModel(layers=1, width=32, heads=2, key_value_heads=1, mlp_width=64, tied=True),
    shards=3,
    shard_samples=2,
    batch_samples=2,
    target_layers=EveryNth(offset=0, stride=2),
)


def compare(quick: bool) -> Iterator[Finding]:
    """Each stage against both loops, and two actors against one."""
    sizes = QUICK if quick else Sizes()
    with TemporaryDirectory() as name:
        folder = Path(name)
        apart(prepare, sizes=sizes, folder=name)
        for stage in STAGES:
            one = run_stage(stage, sizes, folder, workers=1)
            loops = alternate(loop_sides(stage, sizes, folder), repeats=1)
            two = run_stage(stage, sizes, folder, workers=2)
            yield from _findings(stage, one, loops, two)


def _findings(stage: str, one: dict[str, float], loops: dict[str, Measured], two: dict[str, float]) -> list[Finding]:
    rates = {name: loop.notes["samples"] / loop.median_seconds for name, loop in loops.items()}
    details = {"ours": one, **{name: loop.notes for name, loop in loops.items()}}
    details |= relative_differences(loops["grouped"], loops["plain"])
    plain = _finding(f"{stage}-plain", "a bare transformers loop with plain padding", one, rates["plain"], details)
    plain.checks = [Check("speedup", plain.ratio, AGAINST_PLAIN_AT_LEAST)]
    grouped = _finding(f"{stage}-grouped", "the same loop grouped by length", one, rates["grouped"], details)
    grouped.checks = [Check("speedup", grouped.ratio, AGAINST_GROUPED_AT_LEAST)]
    actors = _finding(f"{stage}-two-actors", "one actor, two actors", two, one["samples_per_second"], {"ours": two})
    actors.checks = [Check("speedup", actors.ratio, TWO_ACTORS_AT_LEAST)]
    return [plain, grouped, actors]


def _finding(name: str, against: str, ours: dict[str, float], baseline: float, details: dict[str, Any]) -> Finding:
    what = f"{name.partition('-')[0]}, steady state, against {against}"
    return Finding(name, what, ours["samples_per_second"], baseline, "samples/s", threads=1, details=details)


def run_stage(stage: str, sizes: Sizes, folder: Path, workers: int) -> dict[str, float]:
    """Run a stage anew as its own program.

    Returns:
        Its steady rate, samples per second, and the seconds from its start to the first shard.
    """
    job = make_job(stage, sizes, folder, workers)
    file = folder / f"{stage}.json"
    file.write_text(job.model_dump_json())
    command = [sys.executable, "-m", f"stages.{stage}", "--job", str(file)]
    subprocess.run(command, env=os.environ | ONE_THREAD, stdout=sys.stderr, check=True)
    lines = read_journal(Path(job.output))
    started = json.loads((Path(job.output) / "manifest.json").read_text())["started"]
    return {
        "samples_per_second": steady_rate(lines, workers),
        "seconds_to_first_shard": lines[0]["time"] - started,
        "seconds": lines[-1]["time"] - started,
    }


def steady_rate(lines: list[dict[str, Any]], workers: int) -> float:
    """Samples per second of the second half of the shards, in whole rounds of all workers.

    Workers that began together also end their shards together: from the middle of a round on, the rest of
    it would count as made in no time.
    """
    rounds = len(lines) // workers
    first, last = lines[workers * max(1, rounds // 2) - 1], lines[-1]
    return (last["step"] - first["step"]) / (last["time"] - first["time"])


def make_job(stage: str, sizes: Sizes, folder: Path, workers: int) -> Job:
    """A job on the prepared samples."""
    common = {"micro_batch_tokens": sizes.batch_tokens, "model": {"dtype": "float32"}}
    own = {
        "capture": {"fraction": 1.0, "target_layers": sizes.target_layers, "shard_samples": sizes.shard_samples},
        "precompute": {"shard_samples": sizes.shard_samples},
        "few": {"fraction": 1e-6, "target_layers": sizes.target_layers},
    }
    inputs = {
        "capture": ("teacher", "samples"),
        "precompute": ("few", "verbalization", "teacher", "student", "samples"),
        "few": ("teacher", "samples"),
    }
    return Job(
        stage="capture" if stage == "few" else stage,
        settings=common | own[stage],
        inputs={"capture" if name == "few" else name: str(_place(folder, name)) for name in inputs[stage]},
        output=str(folder / stage),
        resources={"workers": workers},
        force=True,
    )


def loop_sides(stage: str, sizes: Sizes, folder: Path) -> dict[str, Side]:
    """Both loops of a stage."""
    recipe = make_recipe(sizes, folder)
    return {
        name: Side(build_loop, {"recipe": recipe, "grouped": name == "grouped", "verbalized": stage == "precompute"})
        for name in ("plain", "grouped")
    }


def make_recipe(sizes: Sizes, folder: Path) -> Recipe:
    """Of the loops on the prepared samples."""
    return Recipe(
        **{name: str(_place(folder, name)) for name in ("teacher", "student", "samples")},
        verbalizers=str(_place(folder, "verbalization")),
        blocks=resolve_target_layers(sizes.target_layers, sizes.teacher.layers),
        batch_samples=sizes.batch_samples,
        batch_tokens=sizes.batch_tokens,
        group_samples=sizes.shard_samples,
    )


def prepare(sizes: Sizes, folder: str) -> None:
    """Write the models, the verbalizers, the samples, and a capture of one of them, for precompute to begin with."""
    logging.disable_progress_bar()
    place = Path(folder)
    processor = build_processor([*corpus(), *topics.values()])
    for seed, name in enumerate(("teacher", "student")):
        build_model(getattr(sizes, name), processor, seed=seed).save_pretrained(place / name)
        processor.save_pretrained(place / name)
    blocks = resolve_target_layers(sizes.target_layers, sizes.teacher.layers)
    (place / "verbalization").mkdir()
    verbalizers = Verbalizers(blocks, sizes.teacher.width, VerbalizerSettings())
    verbalizers.save(place / "verbalization" / TEACHER_VERBALIZERS_FILE)
    write_samples(place, sizes)
    execute(make_job("few", sizes, place, workers=0), capture.run)


def write_samples(folder: Path, sizes: Sizes) -> None:
    """The sample file and its pictures; in every shard the same lengths in another order."""
    (folder / IMAGE_FOLDER).mkdir()
    digits, _ = load_digits(1_400)
    generator = np.random.default_rng(0)
    ranks = [int(rank) for _ in range(sizes.shards) for rank in generator.permutation(sizes.shard_samples)]
    words = np.geomspace(WORDS_AT_LEAST, WORDS_AT_MOST, sizes.shard_samples).round().astype(int)
    with _place(folder, "samples").open("w") as file:
        for number, rank in enumerate(ranks):
            image = f"{IMAGE_FOLDER}/{number}.png"
            picture = draw_picture(digits, generator)
            times = ENLARGEMENTS[rank % len(ENLARGEMENTS)]
            size = (picture.image.width * times, picture.image.height * times)
            picture.image.resize(size, Image.Resampling.BICUBIC).save(folder / image)
            turns = _converse(list(KINDS)[number % len(KINDS)], picture, words[rank], generator)
            file.write(json.dumps({"id": f"sample-{number}", "images": [image], "messages": turns}) + "\n")


def _converse(kind: str, picture: Picture, words: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    """A question about digits; its answer goes on with so many words of prose."""
    prose = " ".join(topics.values()).split()
    start = generator.integers(len(prose) - words)
    question = ask(kind, picture, generator)
    return messages(Question(question.text, f"{question.answer}. {' '.join(prose[start : start + words])}"))


def _place(folder: Path, name: str) -> Path:
    return folder / ("samples.jsonl" if name == "samples" else name)
