"""`vlsi chat`: ask the exported student about a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.checkpoints import Checkpoint, asking, checkpoint_named, checkpoint_of, existing_picture, loading
from pipeline.commands import EXIT_CODES, Exit, err, out, split
from pipeline.config import ConfigError, load
from pipeline.made import Made
from pipeline.screen import printable

if TYPE_CHECKING:
    from stages.data.sample import Sample
    from stages.models.answering import Answerer

EPILOG = (
    'Try: [bold]vlsi chat --image cat.png[/] · [bold]vlsi chat digits~1 --image 7.png --question "Which digit?"[/] · '
    "[bold]vlsi chat --model Qwen/Qwen2-VL-2B-Instruct --image cat.png[/]. " + EXIT_CODES
)
COMMANDS = "/image FILE shows another picture with the next question, /new begins anew, /quit ends"
PROMPT = "? "

Images = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="A picture; may be given again.", show_default=False),
]


def chat(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [KEY=VALUE]...",
            help="A run by id or experiment, as `vlsi runs` shows them; else the student of the experiment.",
            show_default=False,
        ),
    ] = None,
    images: Images = None,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Ask this and end; without it questions are read one by one.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="A checkpoint folder or hub id instead of a student.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The longest answer.")] = 256,
) -> None:
    """Ask the exported student, or any checkpoint, about a picture; it answers greedily, word by word."""
    from stages.models.answering import Answerer

    runs, overrides = split(arguments)
    if len(runs) > 1 or (runs and model):
        raise ConfigError("name one run, or one --model; each answers on its own")
    shown = [existing_picture(image) for image in images or []]
    checkpoint = _checkpoint(runs, overrides, model)
    with loading(checkpoint.place):
        answerer = Answerer(checkpoint.place, checkpoint.loading, checkpoint.preprocessing)
    Conversation(answerer, shown, max_new_tokens).hold(question)


class Conversation:
    """Questions and answers about pictures."""

    def __init__(self, answerer: Answerer, pictures: list[Path], max_new_tokens: int) -> None:
        """`pictures` are shown with the first question."""
        self._answerer = answerer
        self._waiting = pictures
        self._max_new_tokens = max_new_tokens
        self._said: Sample | None = None

    def hold(self, question: str | None) -> None:
        """One question, or all that a person types until the end of input.

        Raises:
            ConfigError: the one question cannot be answered; of many, it is said and the next one is read.
        """
        if question is not None:
            with asking():
                self._answer(question)
            return
        err.print(f"[dim]{COMMANDS}", highlight=False)
        for line in _typed():
            try:
                with asking():
                    self._take(line)
            except ConfigError as error:
                err.print(f"[red]not valid[/]  {printable(str(error))}", soft_wrap=True, highlight=False)

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image":
            self._waiting.append(existing_picture(Path(rest.strip())))
        elif command == "/new":
            self._said, self._waiting = None, []
        elif command.startswith("/"):
            raise ConfigError(f"{command} is unknown; {COMMANDS}")
        else:
            self._answer(line)

    def _answer(self, question: str) -> None:
        from stages.models.answering import BEGINNING, ask, reply

        asked = ask(question, self._waiting, self._said or BEGINNING)
        answer = self._answerer.answer(asked, self._max_new_tokens, _print_piece)
        out.print()
        self._said, self._waiting = reply(answer, asked), []


def _checkpoint(runs: list[str], overrides: list[str], model: str | None) -> Checkpoint:
    if model is not None:
        return checkpoint_named(model, load(overrides).main)
    student = Made.find(runs[0] if runs else None, overrides).need("reinforcement")
    return checkpoint_of(student, str(student.place))


def _typed() -> Iterator[str]:
    """Lines that say something, until `/quit`, the end of input or Ctrl-C."""
    while True:
        try:
            line = input(PROMPT if err.is_terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            raise typer.Exit(Exit.DONE) from None
        if line == "/quit":
            return
        if line:
            yield line


def _print_piece(text: str) -> None:
    out.print(printable(text), end="", markup=False, highlight=False, soft_wrap=True)
