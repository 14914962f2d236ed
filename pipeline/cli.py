"""The command `vlsi`: its commands put together, and how mistakes end."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import typer
from rich.markup import escape

from pipeline.commands import (
    EXIT_CODES,
    Exit,
    chat,
    data,
    diff,
    err,
    evaluate,
    explain,
    gc,
    job,
    manifests,
    plan,
    prepare,
    push_to_hub,
    report,
    run,
    runs,
    status,
    sweep,
    sync_tracking,
    transfer,
    verbalize,
)
from pipeline.config import ConfigError
from pipeline.decisions import FORCE_ALL
from stages.contract import ArtifactError, failures

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
app.command(epilog=run.EPILOG)(run.run)
app.command(epilog=plan.EPILOG)(plan.plan)
app.command(epilog=status.EPILOG)(status.status)
app.command(epilog=explain.EPILOG)(explain.explain)
app.command(epilog=runs.EPILOG)(runs.runs)
app.command(epilog=diff.EPILOG)(diff.diff)
app.command(epilog=prepare.EPILOG)(prepare.prepare)
app.command(epilog=sweep.EPILOG)(sweep.sweep)
app.command(epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=report.EPILOG)(report.report)
app.command(epilog=chat.EPILOG)(chat.chat)
app.command(epilog=verbalize.EPILOG)(verbalize.verbalize)
app.command(epilog=job.EPILOG)(job.job)
app.command(epilog=gc.EPILOG)(gc.gc)
app.command(epilog=transfer.PUSH_EPILOG)(transfer.push)
app.command(epilog=transfer.PULL_EPILOG)(transfer.pull)
app.command(name="push-to-hub", epilog=push_to_hub.EPILOG)(push_to_hub.push_to_hub)
app.command(epilog=manifests.EPILOG)(manifests.manifests)
app.command(epilog=sync_tracking.EPILOG)(sync_tracking.sync_tracking)
app.add_typer(data.app, name="data")


def main() -> None:
    """Entry point: one sentence for a mistake, no traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(_complete_force(sys.argv[1:]), prog_name="vlsi")
    except ConfigError as error:
        err.print(f"[red]not valid[/]  {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(Exit.INVALID)
    except ArtifactError as error:
        err.print(f"[red]damaged[/]  {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(Exit.FAILED)
    except OSError as error:
        sentence = failures.explain(error, "the store")
        if sentence is None:
            raise
        err.print(f"[red]failed[/]  {escape(sentence)}", soft_wrap=True, highlight=False)
        sys.exit(Exit.FAILED)


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


if __name__ == "__main__":
    main()
