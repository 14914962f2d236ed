"""`vlsi evaluate`: what the models are worth on public benchmarks, here or with other people's harnesses."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipeline import screen
from pipeline.benchmarks import MODELS, Benchmarks, Measured, Result, results_document
from pipeline.commands import EXIT_CODES, AsJson, Exit, Overrides, end_stopped, err, out, print_json
from pipeline.config import ConfigError
from pipeline.decisions import FORCE_ALL, Selection
from pipeline.experiment import MAIN
from pipeline.graph import Node
from pipeline.harness import HARNESSES, lmms_eval_command, vlmevalkit_configuration
from pipeline.results import LABELS
from pipeline.session import Session
from stages.contract.place import place_of

EPILOG = (
    "Try: [bold]vlsi evaluate --benchmark mmbench=MMBench_DEV_EN.tsv --benchmark chartqa=ChartQA/test[/] · "
    "[bold]vlsi evaluate --benchmark MMMU evaluation.num_beams=3[/] · "
    "[bold]vlsi evaluate --harness lmms-eval --benchmark mmmu[/]. " + EXIT_CODES
)
_METRICS = {"f1": "F1", "yes_ratio": "yes-ratio"}
"""What tables call a metric; others keep their own name."""


def evaluate(
    overrides: Overrides = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PATH",
            help="A local copy of a benchmark, a file or folder; without a name it is recognised. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Evaluate this model, or a variant; {', '.join(MODELS)} by default.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        str | None, typer.Option(metavar="[STAGE]", help="Run again although nothing changed; alone: the evaluations.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and why, and stop.")] = False,
    harness: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Print the command of {' or '.join(HARNESSES)} instead.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="With --harness lmms-eval: run the command too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask the teacher, the small backbone and the student the questions of public benchmarks."""
    if harness is not None:
        _use_harness(harness, overrides or [], benchmark or [], run=run)
        return
    if not benchmark:
        raise ConfigError("--benchmark: nothing is asked for; name a local copy, such as mmbench=MMBench_DEV_EN.tsv")
    if run:
        raise ConfigError("--run goes with --harness lmms-eval alone; without a harness everything is run anyway")
    benchmarks = Benchmarks.open(overrides or [], benchmark, model or MODELS)
    decisions = benchmarks.decide(Selection(force="evaluation" if force == FORCE_ALL else force))
    if not as_json or dry_run:
        screen.show_decisions(out, decisions)
    if dry_run:
        return
    try:
        outcome = benchmarks.execute(decisions, err)
    except KeyboardInterrupt:
        end_stopped(_command(overrides or [], benchmark, model or []))
    results = benchmarks.results(outcome.artifacts)
    if as_json:
        print_json(results_document(benchmarks, results))
    else:
        show_results(results, benchmarks.experiment.evaluation.decoding)
    if outcome.failed:
        screen.show_failures(err, outcome)
        again = _command(overrides or [], benchmark, model or [])
        err.print(f"Everything else is kept. Go on with: {again}", markup=False, soft_wrap=True)
        raise typer.Exit(Exit.FAILED)


def show_results(results: Sequence[Result], decoding: str) -> None:
    """A row for each benchmark and a column for each model, then how the student differs from the others."""
    measured = [result for result in results if result.models]
    models = list(dict.fromkeys(model.model for result in measured for model in result.models))
    if not models:
        return
    table = screen.make_table("", *(escape(LABELS.get(model, model)) for model in models), "questions")
    table.title = f"Benchmarks, % right, {decoding}"
    for column in table.columns[1:]:
        column.justify = "right"
    for result in measured:
        for cells in _rows(result, models):
            table.add_row(*cells)
    out.print(table)
    out.print("[dim]± is half of the 95 % interval over the questions.[/]\n")
    if any(result.differences for result in measured):
        out.print(_differences(measured))
    for note in _notes(measured):
        out.print(note, soft_wrap=True)


