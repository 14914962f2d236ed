"""The command `vlsi data`: look at data before anything is trained on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text

from pipeline.commands import EXIT_CODES, Exit, err, out
from pipeline.config import ConfigError, load
from pipeline.experiment import Experiment
from pipeline.screen import make_table
from stages.contract import StageError

if TYPE_CHECKING:
    from stages.contract.quarantine import BadLine
    from stages.data.check import Findings, Spread
    from stages.data.encoding import Encoder
    from stages.data.sample import Sample

app = typer.Typer(help="Look at data before anything is trained on it.", no_args_is_help=True, rich_markup_mode="rich")
SHOWN_TASKS = 12


@app.command(
    name="check",
    epilog="Try: [bold]vlsi data check data.train=train.json experiment=qwen2vl-2b-from-7b[/] · "
    "[bold]vlsi data check train.json[/]. More bad samples than data.preprocessing.max_bad_fraction allows "
    "are a failure. " + EXIT_CODES,
)
def check_data(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH] [KEY=VALUE]",
            help="A file, folder or mixture, else the data of the experiment; with changes to the configuration, "
            "samples are shown as its student will see them.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Look at the pictures and tokens of N samples alone.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Say what is in a data set, what of it cannot be used, and how a model will see it."""
    places = [argument for argument in arguments or [] if "=" not in argument]
    overrides = [argument for argument in arguments or [] if "=" in argument]
    experiment = load(overrides).main
    encoder = _encoder(experiment) if overrides or not places else None
    found = [_check(place, experiment, encoder, limit) for place in places or _places_of(experiment)]
    if as_json:
        out.print_json(json.dumps([asdict(findings) for findings in found]))
    else:
        for findings in found:
            show_findings(out, findings)
    allowed = experiment.data.preprocessing.max_bad_fraction
    if any(findings.bad_fraction > allowed for findings in found):
        err.print(f"[red]too much is bad[/]: data.preprocessing.max_bad_fraction allows {allowed:.1%}")
        raise typer.Exit(Exit.FAILED)


def show_findings(console: Console, findings: Findings) -> None:
    """Counts, reasons, and some samples."""
    console.print(f"[bold]{escape(findings.place)}[/]", soft_wrap=True, highlight=False)
    console.print(_summary(findings))
    if findings.reasons:
        console.print(_reasons(findings))
    for look in findings.looks:
        console.rule(f"[dim]{escape(look.id)}", align="left", style="dim")
        pieces = [(text, "green" if is_response else "") for text, is_response in look.pieces]
        console.print(Text.assemble(*pieces))
    if findings.looks:
        console.print("[dim]Tokens that carry loss are [/][green]green[/][dim].[/]\n")


def _check(place: str, experiment: Experiment, encoder: Encoder | None, limit: int | None) -> Findings:
    from stages.data.check import check

    def progress(samples: Sequence[Sample]) -> Iterable[Sample]:
        return track(samples, "Looking at samples", console=err, transient=True)

    try:
        where = Path(place).expanduser().absolute()
        return check(where, experiment.data.preprocessing, encoder, limit=limit, progress=progress)
    except StageError as error:
        raise ConfigError(str(error)) from error


def _places_of(experiment: Experiment) -> list[str]:
    return list(dict.fromkeys(experiment.data.place(split) for split in ("train", "test")))


def _encoder(experiment: Experiment) -> Encoder | None:
    """The student's, if its processor is on this machine; nothing is downloaded."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from stages.data.encoding import Encoder
    from stages.models.backbone import load_processor

    student = experiment.student
    try:
        processor = load_processor(student.place, student.loading)
    except (OSError, ValueError):
        err.print(
            f"[yellow]{escape(student.place)} is not on this machine: tokens are not counted, no sample is shown[/]",
            soft_wrap=True,
        )
        return None
    return Encoder(processor, experiment.data.preprocessing, memory_bytes=0)


def _summary(findings: Findings) -> Table:
    table = make_table("", "")
    table.show_header = False
    bad = findings.unreadable + findings.unusable
    table.add_row("samples", f"{findings.samples:,}")
    table.add_row("cannot be used", f"[red]{bad:,}[/] ({findings.bad_fraction:.1%})" if bad else "[green]none")
    if findings.looked_at < findings.samples:
        table.add_row("looked at", f"{findings.looked_at:,}")
    table.add_row("formats", _counts(findings.formats))
    if len(findings.tasks) > 1:
        table.add_row("tasks", _counts(findings.tasks))
    table.add_row("pictures", _counts(findings.pictures, "with "))
    table.add_row("answers", _counts(findings.turns, "with "))
    for name, spread in (("response characters", findings.characters), ("response tokens", findings.tokens)):
        if spread is not None:
            table.add_row(name, _spread(spread))
    return table


def _reasons(findings: Findings) -> Table:
    table = make_table("cannot be used because", "", "for example")
    table.columns[0].no_wrap = False
    table.columns[1].justify = "right"
    for reason in findings.reasons:
        examples = ", ".join(_place(line) for line in reason.first)
        table.add_row(escape(reason.what), f"{reason.count:,}", escape(examples))
    return table


def _place(bad: BadLine) -> str:
    """Samples without an id of their own are called after their line."""
    return bad.id if bad.id.endswith(f" {bad.line}") else f"{bad.id} (line {bad.line})"


def _counts(counts: dict[str, int] | dict[int, int], prefix: str = "") -> str:
    shown = [
        f"{count:,} {prefix}{escape(str(name)) or 'unnamed'}" for name, count in list(counts.items())[:SHOWN_TASKS]
    ]
    return ", ".join(shown) + (", …" if len(counts) > SHOWN_TASKS else "")


def _spread(spread: Spread) -> str:
    return f"{spread.total:,} in all, median {spread.median:,.0f}, longest {spread.longest:,}"
