"""The look of a report: light and dark, narrow and wide, on paper; every text has a contrast of 4.5 or more (AA)."""

from __future__ import annotations

CONFIDENCE_STEPS = 8
"""Shades that a confidence is told in."""
_BASE = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #5b6675; --line: #d8dde4; --page: #fff; --card: #f6f7f9;
  --bad: #a3261b; --focus: #1d5fa8; --right: 59 130 196; --wrong: 217 130 43 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ec; --soft: #a3adbb; --line: #39424f; --page: #14181d; --card: #1c2229; --bad: #ff9b8f;
    --focus: #7fb8f0 }
}
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  max-width: 64rem; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
p { margin: .4rem 0 } .soft, figcaption { color: var(--soft); font-size: .9rem }
.lead { font-size: 1.15rem; margin: 1rem 0 } .lead strong { white-space: nowrap }
.missing { border-left: .25rem solid var(--bad); padding: .1rem 0 .1rem .8rem; margin: 1rem 0 }
.missing strong { color: var(--bad) } .missing ul { margin: .3rem 0; padding-left: 1.2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--soft); font-weight: 500; vertical-align: bottom; overflow-wrap: normal }
thead th { white-space: normal }
th:first-child, td:first-child, .text td, .text th { text-align: left } tr.main td { font-weight: 650 }
.text td { vertical-align: top } .text td:last-child { white-space: normal; min-width: 12rem }
.interval { color: var(--soft); font-size: .8rem; font-weight: 400 }
figure { margin: 1rem 0; padding: .8rem; background: var(--card); border-radius: .5rem; overflow-x: auto }
svg { display: block; width: 100%; min-width: 30rem; height: auto } .small svg { max-width: 26rem; min-width: 0 }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 0 1rem }
.beside > * { min-width: 0 } .beside svg { min-width: 0; max-width: 26rem }
code { font-size: .85em } details { margin: .4rem 0 } summary { cursor: pointer }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px }
"""
_TABS = """
.tabs { display: flex; flex-wrap: wrap; gap: .35rem; position: relative; margin: .8rem 0 }
.tabs > input { position: absolute; opacity: 0; width: 1px; height: 1px }
.tabs > label { order: 1; padding: .25rem .6rem; border: 1px solid var(--line); border-radius: .4rem; cursor: pointer;
  font-size: .9rem; max-width: 100% }
.tabs > input:checked + label { background: var(--ink); color: var(--page); border-color: var(--ink) }
.tabs > input:focus-visible + label { outline: 3px solid var(--focus); outline-offset: 2px }
.tabs > section { order: 2; display: none; width: 100%; min-width: 0 }
.tabs > input:checked + label + section { display: block }
.slider { gap: 0 } .slider > label { flex: 1 1 0; min-width: 0; height: 1.6rem; padding: 0; font-size: 0;
  border: 0; border-radius: 0; background: linear-gradient(var(--line), var(--line)) center / 100% .3rem no-repeat }
.slider > input:checked + label { background: radial-gradient(circle, var(--focus) .65rem, transparent .7rem) center
  no-repeat, linear-gradient(var(--line), var(--line)) center / 100% .3rem no-repeat }
"""
_SAYINGS = """
.sample { display: flex; flex-wrap: wrap; gap: 1rem; margin: .6rem 0 }
.sample img { max-width: 100%; height: auto; min-width: 8rem; image-rendering: auto; border-radius: .3rem }
.sample div { flex: 1 1 16rem; min-width: 0 }
.said td, .said th { padding: .2rem .45rem; text-align: center; border: 1px solid var(--card); min-width: 2.6rem }
.said td:first-child, .said th:first-child { padding-left: 0; color: var(--soft); text-align: left }
.said td small { display: block; font-size: .75rem } .said td.wrong b { font-weight: 400; font-style: italic }
.said tr.answer th { color: var(--ink); font-weight: 650; white-space: nowrap }
"""
_PRINT = """
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --card: #fff; --bad: #8a1a10 }
  body { max-width: none; font-size: 10pt; padding: 0 } h2, h3, summary { break-after: avoid }
  figure, tr, .sample { break-inside: avoid } .wide, figure { overflow: visible } svg { min-width: 0 }
  .tabs > label { display: none } .tabs:not(.slider) > section { display: block }
}
"""


def style_sheet() -> str:
    """CSS."""
    return _BASE + _TABS + _SAYINGS + "\n".join(_shades()) + _PRINT


def confidence_class(confidence: float) -> str:
    """The class of a cell whose shade tells a probability."""
    return f"c{min(CONFIDENCE_STEPS - 1, max(0, int(confidence * CONFIDENCE_STEPS)))}"


def _shades() -> list[str]:
    """Even the strongest is faint enough for the ink on it."""
    return [
        f".{verdict}.c{step} {{ background: rgb(var(--{verdict}) / {0.04 + 0.3 * step / (CONFIDENCE_STEPS - 1):.2f}) }}"
        for verdict in ("right", "wrong")
        for step in range(CONFIDENCE_STEPS)
    ]
