"""The commands of `vlsi`, one to a file, and what all of them share."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

EXIT_CODES = "Exit codes: 0 done · 1 a stage failed · 2 the configuration is not valid."

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
