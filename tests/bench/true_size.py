"""The stages at true size: Qwen2-VL-7B teaches Qwen2-VL-2B, on a CPU, within 24 GB.

    python -m tests.bench.true_size --folder FOLDER

Builds both models' published configurations with random bfloat16 weights as ordinary checkpoints (22 GB in
FOLDER, kept for the next run), then runs capture, verbalization, precompute, interaction and reinforcement
for a few samples, each as its own process through the command that users take, and compares peak memory and
time with what `pipeline/planner` says. Ends with a table; one JSON line per stage goes to standard output
and, with --output, to a file.

Memory is the process's high-water mark of resident pages (VmHWM), file-mapped ones included: on a CPU a
checkpoint's frozen weights are pages of its mapped file, and a model that computes touches all of them.
Every process gives large blocks back to the system when they are freed, and has them in huge pages
(`ENVIRONMENT`): by default glibc keeps gaps between them (1.1 GB more in interaction), which no plan of a
GPU's memory should have, and making small pages takes up to half of the time.
Time is that of the shards or optimizer steps after the first one. The first also reads the weights from
disk, page by page, and warms up the kernels; it is printed beside, not compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from pipeline.planner import costs, memory
from pipeline.planner.models import ModelSize
from pipeline.planner.plan import COSTS
from pipeline.planner.work import Cost, Machine, Recipe, Workload
from stages.contract import read_journal
from stages.contract.settings import EveryNth, Lora, ModelLoading, Preprocessing, Schedule, resolve_target_layers
from stages.data.digits import ask, corpus, draw_picture, load_digits, messages
from stages.data.encoding import Batch, Encoded, Encoder, collate, encode_all
from stages.data.sample import read_samples
from stages.models.backbone import Backbone, load_processor
from stages.models.scratch import CHAT_TEMPLATE, END_OF_TEXT, SPECIAL_TOKENS, TURN_END, build_processor
from stages.models.student import prepare_for_training, train_decoder, train_language_model
from stages.training.optimizer import make_optimizer
from tests.bench.measure import THREADS, machine, versions, write_line

VISION = {
    "depth": 32,
    "embed_dim": 1280,
    "num_heads": 16,
    "mlp_ratio": 4,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
COMMON: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "num_hidden_layers": 28,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "torch_dtype": "bfloat16",
}
QWEN2_VL_2B = COMMON | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "vision_config": VISION | {"hidden_size": 1536},
}
QWEN2_VL_7B = COMMON | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "vision_config": VISION | {"hidden_size": 3584},
}
ORDINARY_TOKENS = 151643
"""Qwen's; the special tokens' ids follow."""
GROUNDING_TOKENS = tuple(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end"))
ALL_SPECIAL_TOKENS = (*SPECIAL_TOKENS[:3], *GROUNDING_TOKENS, *SPECIAL_TOKENS[3:])
CHECKPOINT_FILE_BYTES = 2e9
TARGET_LAYERS = {"offset": 2, "stride": 4}
RANK = 64
SAMPLES, BATCH_SAMPLES, STEPS = 6, 4, 3
SHARD_SAMPLES = MICRO_BATCH_SAMPLES = 2
ENLARGEMENT = 4
"""Of the 84 x 56 pixels of a digits picture: 336 x 224 are 384 patches and 96 image tokens."""
TALKATIVE_KINDS = ("even or odd", "add a column", "sort a row")
RESPONSE_TOKENS = 64
"""A conversation goes on until its answers have so many."""
TOLERANCE = 0.15
SAMPLING_SECONDS = 0.02
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "THP_MEM_ALLOC_ENABLE": "1",
    "OMP_NUM_THREADS": str(THREADS),
}
CALIBRATED_BLOCKS = 2
CALIBRATION_REPETITIONS = 7
PROCESS_CODE = """
import sys
import ray.train.torch
import stages.capture, stages.interaction, stages.precompute, stages.reinforcement, stages.verbalization
from stages.contract.settings import ModelLoading
from stages.models.backbone import load_processor
load_processor(sys.argv[1], ModelLoading())
"""
"""What every stage has in memory before it loads a model."""


def build_checkpoint(folder: Path, published: dict[str, Any], processor: Qwen2VLProcessor, seed: int) -> None:
    """A checkpoint with random weights, one file in memory at a time; nothing to do if it is there.

    Every matrix is cut from one block of normal numbers, from a place of its own: drawing 8 billion takes minutes.
    """
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = Qwen2VLConfig(**published)
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    shapes = {_published_name(name): parameter.shape for name, parameter in model.named_parameters()}
    files = _cut_into_files(shapes)
    generator = torch.Generator().manual_seed(seed)
    block = torch.empty(2**24).normal_(std=0.02, generator=generator).bfloat16()
    for file, names in files.items():
        save_file({name: _random_weight(name, shapes[name], block, generator) for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    GenerationConfig(eos_token_id=config.text_config.eos_token_id, pad_token_id=ORDINARY_TOKENS).save_pretrained(folder)
    processor.save_pretrained(folder)
    config.save_pretrained(folder)


def build_full_processor() -> Qwen2VLProcessor:
    """Qwen2-VL's special tokens at their published ids, and as many ordinary ones as it has.

    The digits task's own words are written with one token each; fillers take the other ids.
    """
    small = json.loads(build_processor(corpus()).tokenizer.backend_tokenizer.to_str())["model"]
    ids: dict[str, int] = small["vocab"]
    words = [token for token in sorted(ids, key=ids.__getitem__) if token not in SPECIAL_TOKENS]
    fillers = [f"⟨{number}⟩" for number in range(len(words), ORDINARY_TOKENS)]
    tokenizer = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate([*words, *fillers, *ALL_SPECIAL_TOKENS])},
        merges=[tuple(pair) for pair in small["merges"]],
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=list(ALL_SPECIAL_TOKENS),
        model_max_length=COMMON["max_position_embeddings"],
    )
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def build_samples(folder: Path, processor: Qwen2VLProcessor) -> Path:
    """Pictures of real handwritten digits, and conversations about them with `RESPONSE_TOKENS` tokens of answers."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    digits, _ = load_digits(1400)
    generator = np.random.default_rng(0)
    lines = []
    for number in range(SAMPLES):
        picture = draw_picture(digits, generator)
        image = f"images/{number}.png"
        size = (picture.image.width * ENLARGEMENT, picture.image.height * ENLARGEMENT)
        picture.image.resize(size, Image.Resampling.BICUBIC).save(folder / image)
        turns: list[dict[str, Any]] = []
        answers = ""
        while len(processor.tokenizer(answers)["input_ids"]) < RESPONSE_TOKENS:
            question = ask(TALKATIVE_KINDS[len(turns) // 2 % len(TALKATIVE_KINDS)], picture, generator)
            turns += messages(question)
            answers += f" {question.answer}"
        for turn in turns[1:]:
            turn["content"] = [part for part in turn["content"] if part["type"] == "text"]
        lines.append(json.dumps({"id": f"sample-{number}", "images": [image], "messages": turns}))
    path = folder / "samples.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def _published_name(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def _cut_into_files(shapes: dict[str, torch.Size]) -> dict[str, list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if size and size + 2 * shape.numel() > CHECKPOINT_FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += 2 * shape.numel()
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, start=1)}


