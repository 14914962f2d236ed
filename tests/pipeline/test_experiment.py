"""Every field of the configuration is in one stage's identity, or on a list that says why it is not.

The rule: a stage's own settings (`interaction.schedule.seed`) appear in that stage's identity and in no
other; what follows sees them through that stage's fingerprint. Values that `conf/` shares by interpolation
(`teacher.loading`) count where they arrive, in the own settings of the stages that use them.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.config import Configuration, load
from pipeline.experiment import Experiment
from pipeline.graph import Node, build_graph, prepare_graph
from pipeline.identity import Digests

CHANGE_NO_RESULT = {
    *("name", "store", "prepared", "variants"),
    *(f"{stage}.micro_batch_tokens" for stage in ("capture", "precompute", "evaluation")),
    *("evaluation.shard_samples", "evaluation.judge.url", "evaluation.judge.key_variable"),
    "verbalization.sayings",
    *(
        f"{stage}.schedule.{field}"
        for stage in ("verbalization", "interaction", "reinforcement")
        for field in ("checkpoint_every_steps", "loader_threads", "logits_chunk_mb")
    ),
    *(
        f"{section}.device_map"
        for section in (
            *("teacher.loading", "student.loading"),
            *(
                f"{stage}.model"
                for stage in ("capture", "verbalization", "precompute", "interaction", "reinforcement", "evaluation")
            ),
        )
    ),
}
"""How fast something runs, and under which name."""
CHANGE_NO_RESULT_AT_ALL = ("executor.", "tracking.")
"""Sections of where something runs, and who is told."""
INPUTS = {
    *("teacher.path", "teacher.revision", "student.path", "student.revision"),
    *("data.train", "data.test", "data.format", "data.digest_pictures"),
}
"""Are in identities as the content they name."""
SHARED = {
    "seed=7": {"capture", "verbalization", "precompute", "interaction", "reinforcement"},
    "teacher.target_layers=[1]": {"capture"},
    "student.target_layers=[1]": {"verbalization"},
    "data.preprocessing.max_tokens=64": {
        *("capture", "verbalization", "precompute", "interaction", "reinforcement", "evaluation")
    },
    "teacher.loading.dtype=float16": {"capture", "precompute", "evaluation"},
    "student.loading.dtype=float16": {"verbalization", "interaction", "reinforcement", "evaluation"},
}
"""Overrides of values that stages share, and the stages that use them."""
ONLY_SHARED = ("seed", "teacher.target_layers", "student.target_layers", "data.preprocessing")

Steps = tuple[tuple[str, type[BaseModel] | None], ...]
"""The way to a field: names of sections, each with its class, and the name of the field."""


def fields(section: type[BaseModel], before: Steps = ()) -> Iterator[Steps]:
    """Every field that holds a plain value; sections that may be null, and alternatives, are entered too."""
    for name, field in section.model_fields.items():
        is_table = typing.get_origin(field.annotation) is dict
        alternatives = () if is_table else (field.annotation, *typing.get_args(field.annotation))
        kinds = [kind for kind in alternatives if is_section(kind)]
        for kind in kinds:
            yield from fields(kind, (*before, (name, kind)))
        if not kinds:
            yield (*before, (name, None))


def is_section(kind: Any) -> bool:
    """Whether a type is a section, rather than a value or a container."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def dotted(steps: Steps) -> str:
    """`interaction.schedule.seed`."""
    return ".".join(name for name, _ in steps)


def with_value(section: BaseModel, steps: Steps, value: str) -> Any:
    """A copy with another value in one field, not validated; a section that is null there, or another, is made."""
    (name, kind), *rest = steps
    if kind is None:
        return section.model_copy(update={name: value})
    inner = getattr(section, name)
    if not isinstance(inner, kind):
        required = {field: "any" for field, info in kind.model_fields.items() if info.is_required()}
        inner = kind.model_construct(**required)
    return section.model_copy(update={name: with_value(inner, tuple(rest), value)})


def own_identities(experiment: Experiment, digests: Digests) -> dict[str, Any]:
    """What each node's identity says beside the fingerprints of what it was made from, by key."""
    nodes = (*build_graph(Configuration(experiment, {}), digests).nodes, *prepare_graph(experiment).nodes)
    return {
        node.key: {**node.identity, "inputs": {name: is_upstream(node, name) for name in node.inputs}} for node in nodes
    }


def is_upstream(node: Node, name: str) -> bool:
    return isinstance(node.inputs[name], Node)


def stages_that_differ(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {key.partition("@")[0] for key in one.keys() & other.keys() if one[key] != other[key]}


def test_every_field_is_in_one_stage_or_on_a_list(world: Path) -> None:
    experiment, digests = load(["~variants"]).main, Digests(world)
    for steps in fields(Experiment):
        name = dotted(steps)
        if name in INPUTS:
            continue
        one, other = (own_identities(with_value(experiment, steps, value), digests) for value in ("one", "other"))
        found = stages_that_differ(one, other)
        if name in CHANGE_NO_RESULT or name.startswith((*ONLY_SHARED, *CHANGE_NO_RESULT_AT_ALL)):
            assert found == set(), name
        else:
            owner = "evaluation" if name.startswith(("teacher.", "student.")) else name.partition(".")[0]
            assert found == {owner}, f"{name} is in no stage's identity, or in others; say on a list why"


def test_the_lists_name_fields_that_exist() -> None:
    known = {dotted(steps) for steps in fields(Experiment)}
    assert known >= CHANGE_NO_RESULT | INPUTS
    assert all(any(name.startswith(shared) for name in known) for shared in ONLY_SHARED)


@pytest.mark.parametrize(("override", "stages"), SHARED.items())
def test_a_shared_value_counts_in_the_stages_that_use_it(world: Path, override: str, stages: set[str]) -> None:
    digests = Digests(world)
    before, after = (own_identities(load(["~variants", *more]).main, digests) for more in ((), (override,)))
    assert stages_that_differ(before, after) == stages
