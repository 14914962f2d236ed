"""`make bench`: every comparison of the training engine, one JSON line each.

    python -m tests.bench                        all, at full size (about 25 minutes on two cores)
    python -m tests.bench --only floor dense     one group, or several
    python -m tests.bench --quick                small sizes, to see that everything works

Lines go to the output file and to standard output; a table for people follows on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench import heads, last_layer, steps, verbalization
from tests.bench.measure import write_line

SIDES = ("ours", "baseline")
QUIET = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "TRL_EXPERIMENTAL_SILENCE": "1"}
GROUPS = {
    "floor": heads.compare_with_floor,
    "dense": heads.compare_with_dense,
    "last-layer": last_layer.compare,
    "steps": steps.compare,
    "verbalization": verbalization.compare,
}


def main() -> None:
    """Parse, run, print."""
    arguments = _parse()
    os.environ.update(QUIET)
    arguments.output.write_text("")
    lines = []
    for group in arguments.only or GROUPS:
        for result in GROUPS[group](arguments.quick):
            line = result.to_json(quick=arguments.quick)
            write_line(arguments.output, line)
            print(json.dumps(line), flush=True)
            lines.append(line)
    Console(stderr=True, width=120).print(make_table(lines), *make_parts_tables(lines))


def make_table(lines: list[dict[str, Any]]) -> Table:
    """The results for people."""
    title = f"{lines[0]['machine']}, {lines[0]['threads']} threads; medians of alternating repeats"
    table = Table(title=title, box=box.SIMPLE)
    for column in ("", "ours s", "baseline s", "ratio", "met", "ours MiB", "baseline MiB"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    table.add_column("target")
    for line in lines:
        table.add_row(
            line["name"],
            f"{line['ours']:.3f}",
            f"{line['baseline']:.3f}",
            f"{line['ratio']:.2f} × {'the time' if line['ratio_is'] == 'ours / baseline' else 'as fast'}",
            {True: "yes", False: "NO", None: ""}[line["target_met"]],
            f"{line['peak_ours_mib']:.0f}",
            f"{line['peak_baseline_mib']:.0f}",
            (line["target"] or "").replace(" and ", "\n"),
        )
    return table


def make_parts_tables(lines: list[dict[str, Any]]) -> list[Table]:
    """Where the time of whole steps goes, if any was taken."""
    sides = [(line["name"], side, line["details"][side].get("seconds_by_part")) for line in lines for side in SIDES]
    timed = {json.dumps(parts): (f"{name}, {side}", parts) for name, side, parts in reversed(sides) if parts}
    if not timed:
        return []
    table = Table(title="seconds of a step by part", box=box.SIMPLE)
    table.add_column("")
    columns = list(reversed(timed.values()))  # a side that stands in two lines once
    for name, _ in columns:
        table.add_column(name, justify="right")
    for part in dict.fromkeys(part for _, parts in columns for part in parts):
        table.add_row(part, *(f"{parts[part]:.3f}" if part in parts else "" for _, parts in columns))
    return [table]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Benchmarks of the training engine.")
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes; says nothing about speed")
    parser.add_argument("--output", type=Path, default=Path("bench.jsonl"), help="JSON lines")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
