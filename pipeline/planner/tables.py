"""What `vlsi plan` prints: the stages, what fills a worker's memory, and the codecs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline.planner.caches import CodecPlan
from pipeline.planner.facts import MADE_UP, TRAINED, UNTRAINED, Facts
from pipeline.planner.plan import Planner, StagePlan
from pipeline.planner.shards import EXACT, NEEDED_AT_TRAINING
from pipeline.screen import make_table

VECTORS = {
    MADE_UP: "On disk: made-up Gaussian vectors, no two alike; the most that real ones take, to 2 %.",
    UNTRAINED: "On disk: rehearsed with untrained verbalizers. Trained ones are surer of their words, and "
    "moment and sampled take less then; plan again after verbalization.",
    TRAINED: "On disk: rehearsed with the trained verbalizers.",
}
UNITS = ("", "k", "M", "G", "T", "P", "E", "Z")


def show_plan(console: Console, planner: Planner, *, memory: bool, gpu_gigabytes: float) -> None:
    """Everything, readable at 80 columns."""
    _show_facts(console, planner.facts)
    _show_stages(console, planner.stages)
    if memory:
        _show_memory(console, planner.stages)
    _show_codecs(console, planner.codecs, planner.stages, planner.facts)
    _show_advice(console, planner.stages, gpu_gigabytes)


def _show_facts(console: Console, facts: Facts) -> None:
    of = facts.workload
    console.print(
        f"{of.samples:,.0f} samples of {_figures(of.response_tokens)} response, {of.image_tokens:,.0f} image and "
        f"{of.text_tokens:,.0f} other tokens, {escape(facts.basis)}.",
        highlight=False,
    )


def _show_stages(console: Console, stages: Sequence[StagePlan]) -> None:
    """Work over all workers, memory of one, what is written."""
    heads = ("stage", "samples", "teacher FLOP", "student FLOP", "workers", "peak GB", "hours", "disk", "files")
    table = make_table(*(head.replace(" ", "\n") for head in heads))
    for column in table.columns[1:]:
        column.justify = "right"
    for plan in stages:
        table.add_row(
            plan.stage,
            _short(plan.samples),
            _short(plan.cost.teacher_flops),
            _short(plan.cost.work.flops - plan.cost.teacher_flops),
            _workers(plan),
            _figures(plan.cost.peak_bytes / 1e9),
            "" if plan.seconds is None else _figures(plan.seconds / 3600),
            _short(plan.disk.bytes) + "B" if plan.disk else "",
            f"{plan.disk.files:,}" if plan.disk else "",
        )
    console.print(table)
    if spread := [plan.stage for plan in stages if plan.busy < plan.accelerators]:
        console.print(
            f"{' and '.join(spread)}: a model spread over GPUs passes through them one after the other, so that "
            "one of a worker's GPUs is busy at a time.",
            style="dim",
            highlight=False,
        )


def _workers(plan: StagePlan) -> str:
    return f"{plan.workers}x{plan.accelerators:g} GPU" if plan.accelerators else f"{plan.workers} CPU"


def _show_memory(console: Console, stages: Sequence[StagePlan]) -> None:
    """What lies in a worker's memory at the worst moment."""
    table = make_table("stage", "in one worker's memory", "GB")
    table.columns[2].justify = "right"
    for plan in stages:
        terms = sorted(plan.cost.memory.items(), key=lambda term: -term[1])
        for number, (name, size) in enumerate(term for term in terms if term[1] >= plan.cost.peak_bytes / 1000):
            table.add_row(plan.stage if number == 0 else "", name, _figures(size / 1e9))
    console.print(table)


def _show_codecs(console: Console, codecs: Sequence[CodecPlan], stages: Sequence[StagePlan], facts: Facts) -> None:
    """What the cache takes in each codec, and how fast it has to be read to keep interaction going."""
    if not codecs:
        return
    seconds = next((plan.seconds for plan in stages if plan.stage == "interaction"), None)
    table = make_table("codec", "bytes", "on disk", "cache", "MB/s", "exact", "needs")
    for column in table.columns[1:5]:
        column.justify = "right"
    for plan in codecs:
        table.add_row(
            escape(plan.codec) + (" *" if plan.chosen else ""),
            f"{plan.token_bytes:,}",
            f"{plan.stored_bytes:,.0f}",
            _short(plan.disk.bytes) + "B",
            _figures(plan.disk.bytes / seconds / 1e6) if seconds else "",
            EXACT[plan.codec],
            NEEDED_AT_TRAINING.get(plan.codec, ""),
        )
    console.print(table)
    console.print(
        "Bytes of a response token and layer, before compression and on disk; MB/s that keep interaction "
        f"going; * configured. {VECTORS[facts.vectors]}",
        style="dim",
        highlight=False,
    )


def _show_advice(console: Console, stages: Sequence[StagePlan], gpu_gigabytes: float) -> None:
    """Workers that do not fit on their GPUs."""
    for plan in stages:
        room = plan.accelerators * gpu_gigabytes * 1e9
        if plan.cost.peak_bytes <= room or not plan.accelerators:
            continue
        needed, has = _figures(plan.cost.peak_bytes / 1e9), _figures(room / 1e9)
        console.print(
            f"[red]{plan.stage}[/]: a worker needs {needed} GB, more than {has} on {plan.accelerators:g} GPU. "
            f"{escape(_way_out(plan))}",
            soft_wrap=True,
            highlight=False,
        )


def _way_out(plan: StagePlan) -> str:
    if plan.stage in ("capture", "precompute"):
        return f"Give it more: executor.resources.{plan.stage}.gpus_per_worker with teacher.loading.device_map=auto."
    return (
        f"Shard what is trained: executor.resources.{plan.stage}.parallelism=fsdp; "
        f"or lower {plan.stage}.schedule.micro_batch_tokens."
    )


def to_json(planner: Planner) -> dict[str, Any]:
    """The same numbers for scripts: bytes, operations, seconds."""
    facts = planner.facts
    stages = {
        plan.stage: {
            "samples": plan.samples,
            "flops": plan.cost.work.flops,
            "teacher_flops": plan.cost.teacher_flops,
            "seconds": plan.seconds,
            "workers": plan.workers,
            "gpus_per_worker": plan.accelerators,
            "peak_bytes": plan.cost.peak_bytes,
            "memory": dict(plan.cost.memory),
            **(asdict(plan.disk) if plan.disk else {}),
        }
        for plan in planner.stages
    }
    codecs = {
        plan.codec: {"token_bytes": plan.token_bytes, "stored_token_bytes": plan.stored_bytes, **asdict(plan.disk)}
        for plan in planner.codecs
    }
    samples = {**asdict(facts.workload), "basis": facts.basis, "vectors": facts.vectors}
    return {"experiment": planner.experiment.name, "samples": samples, "stages": stages, "codecs": codecs}


def _short(number: float) -> str:
    """Three figures and a unit: 87.0k, 19.8T."""
    power = 0
    while number >= 999.5 and power < len(UNITS) - 1:
        number, power = number / 1000, power + 1
    return _figures(number) + UNITS[power]


def _figures(number: float) -> str:
    """Three of them."""
    if number >= 100 or number == 0:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2g}" if number < 0.1 else f"{number:.2f}"
