"""The commands of `vlsi`, one to a file, and what all of them share."""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from pipeline.exits import EXIT_CODES, Exit

__all__ = ["EXIT_CODES", "AsJson", "Exit", "Overrides", "StageName", "end_stopped", "err", "out", "print_json", "split"]

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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def print_json(document: Any) -> None:
    """A document on stdout; progress and warnings go to stderr."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def split(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """What a command is about, and the changes to the configuration among its arguments."""
    names = [argument for argument in arguments or [] if "=" not in argument and not argument.startswith("~")]
    return names, [argument for argument in arguments or [] if argument not in names]


def end_stopped(go_on: str) -> NoReturn:
    """What Ctrl-C and SIGTERM lead to: one sentence, and an exit code of their own."""
    err.print(f"Stopped; go on with: {go_on}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(Exit.STOPPED) from None
