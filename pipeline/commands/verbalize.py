"""`vlsi verbalize`: what each layer of a model says about a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.checkpoints import asking, existing_picture, loading
from pipeline.commands import EXIT_CODES, AsJson, err, out, print_json, split
from pipeline.config import ConfigError
from pipeline.experiment import MAIN
from pipeline.screen import show_files
from pipeline.spoken.page import render_page
from pipeline.spoken.saying import Saying
from pipeline.spoken.screen import show_legend, show_saying
from pipeline.voices import LENS, Voice, Voices
from stages.contract.place import local_copy, write_whole

EPILOG = (
    'Try: [bold]vlsi verbalize --image 7.png --question "Which digit?"[/] · '
    "[bold]vlsi verbalize --image 7.png --question Which? --model teacher --model backbone --model vlsi --decode[/]. "
    + EXIT_CODES
)


def verbalize(
    question: Annotated[str, typer.Option(metavar="TEXT", help="What is asked.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [KEY=VALUE]...",
            help="A run by id or experiment, as `vlsi runs` shows them; else what the experiment has up to date.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--image", metavar="FILE", help="A picture; may be given again.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the layers are held to, instead of the model's own answer.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Whose layers speak: teacher, backbone, vlsi, or a checkpoint folder or hub id, which speaks through "
            "the logit lens; may be given again.",
            show_default=MAIN,
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="0,2,5", help="Blocks, counted from 0, instead of all that can speak.")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Let each layer go on with its own words, instead of those of one answer.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The longest text.")] = 64,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of its own, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what each layer says about a picture: word by word, coloured by how sure it is."""
    runs, overrides = split(arguments)
    if len(runs) > 1:
        raise ConfigError(f"name one run, not {len(runs)}; `vlsi runs` lists them")
    if decode and answer is not None:
        raise ConfigError("--decode lets every layer find its own words, --answer gives them; choose one")
    pictures = [existing_picture(image) for image in images or []]
    blocks = _parse_layers(layers)
    voices = Voices(runs[0] if runs else None, overrides)
    found = [voices.find(name) for name in models or [MAIN]]
    sayings = [_hear(voice, question, pictures, answer, blocks, max_new_tokens, decode=decode) for voice in found]
    if html is not None:
        write_whole(html.absolute(), render_page(sayings, _thumbnails(pictures)))
    if as_json:
        print_json([saying.to_json() for saying in sayings])
        return
    for saying in sayings:
        show_saying(out, saying)
    show_legend(out, forced=not decode)
    if html is not None:
        show_files(out, {"page": html.absolute()})


def _hear(
    voice: Voice,
    question: str,
    pictures: list[Path],
    answer: str | None,
    layers: list[int] | None,
    max_new_tokens: int,
    *,
    decode: bool,
) -> Saying:
    """Load one model, let it speak, let it go."""
    from stages.models.answering import ask, reply
    from stages.models.speaking import Speaking

    checkpoint = voice.checkpoint
    if voice.through == LENS:
        err.print(f"{voice.name} has no verbalizers: its layers speak through the {LENS}", markup=False, soft_wrap=True)
    with loading(checkpoint.place):
        file = local_copy(voice.verbalizers) if voice.verbalizers else None
        speaking = Speaking(checkpoint.place, checkpoint.loading, checkpoint.preprocessing, file, layers)
    asked = ask(question, pictures)
    with asking():
        if decode:
            spoken = speaking.decode(asked, max_new_tokens)
            answer = "".join(spoken.output.words).strip()
        else:
            answer = speaking.answer(asked, max_new_tokens) if answer is None else answer.strip()
            if not answer:
                raise ConfigError(f"the answer of {voice.name} is empty; give one with --answer")
            spoken = speaking.say(reply(answer, asked))
    return Saying(voice.name, voice.through, question, answer, spoken.tokens, spoken.layers, spoken.output)


def _parse_layers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--layers: {text!r} is no list of blocks; for example 0,2,5")
    return [int(part) for part in parts]


def _thumbnails(pictures: list[Path]) -> list[str]:
    from PIL import Image

    from stages.sayings import thumbnail

    return [thumbnail(Image.open(picture).convert("RGB")) for picture in pictures]