def _random_weight(name: str, shape: torch.Size, block: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.bfloat16)
    weight = torch.empty(shape.numel(), dtype=torch.bfloat16)
    start = int(torch.randint(len(block), (1,), generator=generator))
    for place in range(0, len(weight), len(block)):
        piece = weight[place : place + len(block)]
        piece.copy_(block.roll(start)[: len(piece)])
    return weight.view(shape)


@dataclass(frozen=True)
class Watched:
    """What a process took.

    Attributes:
        peak_bytes: resident at the most, as the kernel counted it.
        anonymous_bytes: without pages of mapped files, at the most, sampled.
        seconds: from its start to its end.
        others_share: of the processors' time meanwhile, what other processes took.
    """

    peak_bytes: int
    anonymous_bytes: int
    seconds: float
    others_share: float


@dataclass(frozen=True)
class Outcome:
    """One stage, run.

    Attributes:
        watched: its process.
        first_seconds: to the end of the first shard or optimizer step: loading, warming up, and that.
        unit_seconds: of each later one.
    """

    watched: Watched
    first_seconds: float
    unit_seconds: list[float]


@dataclass(frozen=True)
class Comparison:
    """A stage's prediction beside what was measured."""

    stage: str
    cost: Cost
    predicted_seconds: float
    outcome: Outcome

    @property
    def memory_error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return self.cost.peak_bytes / self.outcome.watched.peak_bytes - 1

    @property
    def time_error(self) -> float:
        """Of the prediction, relative to the median of what was measured."""
        return self.predicted_seconds / median(self.outcome.unit_seconds) - 1

    def to_json(self) -> dict[str, Any]:
        """All plain values."""
        return {
            "name": f"true-size {self.stage}",
            "peak_bytes": self.outcome.watched.peak_bytes,
            "peak_bytes_predicted": self.cost.peak_bytes,
            "peak_error": self.memory_error,
            "anonymous_bytes": self.outcome.watched.anonymous_bytes,
            "memory_predicted": dict(self.cost.memory),
            "seconds": median(self.outcome.unit_seconds),
            "seconds_predicted": self.predicted_seconds,
            "seconds_error": self.time_error,
            "seconds_of": UNITS[self.stage],
            "work_predicted": asdict(self.cost.work),
            "all_seconds": self.outcome.unit_seconds,
            "first_seconds": self.outcome.first_seconds,
            "process_seconds": self.outcome.watched.seconds,
            "others_share": self.outcome.watched.others_share,
            "target": f"both errors within {TOLERANCE:.0%}",
            "target_met": max(abs(self.memory_error), abs(self.time_error)) <= TOLERANCE,
            "threads": torch.get_num_threads(),
            "machine": machine(),
            "versions": versions(),
        }


