"""`vlsi push-to-hub`: show what would be published of a student, or publish it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.filesize import decimal
from rich.markup import escape

from pipeline.commands import EXIT_CODES, AsJson, Exit, Overrides, err, out, print_json
from pipeline.config import ConfigError
from pipeline.experiment import is_hub_id
from pipeline.made import Made
from pipeline.publishing import TOKEN_VARIABLE, NotPublished, Publishing, prepare_publishing
from pipeline.screen import make_table, printable

EPILOG = (
    "Try: [bold]vlsi push-to-hub me/my-student[/] (shows, uploads nothing) · "
    "[bold]vlsi push-to-hub me/my-student --run digits~1 --license apache-2.0 --yes[/]. " + EXIT_CODES
)


def push_to_hub(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face hub.")],
    overrides: Overrides = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="The student of this run, instead of what is up to date.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Instead of the one that the small backbone states.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that is made now.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help=f"Upload; the token is read from {TOKEN_VARIABLE} in the environment.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the files and the model card that would be published of a student; with --yes publish them."""
    if not is_hub_id(repo):
        raise ConfigError(f"{repo!r} is no repository; write owner/name")
    publishing = prepare_publishing(repo, Made.find(run, overrides or []), licence)
    if not as_json:
        _show(publishing)
    url = _upload(publishing, private=not public) if yes else None
    if as_json:
        files = [{"path": path, "bytes": size} for path, size in publishing.files.items()]
        print_json({"repo": repo, "private": not public, "url": url, "files": files, "card": publishing.card})
    elif url:
        out.print(f"published: {escape(url)}", soft_wrap=True, highlight=False)
    else:
        sees = "everybody sees" if public else "only its owner sees"
        out.print(f"Nothing was uploaded. --yes uploads this to {repo}, which {sees} if it is new.", soft_wrap=True)


def _upload(publishing: Publishing, *, private: bool) -> str:
    try:
        return publishing.upload(private=private)
    except NotPublished as error:
        err.print(f"[red]failed[/]  {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(Exit.FAILED) from error


def _show(publishing: Publishing) -> None:
    table = make_table("file", "size")
    table.columns[1].justify = "right"
    for path, size in publishing.files.items():
        table.add_row(escape(path), decimal(size))
    table.add_row("[bold]together", decimal(sum(publishing.files.values())))
    out.print(table)
    out.print(printable(publishing.card), markup=False, highlight=False, soft_wrap=True)
