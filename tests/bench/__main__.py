"""`make bench`: every comparison of the training engine and of the teacher cache, one JSON line each.

    python -m tests.bench                        all, at full size (about 40 minutes on two cores)
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

from tests.bench import cache_codecs, cache_reading, cache_stages, codec_speed, heads, last_layer, steps, verbalization
from tests.bench.measure import write_line

SIDES = ("ours", "baseline")
RATIOS = {("seconds", "ours / baseline"): " the time", ("seconds", "baseline / ours"): " as fast"}
"""What a ratio of times says; others are above 1 where ours is better."""
QUIET = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "TRL_EXPERIMENTAL_SILENCE": "1"}
GROUPS = {
    "floor": heads.compare_with_floor,
    "choice": heads.compare_choice,
    "dense": heads.compare_with_dense,
    "last-layer": last_layer.compare,
    "steps": steps.compare,
    "verbalization": verbalization.compare,
    "cache-stages": cache_stages.compare,
    "cache-codecs": cache_codecs.compare,
    "codec-speed": codec_speed.compare,
    "cache-reading": cache_reading.compare,
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
    table = Table(title=f"{lines[0]['machine']}; times are medians of alternating repeats", box=box.SIMPLE)
    for column in ("", "ours", "baseline", "unit", "ratio", "met", "ours MiB", "baseline MiB"):
        table.add_column(column, justify="left" if column in ("", "unit") else "right", no_wrap=True)
    table.add_column("target")
    for line in lines:
        table.add_row(
            line["name"],
            *(f"{line[side]:#.4g}" for side in SIDES),
            line["unit"],
            f"{line['ratio']:.2f} ×{RATIOS.get((line['unit'], line['ratio_is']), '')}",
            {True: "yes", False: "NO", None: ""}[line["target_met"]],
            *(f"{line[peak]:.0f}" if peak in line else "" for peak in ("peak_ours_mib", "peak_baseline_mib")),
            (line["target"] or "").replace(" and ", "\n"),
        )
    return table


def make_parts_tables(lines: list[dict[str, Any]]) -> list[Table]:
    """Where the time of whole steps goes, if any was taken."""
    sides = [
        (line["name"], side, line["details"].get(side, {}).get("seconds_by_part")) for line in lines for side in SIDES
    ]
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
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Benchmarks of training and caching.")
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes; says nothing about speed")
    parser.add_argument("--output", type=Path, default=Path("bench.jsonl"), help="JSON lines")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
