"""What layers say, as one small page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipeline.spoken.saying import Saying, level, visible
from stages.contract.sayings import Said

_STYLE = """
:root { color-scheme: light dark; --sure: #b7e4c7; --likely: #ffe8a3; --unsure: transparent; --quiet: #555 }
@media (prefers-color-scheme: dark) { :root { --sure: #1b5e38; --likely: #6b5200; --quiet: #aaa } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
img { max-height: 256px; max-width: 100%; margin-right: 1rem; image-rendering: pixelated }
.wide { overflow-x: auto }
table { border-collapse: collapse }
th, td { padding: .15rem .5rem; text-align: left; white-space: pre }
th[scope=row], .quiet { color: var(--quiet); font-weight: normal }
.sure { background: var(--sure) } .likely { background: var(--likely) } .unsure { color: var(--quiet) }
.right { font-weight: bold }
td.text { white-space: pre-wrap }
""".strip()


def render_page(sayings: Sequence[Saying], pictures: Sequence[str]) -> str:
    """The page.

    Args:
        sayings: of one question, a model each.
        pictures: data URIs.
    """
    question = escape(sayings[0].question)
    images = "".join(f'<img src="{escape(picture)}" alt="picture {n}">' for n, picture in enumerate(pictures, start=1))
    legend = (
        '<p class="quiet"><span class="sure">from 75 % sure</span> · <span class="likely">from 40 %</span> · '
        '<span class="unsure">less</span> · <span class="right">bold: as the answer has it</span></p>'
    )
    body = "\n".join(map(_section, sayings))
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{question}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{_STYLE}\n</style></head>\n<body>\n<h1>{question}</h1>\n{images}\n{legend}\n{body}\n</body>\n</html>\n"
    )


def _section(saying: Saying) -> str:
    head, rows = _forced(saying) if saying.tokens else _decoded(saying)
    title = f'{escape(saying.model)} <span class="quiet">through {escape(saying.through)}</span>'
    table = f'<div class="wide" tabindex="0"><table>\n{head}\n{rows}\n</table></div>'
    return f"<h2>{title}</h2>\n<p>{escape(saying.answer)}</p>\n{table}"


def _forced(saying: Saying) -> tuple[str, str]:
    """A column for each token of the answer."""
    tokens = "".join(f'<th scope="col">{escape(visible(token))}</th>' for token in saying.tokens)
    rows = [f'<tr><th scope="row">{name}</th>{_cells(said, saying.tokens)}</tr>' for name, said in saying.rows]
    return f"<tr><td></td>{tokens}</tr>", "\n".join(rows)


def _cells(said: Said, tokens: Sequence[str]) -> str:
    cells = zip(said.words, said.confidence, tokens, strict=True)
    return "".join(
        f'<td class="{level(sure)}{" right" * (word == token)}" title="{100 * sure:.0f} %">{escape(visible(word))}</td>'
        for word, sure, token in cells
    )


def _decoded(saying: Saying) -> tuple[str, str]:
    """A text for each layer."""
    rows = []
    for name, said in saying.rows:
        words = zip(said.words, said.confidence, strict=True)
        text = "".join(f'<span class="{level(p)}" title="{100 * p:.0f} %">{escape(word)}</span>' for word, p in words)
        rows.append(f'<tr><th scope="row">{name}</th><td class="text">{text}</td></tr>')
    return '<tr><td></td><th scope="col">decoded from it</th></tr>', "\n".join(rows)
