"""The tables of README.md: which families of transformers are supported, and why others are not.

python -m tests.stages.families_table
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import TypeVar

from transformers.utils import logging

from stages.contract import StageError
from stages.contract.settings import Lora
from stages.models.backbone import Backbone
from stages.models.student import missing_targets
from tests.stages.families import FAMILIES, NOT_TRIED, REFUSED, SUPPORTED
from tests.stages.families_build import batch_of, build
from tests.stages.families_processors import OWN

Key = TypeVar("Key")


@cache
def facts(name: str) -> tuple[str, str, str]:
    """Of a supported family: its decoder blocks, whether its own processor was used, and what they lack for LoRA."""
    backbone = Backbone(build(name, FAMILIES[name]))
    kinds = dict.fromkeys(type(block).__name__ for block in backbone.blocks)
    return ", ".join(kinds), "own" if name in OWN else "tensors", ", ".join(missing_targets(backbone.blocks, Lora()))


@cache
def refusal(name: str) -> str:
    """Why a family is refused: the error's own words, without the model's name, details and advice.

    Raises:
        AssertionError: it is not refused.
    """
    try:
        model = build(name, FAMILIES[name])
        Backbone(model).check(batch_of(FAMILIES[name], model))
    except StageError as error:
        return re.split("[;:]", str(error).partition(": ")[2])[0]
    raise AssertionError(f"{name} is not refused")


def tables() -> str:
    """Families by their decoder blocks, and those without support by the reason."""
    supported = grouped((facts(name), name) for name in SUPPORTED)
    refused = grouped((refusal(name), name) for name in REFUSED)
    left_out = grouped((reason, name) for name, reason in NOT_TRIED.items())
    lines = [
        f"{len(SUPPORTED)} model types are supported, {len(OWN)} of them with their own processor in the tests:",
        "",
        "| model types | decoder blocks | processor | of the default `lora.target_modules` the blocks lack |",
        "|---|---|---|---|",
        *(f"| {names} | {blocks} | {source} | {lacks} |" for (blocks, source, lacks), names in supported),
        "",
        f"{len(REFUSED)} are refused when they are loaded, and {len(NOT_TRIED)} were not tried:",
        "",
        "| model types | why |",
        "|---|---|",
        *(f"| {names} | {reason} |" for reason, names in refused),
        *(f"| {names} | not tried: {reason} |" for reason, names in left_out),
    ]
    return "\n".join(lines) + "\n"


def grouped(pairs: Iterable[tuple[Key, str]]) -> list[tuple[Key, str]]:
    """Names by key, in the order of their first."""
    groups: dict[Key, list[str]] = defaultdict(list)
    for key, name in pairs:
        groups[key].append(f"`{name}`")
    return [(key, ", ".join(names)) for key, names in groups.items()]


if __name__ == "__main__":
    logging.set_verbosity_error()
    print(tables(), end="")
