"""`vlsi plan`: what a run costs, before it runs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipeline.commands import EXIT_CODES, Overrides, out
from pipeline.config import ConfigError, load
from pipeline.session import Session

EPILOG = (
    "Try: [bold]vlsi plan experiment=qwen2vl-2b-from-72b[/] · "
    "[bold]vlsi plan experiment=qwen2vl-2b-from-7b --samples 100000 --response-tokens 80[/]. " + EXIT_CODES
)


def plan(
    overrides: Overrides = None,
    samples: Annotated[int | None, typer.Option(min=1, help="In the training set.", show_default=False)] = None,
    response_tokens: Annotated[float | None, typer.Option(min=1, help="Of a sample.", show_default=False)] = None,
    prompt_tokens: Annotated[
        float | None, typer.Option(min=0, help="Of a sample, without pictures and responses.", show_default=False)
    ] = None,
    image_tokens: Annotated[float | None, typer.Option(min=0, help="Of a sample.", show_default=False)] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Sustained by one GPU, else by one CPU; for GPUs 400 if not given, 40 % of an H100's bfloat16 peak.",
            show_default=False,
        ),
    ] = None,
    gpu_memory: Annotated[float, typer.Option(min=1, metavar="GB", help="Of one GPU.")] = 80,
    rehearse: Annotated[
        bool, typer.Option("--rehearse/--no-rehearse", help="Make the caches of some samples, if that is cheap.")
    ] = True,
    memory: Annotated[bool, typer.Option("--memory", help="Say what fills the memory of a worker.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print bytes, operations and seconds as JSON.")] = False,
) -> None:
    """Say what every stage computes, holds in memory and writes, and what each codec takes; runs nothing.

    Samples are measured where data and teacher are on this machine; else they are assumed, or as you state.
    """
    from pipeline.planner import tables
    from pipeline.planner.facts import Options, find_facts
    from pipeline.planner.plan import Planner

    experiment = load(overrides or []).main
    stated = Options(samples, response_tokens, prompt_tokens, image_tokens)
    facts = find_facts(experiment, stated, _trained_verbalizers(overrides or []), rehearse=rehearse)
    planner = Planner(experiment, facts, tflops)
    if as_json:
        typer.echo(json.dumps(tables.to_json(planner), indent=2))
    else:
        tables.show_plan(out, planner, memory=memory, gpu_gigabytes=gpu_memory)


def _trained_verbalizers(overrides: list[str]) -> str | None:
    """The experiment's verbalization, if it is up to date; models and data need not exist."""
    try:
        artifact = Session.open(overrides).artifacts().get("verbalization")
    except ConfigError:
        return None
    return str(artifact.place) if artifact else None
