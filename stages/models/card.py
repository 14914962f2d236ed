"""The model card of an exported student: the README.md that stands beside its weights.

It names no folder of the machine that made it, and two exports of the same student have the same card.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from stages.contract.lineage import Lineage, Source
from stages.models.structure import split_revision

CARD_FILE = "README.md"
OVERALL = "overall"
_STUDENT, _TEACHER, _SAMPLES = "student", "teacher", "samples"
_CALLED = {_TEACHER: "teacher", _STUDENT: "small backbone", _SAMPLES: "training data"}


class Accuracy(NamedTuple):
    """A share of right answers with its 95 % interval, as fractions."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CardScores:
    """How one model answered held-out questions.

    Attributes:
        label: what the card calls the model.
        samples: how many questions.
        by_task: accuracy by kind of question, and `overall`.
    """

    label: str
    samples: int
    by_task: Mapping[str, Accuracy]


@dataclass(frozen=True)
class Publication:
    """What only who publishes a student knows.

    Attributes:
        name: the repository it goes to, or what the card calls the student.
        scores: of the student and of what it is compared with.
        commit: of the code that trained it, as far as that is known.
        licence: stated by whoever publishes; else that of the base is taken.
    """

    name: str
    scores: Sequence[CardScores] = ()
    commit: str = ""
    licence: str | None = None


EXPORT = Publication("VLsI student")
"""What is known when a student is exported: nobody has asked it anything yet."""


def model_card(lineage: Lineage, publication: Publication = EXPORT) -> str:
    """The whole card, with its YAML header.

    Args:
        lineage: of the student.
        publication: scores, name and licence; without it the card says where the scores are.
    """
    base = lineage.sources.get(_STUDENT)
    licence = publication.licence or (licence_of(base.place) if base else None)
    parts = [
        f"# {_plain(publication.name)}",
        _introduction(lineage),
        "## Scores\n\n" + (_scores(publication.scores) or _WHERE_SCORES_ARE),
        "## How to load it\n\n" + _loading(publication),
        "## Where it comes from\n\n" + _origins(lineage, publication),
        "## How it was trained\n\n" + _training(lineage),
        "## Limitations\n\n" + _limitations(licence),
    ]
    return f"---\n{_header(base, licence)}\n---\n\n" + "\n\n".join(parts) + "\n"


def licence_of(place: str) -> str | None:
    """The licence that a checkpoint states in the header of its README or in its configuration; no network is used."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        if readme := _file_of(place, CARD_FILE):
            stated = ModelCard(readme.read_text(), ignore_metadata_errors=True).data.get("license")
            if isinstance(stated, str):
                return stated
    with suppress(OSError, ValueError):
        if config := _file_of(place, "config.json"):
            stated = json.loads(config.read_text()).get("license")
            return stated if isinstance(stated, str) else None
    return None


def _file_of(place: str, name: str) -> Path | None:
    """A file of a checkpoint folder, or of a hub id as far as it is on this machine."""
    checkpoint, revision = split_revision(place)
    if Path(checkpoint).is_dir():
        return path if (path := Path(checkpoint) / name).is_file() else None
    cached = try_to_load_from_cache(checkpoint, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _header(base: Source | None, licence: str | None) -> str:
    on_hub = base is not None and base.name == base.place
    data = ModelCardData(
        base_model=split_revision(base.place)[0] if base and on_hub else None,
        license=licence,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["vlsi", "distillation"],
    )
    return data.to_yaml()


def _introduction(lineage: Lineage) -> str:
    teacher, base = lineage.sources.get(_TEACHER), lineage.sources.get(_STUDENT)
    learnt = f", which has learnt from the layers of {_code(teacher.name)}" if teacher else ", finetuned on its data"
    return (
        f"{_code(base.name) if base else 'A small vision language model'}{learnt}: made with an open implementation of "
        "[VLsI (Lee et al., CVPR 2025)](https://arxiv.org/abs/2412.01822). Names, shapes and configuration are those "
        "of the small backbone; nothing was added to it."
    )


_WHERE_SCORES_ARE = (
    "They are measured after the export and stand in the manifests of the evaluations; `vlsi push-to-hub REPO` shows "
    "and publishes this card with them, each with its interval."
)


def _scores(scores: Sequence[CardScores]) -> str:
    if not scores:
        return ""
    tasks = [task for task in dict.fromkeys(task for row in scores for task in row.by_task) if task != OVERALL]
    lines = [["", *(_plain(row.label) for row in scores)], ["---", *(["---:"] * len(scores))]]
    for task in [*tasks, OVERALL]:
        lines.append([_plain(task), *(_spell(row.by_task.get(task)) for row in scores)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    count = max(row.samples for row in scores)
    return f"Held-out questions answered right, % of {count:,}, with 95 % intervals over questions.\n\n{table}"


def _spell(accuracy: Accuracy | None) -> str:
    return "–" if accuracy is None else "{:.1f} ({:.1f}–{:.1f})".format(*(100 * share for share in accuracy))


def _loading(publication: Publication) -> str:
    name = "this/folder" if publication is EXPORT else publication.name
    return (
        "```python\nfrom transformers import pipeline\n\n"
        f'answer = pipeline("image-text-to-text", model={json.dumps(name)})\n'
        'content = [{"type": "image", "path": "picture.png"}, {"type": "text", "text": "What is this?"}]\n'
        'answer(text=[{"role": "user", "content": content}], return_full_text=False)\n```'
    )


def _origins(lineage: Lineage, publication: Publication) -> str:
    lines = [f"- {_CALLED.get(name, name)}: {_source(source)}" for name, source in lineage.sources.items()]
    lines += [f"- {step.stage}: {_code(step.fingerprint)}" for step in lineage.steps if step.fingerprint]
    if publication.commit:
        lines.append(f"- code: commit {_code(publication.commit)}")
    promise = "A fingerprint covers settings, inputs and the stage's version: the same ones give the same student."
    return "\n".join([*lines, "", promise])


def _source(source: Source) -> str:
    return f"{_code(source.name)}, digest {_code(source.digest)}" if source.digest else _code(source.name)


def _training(lineage: Lineage) -> str:
    """Every setting that can change the result."""
    settings = {step.stage: dict(step.settings) for step in lineage.steps}
    return f"```yaml\n{yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100).rstrip()}\n```"


def _limitations(licence: str | None) -> str:
    terms = "" if licence else " The small backbone states none in its files: look it up before you publish this."
    return "\n".join(
        (
            "- It has seen the training data above and what its backbone had seen. Questions of another kind, other "
            "languages and other pictures were not measured here.",
            "- Like every such model it says wrong things with confidence; it was not tested for bias or safety.",
            f"- The licences of backbone, teacher and data apply.{terms}",
        )
    )


def _plain(text: str) -> str:
    """Anything as one line of Markdown that formats nothing and leaves no cell."""
    line = html.escape(" ".join("".join(c if c.isprintable() else " " for c in text).split()), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|#~$" else c for c in line)


def _code(text: str) -> str:
    """Anything as code within a line."""
    return "`" + " ".join("".join(c if c.isprintable() and c != "`" else " " for c in text).split()) + "`"
