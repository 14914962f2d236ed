"""Lineage: where a run comes from, and everything it was told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from pipeline.identity import dotted, flatten, spell
from pipeline.origin import GIT_COMMIT
from pipeline.reports.page import row, table
from pipeline.reports.subject import Subject

_ORIGIN = {
    GIT_COMMIT: "commit",
    "git.dirty": "with changes of its own",
    "version.vlsi": "version",
    "version.python": "Python",
    "mlflow.source.name": "command",
    "host": "machine",
    "hardware.cpu": "processor",
    "hardware.cores": "cores",
    "hardware.memory_gb": "memory, GB",
    "hardware.gpus": "accelerators",
}
"""What is shown of `RunRecord.origin`, and what it is called."""
_INPUTS = ("teacher", "student", "samples", "model")
"""What stages read from outside the store."""


def introduction(subject: Subject) -> Iterator[str]:
    """What this page is about."""
    yield f"<h1>{escape(subject.name)}</h1>"
    teacher, backbone = (escape(_path(subject.configuration, role)) for role in ("teacher", "student"))
    yield (
        '<p class="soft">A small model taught by a large one, layer by layer. '
        f"Teacher <code>{teacher}</code>, small backbone <code>{backbone}</code>.</p>"
    )


def lineage(subject: Subject) -> Iterator[str]:
    """Code, command and machine of the run, models and data by digest, versions of the libraries."""
    facts = [*_recorded(subject), *_inputs(subject), *_versions(subject)]
    if facts:
        yield "<h2>Lineage</h2>"
        yield table((), (row(escape(name), f"<code>{escape(value)}</code>") for name, value in facts), "text")


def settings(subject: Subject) -> Iterator[str]:
    """The whole configuration and what each fingerprint is made of, folded away."""
    yield "<h2>Settings</h2>"
    yield _folded("the whole configuration", dotted(dict(subject.configuration)))
    for part, artifact in subject.present:
        yield _folded(part.key, flatten(artifact.manifest.identity))


def _recorded(subject: Subject) -> Iterator[tuple[str, str]]:
    record = subject.record
    if record is None:
        return
    yield "run", record.id
    yield "changes", " ".join(record.overrides) or "none"
    yield from ((label, record.origin[tag]) for tag, label in _ORIGIN.items() if tag in record.origin)


def _inputs(subject: Subject) -> Iterator[tuple[str, str]]:
    """Each place that stages read from outside, with the digest it had; one of the store is a link of the chain."""
    made = {part.fingerprint for part in subject.parts}
    found: dict[tuple[str, str], str] = {}
    for part, artifact in subject.present:
        manifest = artifact.manifest
        for name, digest in manifest.identity.get("inputs", {}).items():
            if name in _INPUTS and digest not in made:
                found.setdefault((manifest.inputs.get(name, ""), digest), f"{name} of {part.stage}")
    yield from ((label, f"{place} {digest}") for (place, digest), label in found.items())


def _versions(subject: Subject) -> Iterator[tuple[str, str]]:
    """Of the libraries that made the artifacts; several where they changed in between."""
    seen: dict[str, dict[str, None]] = {}
    for _, artifact in subject.present:
        for package, version in artifact.manifest.versions.items():
            seen.setdefault(package, {})[version] = None
    yield from ((package, ", ".join(versions)) for package, versions in seen.items())


def _path(configuration: Mapping[str, Any], role: str) -> str:
    return str(configuration.get(role, {}).get("path", "unknown"))


def _folded(name: str, values: Mapping[str, Any]) -> str:
    rows = (row(f"<code>{escape(key)}</code>", f"<code>{escape(spell(value))}</code>") for key, value in values.items())
    return f"<details><summary>{escape(name)}</summary>{table((), rows, 'text')}</details>"
