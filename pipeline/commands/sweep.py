"""`vlsi sweep`: many students from one graph, compared over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands import EXIT_CODES, AsJson, Exit, Overrides, end_stopped, err, out, print_json
from pipeline.config import ConfigError
from pipeline.decisions import made_before
from pipeline.runner import Outcome
from pipeline.screen import show_failures, show_files
from pipeline.sweeps import screen
from pipeline.sweeps.study import Study
from stages.contract.place import write_whole

EPILOG = (
    "Try: [bold]vlsi sweep sweep=matching --dry-run[/] · "
    "[bold]vlsi sweep sweep=seeds --seeds 3 --output seeds.csv[/]. " + EXIT_CODES
)


def sweep(
    overrides: Overrides = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N|0,1,2", help="How many, or which, instead of the sweep's own.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and compare what is there.")] = False,
    tasks: Annotated[bool, typer.Option("--tasks", help="Show every kind of question too.")] = False,
    as_json: AsJson = False,
    output: Annotated[Path | None, typer.Option(help="A CSV file to write, a line for each value.")] = None,
) -> None:
    """Train a student for every point of a sweep and every seed, and say what differs from the baseline.

    sweep=NAME chooses a file of conf/sweep. What points share is made once; running it again goes on.
    """
    study = Study.open(overrides or [], _parse_seeds(seeds))
    decisions = study.decide()
    screen.show_work(err if as_json else out, decisions)
    try:
        outcome = Outcome(made_before(decisions)) if dry_run else study.execute(decisions, err)
    except KeyboardInterrupt:
        end_stopped(study.command())
    results = study.results(outcome.artifacts)
    if as_json:
        print_json(results.to_json())
    elif results.values:
        screen.show_results(out, results, by_task=tasks)
    if output:
        write_whole(output.absolute(), results.to_csv())
    if results.values and not dry_run:
        show_files(err if as_json else out, study.write_files(results))
    if outcome.failed:
        show_failures(err, outcome)
        err.print(f"Everything else is kept. Go on with: {study.command()}", markup=False, soft_wrap=True)
        raise typer.Exit(Exit.FAILED)


def _parse_seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts) or text.strip() == "0":
        raise ConfigError(f"--seeds: {text!r} is neither a number of seeds nor a list; for example 8 or 0,1,2")
    numbers = tuple(dict.fromkeys(map(int, parts)))
    return numbers if "," in text else tuple(range(numbers[0]))
