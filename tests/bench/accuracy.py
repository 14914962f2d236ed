"""What each codec does to the student: the digits demo for every codec and some seeds.

    python -m tests.bench.accuracy --store FOLDER

Runs `vlsi prepare`, then `vlsi run` for each seed and codec in one store, so that a seed's codecs share its
capture and its verbalizers, and a run that was interrupted goes on where it stopped. Ends with a table of
the students' accuracy on held-out questions; one JSON line per codec goes to standard output and, with
--output, to a file. On two cores with nothing beside it a seed takes about eight minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.experiment import MAIN
from pipeline.results import collect_scores
from pipeline.session import Session
from tests.bench.measure import machine, versions, write_line

CODECS = ("hidden", "hidden-int8", "moment", "moment-int8", "sampled")
SEEDS = (0, 1, 2)


def main() -> None:
    """Run every cell, then compare."""
    arguments = _parse()
    os.environ["VLSI_STORE"] = str(arguments.store.absolute())
    _vlsi("prepare", "experiment=digits")
    scores: dict[str, list[float]] = {codec: [] for codec in arguments.codecs}
    for seed in arguments.seeds:
        for codec in arguments.codecs:
            overrides = ["experiment=digits", "~variants", f"seed={seed}", f"precompute.codec={codec}"]
            _vlsi("run", *overrides)
            scores[codec].append(accuracy(overrides))
    for codec, of_codec in scores.items():
        line = to_json(codec, dict(zip(arguments.seeds, of_codec, strict=True)))
        print(json.dumps(line), flush=True)
        if arguments.output:
            write_line(arguments.output, line)
    Console(stderr=True).print(make_table(scores, arguments.seeds))


def accuracy(overrides: list[str]) -> float:
    """Of the student of a configuration that was run."""
    session = Session.open(overrides)
    scores = collect_scores(session.graph, session.artifacts())
    return next(one.overall for one in scores if one.name == MAIN)


def to_json(codec: str, by_seed: dict[int, float]) -> dict[str, Any]:
    """All plain values."""
    values = list(by_seed.values())
    return {
        "name": f"accuracy {codec}",
        "mean": mean(values),
        "spread": _spread(values),
        "by_seed": by_seed,
        "machine": machine(),
        "versions": versions(),
    }


def make_table(scores: dict[str, list[float]], seeds: list[int]) -> Table:
    """The results for people."""
    table = Table(title="accuracy of the digits student, %", box=box.SIMPLE)
    table.add_column("codec")
    for column in ("mean", "spread", *(f"seed {seed}" for seed in seeds)):
        table.add_column(column, justify="right")
    for codec, values in scores.items():
        table.add_row(codec, *(f"{100 * value:.1f}" for value in (mean(values), _spread(values), *values)))
    return table


def _spread(values: list[float]) -> float:
    """Standard deviation over the seeds."""
    return stdev(values) if len(values) > 1 else 0.0


def _vlsi(*arguments: str) -> None:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    subprocess.run(command, stdout=sys.stderr, check=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.accuracy", description="Accuracy by codec.")
    parser.add_argument("--store", type=Path, required=True, help="of `vlsi`; what is in it is not run again")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), metavar="SEED")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS), metavar="CODEC")
    parser.add_argument("--output", type=Path, help="JSON lines")
    return parser.parse_args()


if __name__ == "__main__":
    main()
