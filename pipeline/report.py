"""One HTML file that shows a run: scores, curves, layers, stages. Needs no network and no other file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from pipeline import figures
from pipeline.experiment import MAIN, Experiment
from pipeline.graph import Graph, Node
from pipeline.identity import flatten, spell
from pipeline.results import Scores, collect_scores, tasks_of
from stages.contract import Artifact, read_journal
from stages.contract.quarantine import read_quarantine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.planner.comparison import Pair

SHOWN_QUARANTINED = 100
"""Rows of each stage's table."""
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --soft: #5b6675; --line: #d8dde4; --page: #fff; --card: #f6f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ec; --soft: #98a3b3; --line: #39424f; --page: #14181d; --card: #1c2229 }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  max-width: 56rem; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
p { margin: .4rem 0 } .soft, figcaption { color: var(--soft); font-size: .9rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .7rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--soft); font-weight: 500; vertical-align: bottom } .scores thead th { white-space: normal }
th:first-child, td:first-child, .text td { text-align: left } tr.main td { font-weight: 650 }
figure { margin: 1rem 0; padding: .8rem; background: var(--card); border-radius: .5rem; overflow-x: auto }
svg { width: 100%; min-width: 32rem; height: auto }
code { font-size: .85em } details { margin: .4rem 0 } summary { cursor: pointer }
"""


def render(experiment: Experiment, graph: Graph, artifacts: Mapping[str, Artifact]) -> str:
    """The report on everything that exists of an experiment, by node key."""
    title = escape(experiment.name)
    present = [(node, artifacts[node.key]) for node in graph.nodes if node.key in artifacts]
    body = "\n".join(
        part
        for section in (
            _introduction(experiment),
            _scores(collect_scores(graph, artifacts)),
            _layers(present),
            _losses(present),
            _stages(present),
            _plan(experiment, present),
            _quarantine(present),
            _settings(present),
        )
        for part in section
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _introduction(experiment: Experiment) -> Iterator[str]:
    yield f"<h1>{escape(experiment.name)}</h1>"
    teacher, backbone = escape(experiment.teacher.place), escape(experiment.student.place)
    yield (
        '<p class="soft">A small model taught by a large one, layer by layer. '
        f"Teacher <code>{teacher}</code>, small backbone <code>{backbone}</code>.</p>"
    )


def _scores(scores: Sequence[Scores]) -> Iterator[str]:
    """Table and bars of held-out accuracy."""
    if not scores:
        return
    tasks = tasks_of(scores)
    yield f"<h2>Held-out questions answered exactly right, % of {max(row.samples for row in scores):,}</h2>"
    heads = "".join(f"<th>{_words(name)}</th>" for name in ["", *tasks, "overall"])
    rows = []
    for row in scores:
        values = [*(row.by_task.get(task) for task in tasks), row.overall]
        cells = "".join(f"<td>{'–' if value is None else f'{100 * value:.1f}'}</td>" for value in values)
        kind = ' class="main"' if row.name == MAIN else ""
        rows.append(f"<tr{kind}><td>{escape(row.label)}</td>{cells}</tr>")
    yield f'<div class="wide"><table class="scores"><thead><tr>{heads}</tr></thead>{"".join(rows)}</table></div>'
    yield _figure(figures.accuracy_by_task(scores), "By kind of question.")


def _layers(present: Sequence[tuple[Node, Artifact]]) -> Iterator[str]:
    """What the layers say, and which of them learned from which."""
    drawn = []
    for node, artifact in present:
        summary, name = artifact.manifest.summary, escape(node.key)
        if "ce_student" in summary:
            caption = f"{name}: how well each block, verbalized, predicts the response. It should fall with depth."
            drawn.append(_figure(figures.ce_by_depth(summary), caption))
        if "matching_end" in summary:
            caption = f"{name}: which teacher block each student block learned from, in the first and the last steps."
            drawn.append(_figure(figures.matching(summary), caption))
            drawn += _matches_over_time(artifact, name)
    if drawn:
        yield "<h2>Layers</h2>"
        yield from drawn


def _matches_over_time(artifact: Artifact, name: str) -> Iterator[str]:
    journal = read_journal(artifact.path)
    if any("match_expected" in line for line in journal):
        caption = (
            f"{name}: the mean teacher block each student block learned from, by step. Expected is the exact mean "
            "over all paths where whole paths are drawn (`joint`), else the mean of the draws."
        )
        yield _figure(figures.matches_over_time(artifact.manifest.summary, journal), caption)


def _losses(present: Sequence[tuple[Node, Artifact]]) -> Iterator[str]:
    """Loss curves, one figure for each stage with a line for each variant."""
    journals: dict[str, dict[str, list[dict[str, object]]]] = {}
    for node, artifact in present:
        journal = [line for line in read_journal(artifact.path) if "loss" in line]
        if journal:
            journals.setdefault(node.stage, {})[node.key] = journal
    if journals:
        yield "<h2>Training</h2>"
    for stage, by_key in journals.items():
        variants_first = dict(sorted(by_key.items(), key=lambda item: "@" not in item[0]))
        yield _figure(figures.loss_curves(variants_first), f"{escape(stage)}: loss by step, with its running mean.")


def _stages(present: Sequence[tuple[Node, Artifact]]) -> Iterator[str]:
    """Every artifact with its time, the share of it that training waited for data, its size and fingerprint."""
    yield "<h2>Stages</h2>"
    rows = "".join(
        f"<tr><td>{escape(node.key)}</td><td>{artifact.manifest.duration_seconds:.1f}</td>"
        f"<td>{_waiting(artifact)}</td>"
        f"<td>{sum(file.bytes for file in artifact.manifest.files) / 1e6:,.1f}</td>"
        f"<td><code>{escape(node.fingerprint)}</code></td></tr>"
        for node, artifact in present
    )
    heads = "<tr><th>stage</th><th>seconds</th><th>waiting for data, %</th><th>MB</th><th>fingerprint</th></tr>"
    yield f'<div class="wide"><table><thead>{heads}</thead>{rows}</table></div>'


def _plan(experiment: Experiment, present: Sequence[tuple[Node, Artifact]]) -> Iterator[str]:
    """What `vlsi plan` says of each stage beside what was measured of it."""
    from pipeline.planner.comparison import compare

    basis, comparisons = compare(experiment, present)
    if not comparisons:
        return
    yield "<h2>Planned and measured</h2>"
    rows = "".join(
        f"<tr><td>{escape(one.key)}</td>{_pair(one.disk_bytes, 1e6, 2)}{_pair(one.files)}{_pair(one.response_tokens)}"
        f"{_pair(one.peak_bytes, 1e9, 2)}{_pair(one.seconds, digits=1)}</tr>"
        for one in comparisons
    )
    heads = ("stage", "cache, MB", "files", "response tokens", "memory of a worker, GB", "seconds")
    heading = "".join(f"<th>{head}</th>" for head in heads)
    yield f'<div class="wide"><table><thead><tr>{heading}</tr></thead>{rows}</table></div>'
    yield f'<p class="soft">Planned / measured. Samples {escape(basis)}.</p>'


def _pair(pair: Pair, unit: float = 1, digits: int = 0) -> str:
    known = ["–" if value is None else f"{value / unit:,.{digits}f}" for value in pair]
    return f"<td>{'' if known == ['–', '–'] else ' / '.join(known)}</td>"


def _waiting(artifact: Artifact) -> str:
    share = artifact.manifest.summary.get("waiting_share")
    return "–" if share is None else f"{100 * share:.1f}"


def _quarantine(present: Sequence[tuple[Node, Artifact]]) -> Iterator[str]:
    """The samples that stages left out: how many, why, and the first of each stage."""
    found = {node.key: bad for node, artifact in present if (bad := read_quarantine(artifact.path))}
    if found:
        yield "<h2>Samples left out</h2>"
    for key, bad in found.items():
        rows = "".join(
            f"<tr><td><code>{escape(line.id)}</code></td><td>{line.line}</td><td>{escape(line.reason)}</td></tr>"
            for line in bad[:SHOWN_QUARANTINED]
        )
        more = f", of which the first {SHOWN_QUARANTINED}" if len(bad) > SHOWN_QUARANTINED else ""
        heads = "<thead><tr><th>id</th><th>line</th><th>reason</th></tr></thead>"
        table = f'<div class="wide"><table class="text">{heads}{rows}</table></div>'
        yield f"<details><summary>{escape(key)}: {len(bad):,}{more}</summary>{table}</details>"


def _settings(present: Sequence[tuple[Node, Artifact]]) -> Iterator[str]:
    """What each fingerprint is made of, folded away."""
    yield "<h2>Settings</h2>"
    for node, artifact in present:
        rows = "".join(
            f"<tr><td><code>{escape(key)}</code></td><td><code>{escape(spell(value))}</code></td></tr>"
            for key, value in flatten(artifact.manifest.identity).items()
        )
        table = f'<div class="wide"><table class="text">{rows}</table></div>'
        yield f"<details><summary>{escape(node.key)}</summary>{table}</details>"


def _figure(figure: Figure, caption: str) -> str:
    """A figure as inline SVG in the page's own ink; the caption is HTML already."""
    import matplotlib

    buffer = io.StringIO()
    with figures.DRAWING, matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(figures.INK, "currentColor")
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _words(name: str) -> str:
    return escape(name.replace("_", " ").replace("-", " "))