def watch(command: list[str]) -> Watched:
    """Run a process and watch its memory.

    Raises:
        SystemExit: it failed.
    """
    began, busy = time.monotonic(), _busy_seconds()
    process = subprocess.Popen(command, stdout=sys.stderr)
    peak = anonymous = 0
    own = 0.0
    while process.poll() is None:
        with contextlib.suppress(OSError, KeyError):
            sizes = _status_bytes(process.pid)
            peak = max(peak, sizes["VmHWM"])
            anonymous = max(anonymous, sizes["RssAnon"] + sizes["RssShmem"])
            own = _processor_seconds(process.pid)
        time.sleep(SAMPLING_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    seconds = time.monotonic() - began
    others = (_busy_seconds() - busy - own) / (seconds * (os.cpu_count() or 1))
    return Watched(peak, anonymous, seconds, max(0.0, others))


def _status_bytes(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = (line.split() for line in lines if line.endswith("kB"))
    return {name.rstrip(":"): int(number) * 1024 for name, number, _ in sizes}


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    """Of all processors, not idle and not waiting for a disk."""
    user, nice, system, _idle, _waiting, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


class Chain:
    """Runs the stages one after the other; each reads what the others wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = {"teacher": folder / "qwen2-vl-7b", "student": folder / "qwen2-vl-2b"}
        self.places |= {"samples": folder / "samples.jsonl"} | {name: folder / "store" / name for name in JOBS}

    def run(self, stage: str) -> Outcome:
        """Run one stage through `python -m stages.<stage>`, anew."""
        inputs, settings = JOBS[stage]
        job = {
            "stage": stage,
            "settings": settings,
            "inputs": {name: str(self.places[name]) for name in inputs},
            "output": str(self.places[stage]),
            "resources": {"workers": 0},
            "force": True,
        }
        file = self.folder / f"{stage}.json"
        file.write_text(json.dumps(job))
        watched = watch([sys.executable, "-m", f"stages.{stage}", "--job", str(file)])
        ends = [line["time"] for line in read_journal(self.places[stage])]
        started = json.loads((self.places[stage] / "manifest.json").read_text())["started"]
        return Outcome(watched, ends[0] - started, [end - start for start, end in pairwise(ends)])


SHARDS = {"shard_samples": SHARD_SAMPLES}
SCHEDULE = {
    "steps": STEPS,
    "batch_size": BATCH_SAMPLES,
    "micro_batch_size": MICRO_BATCH_SAMPLES,
    "gradient_checkpointing": True,
}
LORA = {"rank": RANK, "alpha": RANK}
JOBS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "capture": (("teacher", "samples"), SHARDS | {"target_layers": TARGET_LAYERS, "fraction": 1.0}),
    "verbalization": (("capture", "student", "samples"), {"target_layers": TARGET_LAYERS, "schedule": SCHEDULE}),
    "precompute": (("capture", "verbalization", "teacher", "student", "samples"), SHARDS),
    "interaction": (("student", "samples", "verbalization", "precompute"), {"lora": LORA, "schedule": SCHEDULE}),
    "reinforcement": (("student", "samples"), {"lora": LORA, "schedule": SCHEDULE}),
}
"""Inputs and settings of each stage."""
UNITS = {
    "capture": f"{SHARD_SAMPLES} samples",
    "verbalization": f"a step of {BATCH_SAMPLES} samples",
    "precompute": f"{SHARD_SAMPLES} samples",
    "interaction": f"a step of {BATCH_SAMPLES} samples",
    "reinforcement": f"a step of {BATCH_SAMPLES} samples",
}
"""What a time is of."""


class Prediction:
    """The planner's word on each stage, on this machine as a short calibration finds it."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        encoder = Encoder(load_processor(str(checkpoint), ModelLoading()), Preprocessing())
        self._encoded, bad = encode_all(encoder, read_samples(folder / "samples.jsonl")[0])
        if bad:
            raise SystemExit(f"a sample cannot be used: {bad[0].reason}")
        self._teacher, self._student = (ModelSize.of_config(config) for config in (QWEN2_VL_7B, QWEN2_VL_2B))
        self.recipe = Recipe(
            teacher_targets=len(resolve_target_layers(EveryNth(**TARGET_LAYERS), self._teacher.layers)),
            student_targets=len(resolve_target_layers(EveryNth(**TARGET_LAYERS), self._student.layers)),
            vocabulary=encoder.real_vocabulary,
            state_bytes=2 * self._teacher.width,
            cached_bytes=2 * self._student.width + memory.FLOAT32,
            distinct_samples=SAMPLES,
            micro_batch_samples=MICRO_BATCH_SAMPLES,
            batch_samples=BATCH_SAMPLES,
            shard_samples=SHARD_SAMPLES,
            lora_rank=RANK,
        )
        self.workload = measure_workload(self._encoded)
        self._process_bytes = watch([sys.executable, "-c", PROCESS_CODE, str(checkpoint)]).peak_bytes

    def cost(self, stage: str) -> tuple[Cost, float]:
        """Of one shard or step, and its seconds."""
        worker = self._calibrate(stage)
        unit = self.workload.some(SHARD_SAMPLES if stage in ("capture", "precompute") else BATCH_SAMPLES)
        cost = COSTS[stage](self._teacher, self._student, unit, self.recipe, worker)
        return cost, cost.work.seconds(worker)

    def _calibrate(self, stage: str) -> Machine:
        """What this machine sustains of the stage's kinds of work: two blocks of its model, a piece of its head."""
        teacher, student, recipe = self._teacher, self._student, self.recipe
        rows = self.workload.some(MICRO_BATCH_SAMPLES).responses
        heads = {
            "capture": (rows, teacher.width),
            "verbalization": (recipe.teacher_targets * rows, teacher.width),
            "precompute": ((recipe.teacher_targets + 1) * rows, teacher.width),
            "interaction": ((recipe.student_targets + 1) * rows, student.width),
            "reinforcement": (rows, student.width),
        }
        batch = self._encoded[:MICRO_BATCH_SAMPLES]
        if stage in ("interaction", "reinforcement"):
            trained = train_decoder if stage == "interaction" else train_language_model
            model_rate = training_rate(batch, QWEN2_VL_2B, recipe, trained)
        else:
            model_rate = forward_rate(batch, QWEN2_VL_7B if stage == "capture" else QWEN2_VL_2B)
        return Machine(
            half_flops_per_second=model_rate,
            float_flops_per_second=head_rate(*heads[stage]),
            moved_bytes_per_second=adamw_rate(),
            copied_bytes_per_second=widening_rate(heads[stage][1]),
            process_bytes=self._process_bytes,
            is_cpu=True,
        )


def measure_workload(encoded: list[Encoded]) -> Workload:
    """What the samples are, in tokens."""
    images = mean(int((one.input_ids == COMMON["image_token_id"]).sum()) for one in encoded)
    responses = mean(len(one.response_ids) for one in encoded)
    patches = mean(len(one.extras["pixel_values"]) for one in encoded)
    text = mean(len(one.input_ids) for one in encoded) - images - responses
    return Workload(len(encoded), text, images, responses, patches, patches)


def forward_rate(encoded: list[Encoded], published: dict[str, Any]) -> float:
    """Operations per second of a model with two blocks of each kind: products, and all that lies between them."""
    backbone, batch = _few_blocks(encoded, published)
    with torch.no_grad():
        seconds = _seconds(lambda: backbone.states(batch, ()))
    return measure_workload(encoded).forward_flops(ModelSize.of_config(_few(published))) / seconds


def training_rate(
    encoded: list[Encoded],
    published: dict[str, Any],
    recipe: Recipe,
    trained: Callable[[Backbone, Lora], None],
) -> float:
    """The same of a student in training: adapters, autocast, blocks computed again, backward."""
    backbone, batch = _few_blocks(encoded, published)
    trained(backbone, Lora(**LORA))
    prepare_for_training(backbone, Schedule(**SCHEDULE))

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = backbone.states(batch, ()).last.sum()
        loss.backward()

    work = costs.decoder_training(ModelSize.of_config(_few(published)), measure_workload(encoded), recipe)
    return work.half_flops / _seconds(train)


def _few_blocks(encoded: list[Encoded], published: dict[str, Any]) -> tuple[Backbone, Batch]:
    """Such a model and a micro-batch for it. Of its 8 words 1 is a part of a picture and 3 is any other."""
    config = Qwen2VLConfig(**_few(published))
    backbone = Backbone(Qwen2VLForConditionalGeneration(config).bfloat16().eval())
    batch = collate(encoded, pad_id=0)
    ids = torch.where(batch.inputs["input_ids"] == COMMON["image_token_id"], 1, 3)
    return backbone, replace(batch, inputs=batch.inputs | {"input_ids": ids})


def _few(published: dict[str, Any]) -> dict[str, Any]:
    words = {"vocab_size": 8, "image_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
    vision = published["vision_config"] | {"depth": CALIBRATED_BLOCKS}
    return published | words | {"num_hidden_layers": CALIBRATED_BLOCKS, "vision_config": vision}


def head_rate(rows: float, width: int) -> float:
    """Operations per second of the two float32 products with one block of a head."""
    x, block = torch.randn(round(rows), width), torch.randn(memory.VOCABULARY_BLOCK, width)
    return 4 * len(x) * block.numel() / _seconds(lambda: (x @ block.T) @ block)


def widening_rate(width: int) -> float:
    """Bytes per second that a float32 copy of one block of a head reads and writes."""
    block = torch.randn(memory.VOCABULARY_BLOCK, width).bfloat16()
    return block.numel() * (block.itemsize + memory.FLOAT32) / _seconds(block.float)


def adamw_rate() -> float:
    """Bytes per second that a step of the project's optimizer moves."""
    parameter = torch.nn.Parameter(torch.randn(2**12, 2**13))
    parameter.grad = torch.randn_like(parameter)
    optimizer = make_optimizer([parameter], Schedule())
    return costs.ADAMW_MOVED * parameter.numel() / _seconds(optimizer.step)


def _seconds(action: Callable[[], Any]) -> float:
    """Of the median repetition; the first two only warm up."""
    times = []
    for _ in range(CALIBRATION_REPETITIONS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return median(times[2:])


def make_table(comparisons: list[Comparison]) -> Table:
    """The results for people."""
    table = Table(title=f"{machine()}; prediction against measurement", box=box.SIMPLE)
    for column in ("", "peak GB", "predicted", "error", "seconds", "predicted", "error", "others"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    table.add_column("time of")
    for one in comparisons:
        table.add_row(
            one.stage,
            f"{one.outcome.watched.peak_bytes / 1e9:.2f}",
            f"{one.cost.peak_bytes / 1e9:.2f}",
            f"{one.memory_error:+.1%}",
            f"{median(one.outcome.unit_seconds):.1f}",
            f"{one.predicted_seconds:.1f}",
            f"{one.time_error:+.1%}",
            f"{one.outcome.watched.others_share:.0%}",
            UNITS[one.stage],
        )
    return table


def main() -> None:
    """Build, calibrate, run, compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.true_size", description="The stages at true size.")
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints (22 GB, kept) and artifacts")
    parser.add_argument("--only", nargs="+", choices=JOBS, metavar="STAGE", help="the stages before were run already")
    parser.add_argument("--output", type=Path, help="JSON lines")
    arguments = parser.parse_args()
    if ENVIRONMENT.items() - os.environ.items():
        os.execve(sys.executable, sys.orig_argv, os.environ | ENVIRONMENT)
    chain = Chain(arguments.folder.absolute())
    processor = build_full_processor()
    build_checkpoint(chain.places["teacher"], QWEN2_VL_7B, processor, seed=0)
    build_checkpoint(chain.places["student"], QWEN2_VL_2B, processor, seed=1)
    build_samples(chain.folder, processor)
    prediction = Prediction(chain.folder, chain.places["student"])
    comparisons = []
    for stage in arguments.only or JOBS:
        comparisons.append(Comparison(stage, *prediction.cost(stage), chain.run(stage)))
        line = comparisons[-1].to_json() | {"workload": asdict(prediction.workload)}
        print(json.dumps(line), flush=True)
        if arguments.output:
            write_line(arguments.output, line)
    Console(stderr=True, width=120).print(make_table(comparisons))


if __name__ == "__main__":
    main()
