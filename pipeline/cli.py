"""The command `vlsi`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from pipeline import data, screen
from pipeline.config import ConfigError, load
from pipeline.decisions import FORCE_ALL, Selection
from pipeline.experiment import MAIN
from pipeline.graph import Node
from pipeline.results import collect_scores
from pipeline.session import Session
from pipeline.tracking import tracking_uri
from stages.contract import ArtifactError

EXIT_CODES = "Exit codes: 0 done · 1 a stage failed · 2 the configuration is not valid."

app = typer.Typer(
    help="Distil a large vision-language model into a small one, layer by layer.",
    epilog=(
        "Start with [bold]vlsi prepare[/] and [bold]vlsi run[/]: real handwritten digits, two cores, some minutes. "
        "Your own models: [bold]vlsi run experiment=qwen2vl-2b-from-7b --dry-run[/]. " + EXIT_CODES
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
out = Console()
err = Console(stderr=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to the configuration: experiment=NAME chooses a file of conf/experiment, "
        "interaction.schedule.steps=100 sets one value.",
        show_default=False,
    ),
]
StageName = Annotated[str, typer.Argument(metavar="STAGE", help="A stage, or one node such as interaction@sft.")]


@app.command(
    epilog="Try: [bold]vlsi run --dry-run[/] · [bold]vlsi run interaction.schedule.learning_rate=5e-4[/] · "
    "[bold]vlsi run --force interaction[/]. " + EXIT_CODES
)
def run(
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Run this stage alone.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Run this stage and what follows.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Run up to this stage.")] = None,
    force: Annotated[
        str | None, typer.Option(metavar="[STAGE]", help="Run again although nothing changed; alone: everything.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and why, and stop.")] = False,
) -> None:
    """Run every stage whose result is missing or outdated, and show the scores."""
    session = Session.open(overrides or [])
    decisions = session.decide(Selection(only, start, until, force))
    screen.show_decisions(out, decisions)
    if dry_run:
        return
    outcome = session.execute(decisions, err)
    screen.show_scores(out, collect_scores(session.graph, outcome.artifacts))
    screen.show_times(out, [decision.node for decision in decisions], outcome)
    if outcome.failed:
        screen.show_failures(err, outcome)
        err.print(f"Everything else is kept. Go on with: {session.command('run')}", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    _show_files(session)
    name = f"experiment={session.experiment.name}"
    screen.show_next(
        out,
        {
            f"vlsi run {name} interaction.matching.strategy=bottom-1": "always learn from the nearest teacher layer; "
            "reruns interaction and what follows it",
            f"mlflow ui --backend-store-uri {tracking_uri(session.store)}": "compare runs, curves and figures",
        },
    )


@app.command(
    epilog="Try: [bold]vlsi plan experiment=qwen2vl-2b-from-72b[/] · "
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


@app.command(epilog="Then: [bold]vlsi run[/], or [bold]vlsi explain STAGE[/]. " + EXIT_CODES)
def status(overrides: Overrides = None) -> None:
    """Say what is up to date and what would run; runs nothing."""
    session = Session.open(overrides or [])
    decisions = session.decide()
    screen.show_decisions(out, decisions)
    stale = sum(not decision.reused for decision in decisions)
    out.print(
        f"{stale} of {len(decisions)} would run: {session.command('run')}" if stale else "Everything is up to date."
    )


@app.command(epilog="Try: [bold]vlsi explain interaction interaction.schedule.learning_rate=5e-4[/]. " + EXIT_CODES)
def explain(stage: StageName, overrides: Overrides = None) -> None:
    """Say why a stage would run or be reused, and what its fingerprint is made of."""
    session = Session.open(overrides or [])
    keys = {node.key for node in session.graph.named(stage)}
    for decision in session.decide():
        if decision.node.key in keys:
            screen.show_explanation(out, decision)


@app.command(epilog="Then: [bold]vlsi run[/]. " + EXIT_CODES)
def prepare(overrides: Overrides = None) -> None:
    """Make the models and data of an experiment that brings its own (digits and easy-vqa do)."""
    session = Session.open_preparation(overrides or [])
    decisions = session.decide()
    screen.show_decisions(out, decisions)
    outcome = session.execute(decisions, err)
    screen.show_failures(err, outcome)
    if outcome.failed:
        raise typer.Exit(1)
    screen.show_files(out, {"models and data": Path(session.experiment.prepared)})
    screen.show_next(out, {session.command("run"): "distil the teacher into the small backbone"})


@app.command(epilog="Try: [bold]vlsi report --output report.html[/]. " + EXIT_CODES)
def report(
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="The file to write, instead of one in the store.")] = None,
) -> None:
    """Write one HTML file with scores, curves and layers of what is up to date."""
    session = Session.open(overrides or [])
    path = session.write_report(output and output.absolute())
    screen.show_scores(out, collect_scores(session.graph, session.artifacts()))
    screen.show_files(out, {"report": path})


@app.command(
    epilog="Then: [bold]vlsi job interaction > job.json[/] and "
    "[bold]python -m stages.interaction --job job.json[/]. " + EXIT_CODES
)
def job(stage: StageName, overrides: Overrides = None) -> None:
    """Print the job of one stage, to run it by hand or to submit it elsewhere."""
    session = Session.open(overrides or [])
    node = next((node for node in session.graph.nodes if node.key == stage), session.graph.named(stage)[0])
    resources = session.experiment.executor.resources_of(node.key)
    typer.echo(node.job(resources).model_dump_json(indent=2))


def main() -> None:
    """Entry point: one sentence for a mistake, no traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(_complete_force(sys.argv[1:]), prog_name="vlsi")
    except ConfigError as error:
        err.print(f"[red]not valid[/]  {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except ArtifactError as error:
        err.print(f"[red]damaged[/]  {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)


def _complete_force(arguments: list[str]) -> list[str]:
    """`--force` without a stage means everything."""
    completed = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        completed.append(argument)
        if argument == "--force" and (following.startswith("-") or "=" in following):
            completed.append(FORCE_ALL)
    return completed


def _interrupt(*_: object) -> NoReturn:
    """A SIGTERM ends the stages and closes the record as Ctrl-C does."""
    raise KeyboardInterrupt


def _trained_verbalizers(overrides: list[str]) -> str | None:
    """The experiment's verbalization, if it is up to date; models and data need not exist."""
    try:
        artifact = Session.open(overrides).artifacts().get("verbalization")
    except ConfigError:
        return None
    return str(artifact.place) if artifact else None


def _show_files(session: Session) -> None:
    student = session.graph.targets[MAIN].inputs["model"]
    files = {
        "student": student.output if isinstance(student, Node) else Path(student.place),
        "report": session.store.report_file(session.experiment.name),
        "artifacts": session.store.artifacts,
        "runs": session.store.root / "mlflow.db",
    }
    screen.show_files(out, files)


if __name__ == "__main__":
    main()