def _rows(result: Result, models: Sequence[str]) -> Iterator[list[str]]:
    by_model = {model.model: model for model in result.models}
    questions = max(len(model.correct) for model in result.models)
    yield [escape(result.asked.label), *(_score(by_model.get(model)) for model in models), f"{questions:,}"]
    for metric in dict.fromkeys(name for model in result.models for name in model.metrics):
        values = [by_model[model].metrics.get(metric) if model in by_model else None for model in models]
        cells = ["" if value is None else f"[dim]{100 * value:.1f}" for value in values]
        yield [f"[dim]  {escape(_METRICS.get(metric, metric))}", *cells, ""]


def _score(measured: Measured | None) -> str:
    if measured is None:
        return "–"
    if measured.score is None or measured.interval is None:
        return "[yellow]not judged"
    half = (measured.interval.high - measured.interval.low) / 2
    return f"{100 * measured.score:.1f} [dim]±{100 * half:.1f}[/]"


def _differences(results: Sequence[Result]) -> Table:
    table = screen.make_table("", "minus", "points", "95 % interval", "p")
    table.title = f"{LABELS[MAIN]} against the others, over the same questions"
    for column in table.columns[2:]:
        column.justify = "right"
    for result in results:
        for other, found in result.differences.items():
            low, high = f"{100 * found.low:+.1f}", f"{100 * found.high:+.1f}"
            table.add_row(
                escape(result.asked.label),
                escape(LABELS.get(other, other)),
                f"{100 * found.difference:+.1f}",
                f"{low} … {high}",
                f"{found.p:.3f}" if found.p >= 0.001 else "< 0.001",
            )
    return table


def _notes(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        label = escape(result.asked.label)
        if any(model.score is None for model in result.models):
            yield (
                f"[yellow]{label}[/]: rules cannot score free answers; they are kept in the predictions. "
                "To have them scored: evaluation.judge='{url: http://localhost:8000/v1, model: NAME}'."
            )
        if bad := max(model.quarantined for model in result.models):
            yield f"[yellow]{label}[/]: {bad:,} of its rows could not be used; see quarantine.jsonl in the artifacts."


def _use_harness(harness: str, overrides: list[str], benchmarks: list[str], *, run: bool) -> None:
    """Print what evaluates the exported student with a harness, and run it if that is asked for."""
    if harness not in HARNESSES:
        raise ConfigError(f"--harness: {harness!r} is unknown; allowed: {', '.join(HARNESSES)}")
    if run and harness != "lmms-eval":
        raise ConfigError(f"--run goes with --harness lmms-eval alone; {harness} runs in a checkout of its own")
    session = Session.open(overrides)
    student, model_type = _exported(session)
    names = [text.partition("=")[0] for text in benchmarks]
    if harness == "vlmevalkit":
        out.print(vlmevalkit_configuration(student, model_type, names), markup=False, highlight=False, soft_wrap=True)
        err.print("Save this as config.json; in a checkout of VLMEvalKit: python run.py --config config.json")
        return
    output = str(session.store.root / "reports" / "lmms-eval")
    command = lmms_eval_command(student, model_type, names, session.experiment.evaluation.num_beams, output)
    out.print(shlex.join(command), markup=False, highlight=False, soft_wrap=True)
    if run:
        _run(command)


def _exported(session: Session) -> tuple[str, str]:
    """Where the student is, and what its configuration calls its kind of model."""
    node = session.graph.targets[MAIN].inputs["model"]
    place = node.output if isinstance(node, Node) else place_of(node.place)
    file = place / "config.json"
    if not file.is_file():
        raise ConfigError(f"--harness: there is no student yet; run `{session.command('run')}` first")
    return str(place), str(json.loads(file.read_text()).get("model_type", ""))


def _run(command: list[str]) -> None:
    if find_spec("lmms_eval") is None:
        raise ConfigError("--run: lmms-eval is not installed in this Python; install it with `pip install lmms-eval`")
    if code := subprocess.run(command, check=False).returncode:
        err.print(f"[red]failed[/]  lmms-eval ended with exit code {code}; its error stands above")
        raise typer.Exit(Exit.FAILED)


def _command(overrides: Sequence[str], benchmarks: Sequence[str], models: Sequence[str]) -> str:
    options = [*(f"--benchmark={text}" for text in benchmarks), *(f"--model={name}" for name in models)]
    return shlex.join(["vlsi", "evaluate", *overrides, *options])
