"""Stages: what is missing, what each one took beside what was planned, loss curves, samples left out."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from pipeline import figures
from pipeline.reports.page import figure, row, table
from pipeline.reports.subject import Part, Subject
from stages.contract import Artifact, read_journal
from stages.contract.quarantine import read_quarantine

if TYPE_CHECKING:
    from pipeline.planner.comparison import Comparison, Pair

SHOWN_QUARANTINED = 100
"""Rows of each stage's table."""


def missing(subject: Subject) -> Iterator[str]:
    """What is not there, or failed when it was last tried."""
    items = [
        f"<li>{escape(part.key)} <bdi>{escape(part.complaint)}</bdi></li>" for part in subject.parts if part.complaint
    ]
    if items:
        yield f'<div class="missing"><strong>Not everything is there</strong><ul>{"".join(items)}</ul></div>'


def losses(subject: Subject) -> Iterator[str]:
    """Loss curves, one figure for each stage with a line for each variant."""
    journals: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for part, artifact in subject.present:
        journal = [line for line in read_journal(artifact.path) if "loss" in line]
        if journal:
            journals.setdefault(part.stage, {})[part.key] = journal
    if journals:
        yield "<h2>Training</h2>"
    for stage, by_key in journals.items():
        variants_first = dict(sorted(by_key.items(), key=lambda item: "@" not in item[0]))
        yield figure(figures.loss_curves(variants_first), f"{stage}: loss by step, with its running mean.")


def stages(subject: Subject) -> Iterator[str]:
    """Time, memory and cost of every artifact, beside the plan where it can be made."""
    basis, plans = _plans(subject)
    rows = [_measured(part, artifact, plans.get(part.key)) for part, artifact in subject.present]
    if not rows:
        return
    yield "<h2>Stages</h2>"
    heads = (
        "stage",
        "seconds",
        "memory of a worker, GB",
        "worker hours",
        "work, TFLOP",
        "waiting for data, %",
        "artifact, MB",
        "fingerprint",
    )
    yield table(heads, rows)
    if not plans:
        return
    shards = [
        row(escape(key), _pair(plan.disk_bytes, 1e6, 2), _pair(plan.files), _pair(plan.response_tokens))
        for key, plan in plans.items()
        if plan.disk_bytes != (None, None)
    ]
    if shards:
        yield table(("stage", "cache, MB", "files", "response tokens"), shards)
    yield f'<p class="soft">Planned / measured; work is planned. Samples {escape(basis)}.</p>'


def quarantine(subject: Subject) -> Iterator[str]:
    """The samples that stages left out: how many, why, and the first of each stage."""
    found = {part.key: bad for part, artifact in subject.present if (bad := read_quarantine(artifact.path))}
    if found:
        yield "<h2>Samples left out</h2>"
    for key, bad in found.items():
        rows = [
            row(f"<code>{escape(line.id)}</code>", str(line.line), f"<bdi>{escape(line.reason)}</bdi>")
            for line in bad[:SHOWN_QUARANTINED]
        ]
        more = f", of which the first {SHOWN_QUARANTINED}" if len(bad) > SHOWN_QUARANTINED else ""
        listed = table(("id", "line", "reason"), rows, "text")
        yield f"<details><summary>{escape(key)}: {len(bad):,}{more}</summary>{listed}</details>"


def _plans(subject: Subject) -> tuple[str, dict[str, Comparison]]:
    from pipeline.planner.comparison import compare

    if subject.experiment is None:
        return "", {}
    made = [(part.key, part.settings, artifact) for part, artifact in subject.present if part.settings]
    basis, comparisons = compare(subject.experiment, made)
    return basis, {one.key: one for one in comparisons}


def _measured(part: Part, artifact: Artifact, plan: Comparison | None) -> str:
    manifest = artifact.manifest
    peak = manifest.summary.get("peak_memory_bytes")
    return row(
        escape(part.key),
        _pair(plan.seconds if plan else (None, manifest.duration_seconds), digits=1),
        _pair(plan.peak_bytes if plan else (None, peak), 1e9, 2),
        f"{plan.workers * manifest.duration_seconds / 3600:,.3g}" if plan else "",
        f"{plan.flops / 1e12:,.3g}" if plan else "",
        _waiting(manifest.summary.get("waiting_share")),
        f"{sum(file.bytes for file in manifest.files) / 1e6:,.1f}",
        f"<code>{escape(part.fingerprint)}</code>",
    )


def _waiting(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _pair(pair: Pair | tuple[None, float | None], unit: float = 1, digits: int = 0) -> str:
    """Planned / measured; what was measured alone stands alone."""
    planned, measured = ("–" if value is None else f"{value / unit:,.{digits}f}" for value in pair)
    return measured if pair[0] is None else f"{planned} / {measured}"
