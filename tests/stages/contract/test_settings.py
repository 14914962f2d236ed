"""Settings: wrong ones stop before anything starts, and what cannot change a result is in no identity."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from stages.contract.job import STAGES
from stages.contract.settings import (
    CaptureSettings,
    EveryNth,
    Incidental,
    InteractionSettings,
    Lora,
    Losses,
    Matching,
    ModelLoading,
    Schedule,
    Settings,
    VerbalizationSettings,
    resolve_target_layers,
)


@pytest.mark.parametrize(
    ("blocks", "offset", "stride", "expected"),
    [
        (28, 2, 4, (2, 6, 10, 14, 18, 22, 26)),
        (80, 2, 4, tuple(range(2, 79, 4))),
        (24, 4, 8, (4, 12, 20)),
        (28, 4, 8, (4, 12, 20)),
        (80, 10, 20, (10, 30, 50, 70)),
    ],
    ids=["Qwen2-VL-2B and 7B", "Qwen2-VL-72B", "LLaVA-OV-0.5B", "LLaVA-OV-7B", "LLaVA-OV-72B"],
)
def test_target_layers_of_the_paper(blocks: int, offset: int, stride: int, expected: tuple[int, ...]) -> None:
    """METHOD §1: 7, 20, 3, 3 and 4 layers. Red if block indices are counted from 1."""
    assert resolve_target_layers(EveryNth(offset=offset, stride=stride), blocks) == expected


def test_the_default_target_layers_are_qwen2_vls() -> None:
    assert len(resolve_target_layers(CaptureSettings().target_layers, 28)) == 7
    assert len(resolve_target_layers(VerbalizationSettings().target_layers, 80)) == 20


def test_target_layers_may_be_a_list() -> None:
    settings = CaptureSettings.model_validate({"target_layers": [0, 5, 7]})
    assert resolve_target_layers(settings.target_layers, 8) == (0, 5, 7)
    assert settings.identity()["target_layers"] == [0, 5, 7]


@pytest.mark.parametrize("blocks", [(), (0, 8), (-1, 3), (3, 3), (5, 2)])
def test_blocks_that_do_not_exist_or_do_not_increase_are_refused(blocks: tuple[int, ...]) -> None:
    message = rf"target_layers: .* gives blocks {re.escape(str(list(blocks)))}; .* increasing strictly within 0\.\.7"
    with pytest.raises(ValueError, match=message):
        resolve_target_layers(blocks, 8)


def test_an_offset_past_the_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"offset=8, stride=4\) gives blocks \[\]; at least one is needed"):
        resolve_target_layers(EveryNth(offset=8), 8)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"matchign": {}}, ("matchign",)),
        ({"matching": {"scael": 2.0}}, ("matching", "scael")),
        ({"schedule": {"learning_rat": 1.0}}, ("schedule", "learning_rat")),
        ({"lora": {"rnak": 8}}, ("lora", "rnak")),
    ],
)
def test_an_unknown_key_is_an_error_at_its_place(data: dict[str, Any], place: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        InteractionSettings.model_validate(data)
    (problem,) = error.value.errors()
    assert problem["type"] == "extra_forbidden"
    assert problem["loc"] == place


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        (Matching, "strategy", "best"),
        (Matching, "scale", 0),
        (Matching, "eps", 0.0),
        (Matching, "reduction", "max"),
        (Schedule, "batch_size", 0),
        (Schedule, "learning_rate", "fast"),
        (Schedule, "steps", 0),
        (Schedule, "epochs", 0),
        (Schedule, "micro_batch_tokens", 0),
        (Schedule, "loader_threads", 0),
        (Schedule, "logits_chunk_mb", 0),
        (Losses, "last_weight", 0),
        (Losses, "intermediate", "l2"),
        (Lora, "rank", 0),
        (CaptureSettings, "fraction", 1.5),
        (ModelLoading, "dtype", "int8"),
        (EveryNth, "stride", 0),
        (EveryNth, "offset", -1),
    ],
)
def test_an_impossible_value_is_refused_with_its_name(settings: type[Settings], field: str, value: object) -> None:
    with pytest.raises(ValidationError) as error:
        settings.model_validate({field: value})
    assert [problem["loc"] for problem in error.value.errors()] == [(field,)]


def test_no_loss_at_all_is_refused() -> None:
    with pytest.raises(ValidationError, match="both `none`: nothing would be trained"):
        Losses(intermediate="none", last="none")


@pytest.mark.parametrize(
    ("intermediate", "last", "needed"),
    [
        ("kl", "kl", True),
        ("kl", "none", True),
        ("feature-l2", "ce", True),
        ("none", "kl", True),
        ("ce", "kl", True),
        ("ce", "ce", False),
        ("none", "ce", False),
        ("ce", "none", False),
    ],
)
def test_which_losses_need_a_teacher(intermediate: Any, last: Any, needed: bool) -> None:
    assert Losses(intermediate=intermediate, last=last).need_teacher is needed


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Matching().scale = 3.0


def test_the_defaults_are_the_papers() -> None:
    """METHOD §3 and §5. Red if a default drifts: every experiment that leaves it out changes with it."""
    matching, schedule, lora = Matching(), Schedule(), Lora()
    assert (matching.strategy, matching.scale, matching.eps) == ("adaptive", 2.0, 1e-6)
    assert (Losses().intermediate, Losses().last, Losses().last_weight) == ("kl", "kl", 1.0)
    assert (schedule.learning_rate, schedule.final_learning_rate, schedule.batch_size) == (1e-4, 1e-6, 512)
    assert (lora.rank, lora.alpha) == (64, 64)


class Inner(Settings):
    size: int = 1
    folder: Annotated[str, Incidental()] = "/tmp"


class Outer(Settings):
    inner: Inner = Inner()
    optional: Inner | None = None
    names: tuple[str, ...] = ("a",)
    table: dict[str, Any] = Field(default={})
    workers: Annotated[int, Incidental()] = Field(default=1, ge=1)


def test_incidental_fields_are_in_no_identity() -> None:
    """At the top and nested, marked before or within the field. Red if moving a run made it stale."""
    assert Outer().identity() == {"inner": {"size": 1}, "optional": None, "names": ["a"], "table": {}}
    elsewhere = Outer(workers=9, inner=Inner(folder="/scratch"), table={"x": Inner(folder="/y")})
    assert elsewhere.identity() == {**Outer().identity(), "table": {"x": {"size": 1}}}


@pytest.mark.parametrize(
    "change",
    [{"inner": Inner(size=2)}, {"optional": Inner()}, {"names": ("a", "b")}, {"table": {"k": 1}}],
    ids=["nested", "optional", "list", "table"],
)
def test_every_other_field_is(change: dict[str, Any]) -> None:
    assert Outer(**change).identity() != Outer().identity()


@pytest.mark.parametrize("value", [Path("weights"), {1, 2}, b"bytes", object()], ids=lambda value: type(value).__name__)
def test_a_value_without_one_spelling_raises(value: object) -> None:
    """Red if it fell back on `str`, which prints an address or an order that differs between processes."""
    with pytest.raises(TypeError, match=f"a setting of type {type(value).__name__} has no identity"):
        Outer(table={"deep": [value]}).identity()


@pytest.mark.parametrize("stage", STAGES)
def test_what_each_stage_calls_incidental(stage: str) -> None:
    """A list to read: whoever adds a name here says that it changes no result."""

    def incidental(settings: Settings, prefix: str = "") -> set[str]:
        found = set()
        for name, field in type(settings).model_fields.items():
            if any(isinstance(mark, Incidental) for mark in field.metadata):
                found.add(prefix + name)
            elif isinstance(value := getattr(settings, name), Settings):
                found |= incidental(value, f"{prefix}{name}.")
        return found

    allowed = {"model.device_map", "micro_batch_tokens"}
    allowed |= {f"schedule.{name}" for name in ("checkpoint_every_steps", "loader_threads", "logits_chunk_mb")}
    allowed |= {"shard_samples"} if stage == "evaluation" else set()
    allowed |= {"sayings"} if stage == "verbalization" else set()
    assert incidental(STAGES[stage].settings()) <= allowed
    assert ("model.device_map" in incidental(STAGES[stage].settings())) == (
        "model" in STAGES[stage].settings.model_fields
    )


def test_the_micro_batch_of_training_is_part_of_the_identity() -> None:
    """The matching draws once for each micro-batch (METHOD §3)."""
    for field in ("micro_batch_size", "micro_batch_tokens"):
        schedules = [InteractionSettings(schedule=Schedule(**{field: size})) for size in (4, 8)]
        assert schedules[0].identity() != schedules[1].identity()


def test_one_draw_for_all_workers_and_one_for_each_sample_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match=r"matching.sync makes one draw for all workers, matching.per_sample"):
        Matching(sync=True, per_sample=True)
