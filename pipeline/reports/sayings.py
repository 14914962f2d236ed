"""What the layers say: samples to choose from, each with the words of every target layer (paper Fig. 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import starmap

from pipeline.experiment import MAIN
from pipeline.reports.page import choice
from pipeline.reports.style import confidence_class
from pipeline.reports.subject import Subject
from pipeline.results import LABELS
from pipeline.spoken.saying import visible
from stages.contract.sayings import Said, Shown, Speaker, read_sayings

SHOWN_TOKENS = 48
"""Of a long response."""
SHOWN_LABEL = 40
"""Characters of a question that a sample is chosen by."""


def sayings(subject: Subject) -> Iterator[str]:
    """Teacher, small backbone (before) and student (after) side by side."""
    samples = _merged(subject)
    if not samples:
        return
    yield "<h2>What the layers say</h2>"
    yield (
        '<p class="soft">The word that each target layer, verbalized, finds most probable in the place of each token '
        "of the answer, after the true tokens before it. Blue: it is the answer’s token; orange and in italics: it "
        "is not. The stronger the shade, the higher the probability, which stands below the word in %.</p>"
    )
    options = [(_label(shown), _sample(shown, speakers)) for shown, speakers in samples]
    yield choice(f"sayings-{subject.identifier}", options)


def _merged(subject: Subject) -> list[tuple[Shown, list[tuple[str, Speaker]]]]:
    """Every sample with all models that speak of it, by their names for people."""
    found: dict[str, tuple[Shown, list[tuple[str, Speaker]]]] = {}
    for part, artifact in subject.present:
        for shown in read_sayings(artifact.path):
            _, speakers = found.setdefault(shown.id, (shown, []))
            speakers += [(_name(model, part.model), model) for model in shown.models]
    return list(found.values())


def _name(speaker: Speaker, model: str) -> str:
    label = LABELS.get(model, model)
    if speaker.name == "student":
        return f"{label}, after"
    of_variant = "" if model == MAIN else f" of {label}"
    before = ", before" if speaker.name == "backbone" else ""
    return f"{LABELS.get(speaker.name, speaker.name)}{of_variant}{before}"


def _label(shown: Shown) -> str:
    question = shown.question if len(shown.question) <= SHOWN_LABEL else f"{shown.question[: SHOWN_LABEL - 1]}…"
    return f"<bdi>{escape(question) or escape(shown.id)}</bdi>"


def _sample(shown: Shown, speakers: Sequence[tuple[str, Speaker]]) -> str:
    pictures = "".join(f'<img src="{escape(uri)}" alt="picture {n}">' for n, uri in enumerate(shown.pictures, 1))
    text = (
        f"<p><strong><bdi>{escape(shown.question)}</bdi></strong></p><p>Answer: <bdi>{escape(shown.answer)}</bdi></p>"
        f'<p class="soft">Sample <code>{escape(shown.id)}</code>{_cut(shown)}</p>'
    )
    models = "".join(f"<div><h3>{escape(name)}</h3>{_table(shown, model)}</div>" for name, model in speakers)
    return f'<div class="sample">{pictures}<div>{text}</div></div><div class="beside">{models}</div>'


def _cut(shown: Shown) -> str:
    count = len(shown.tokens)
    return f", the first {SHOWN_TOKENS} of {count:,} tokens" if count > SHOWN_TOKENS else ""


def _table(shown: Shown, model: Speaker) -> str:
    tokens = shown.tokens[:SHOWN_TOKENS]
    heads = "".join(f"<th>{_word(token)}</th>" for token in tokens)
    rows = "".join(_layer(layer, tokens) for layer in model.layers)
    return (
        f'<div class="wide" tabindex="0"><table class="said"><thead><tr class="answer"><th>block</th>{heads}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _layer(layer: Said, tokens: Sequence[str]) -> str:
    cells = starmap(_cell, zip(layer.words, layer.confidence, tokens, strict=False))
    return f"<tr><td>{layer.block}</td>{''.join(cells)}</tr>"


def _cell(word: str, confidence: float, token: str) -> str:
    verdict = "right" if word == token else "wrong"
    css = f"{verdict} {confidence_class(confidence)}"
    return f'<td class="{css}"><b>{_word(word)}</b><small>{100 * confidence:.0f}</small></td>'


def _word(token: str) -> str:
    """In whatever direction it reads."""
    return f"<bdi>{escape(visible(token))}</bdi>"
