"""The parts every section of a report is made of; whatever comes from outside is escaped here or by its section."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from pipeline import figures
from pipeline.reports.style import style_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = re.compile(r'(\bid="|\burl\(#|href="#)')
"""What an SVG calls its own parts by; a page of several has to keep them apart."""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style_sheet()}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    """Rows under heads, both HTML already; it scrolls by itself where it is too wide, also by keyboard."""
    heading = f"<thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>" if any(heads) else ""
    css = f' class="{kind}"' if kind else ""
    return f'<div class="wide" tabindex="0"><table{css}>{heading}<tbody>{"".join(rows)}</tbody></table></div>'


def row(*cells: str, kind: str = "") -> str:
    """Cells of HTML."""
    css = f' class="{kind}"' if kind else ""
    return f"<tr{css}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def figure(drawn: Figure, caption: str, kind: str = "") -> str:
    """A figure as inline SVG in the page's own ink; the caption is text."""
    css = f' class="{kind}"' if kind else ""
    text = escape(caption)
    svg = _svg(drawn).replace("<svg ", f'<svg role="img" aria-label="{text}" ', 1)
    return f'<figure{css} tabindex="0">{svg}<figcaption>{text}</figcaption></figure>'


def choice(name: str, options: Sequence[tuple[str, str]], kind: str = "", chosen: int = 0) -> str:
    """One of several sections at a time, chosen by mouse or arrow keys; it needs no script.

    Args:
        name: unique on the page.
        options: label and section of each, HTML already.
        kind: `slider` draws one track in place of tabs.
        chosen: that is shown at first.
    """
    parts = []
    for place, (label, section) in enumerate(options):
        identifier, checked = f"{escape(name)}-{place}", " checked" if place == chosen else ""
        parts.append(
            f'<input type="radio" name="{escape(name)}" id="{identifier}"{checked}>'
            f'<label for="{identifier}">{label}</label><section>{section}</section>'
        )
    return f'<div class="tabs {kind}" role="group">{"".join(parts)}</div>'


def words(name: str) -> str:
    """A kind of question as people would say it."""
    return escape(name.replace("_", " ").replace("-", " "))


def _svg(drawn: Figure) -> str:
    """The same figure gives the same text."""
    import matplotlib

    buffer = io.StringIO()
    with figures.DRAWING, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vlsi"}):
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(figures.INK, "currentColor")
    return _NAMES.sub(rf"\g<1>f{hashlib.sha256(svg.encode()).hexdigest()[:8]}-", svg)
