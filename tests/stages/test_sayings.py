"""Sayings: the samples that are shown, and what models say of them in the artifacts of the two stages."""

from __future__ import annotations

import io
from base64 import b64decode
from pathlib import Path

import pytest
from PIL import Image

from stages.contract import Job
from stages.contract.sayings import Said, Shown, Speaker, read_sayings, write_sayings
from stages.interaction import InteractionObjective
from stages.sayings import THUMBNAIL_PIXELS, thumbnail
from tests.stages.test_chain import FLOAT32, SCHEDULE, Chain, start_chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    started = start_chain(tmp_path_factory.mktemp("sayings"), "qwen2_vl")
    started.run("interaction", model=FLOAT32, schedule=SCHEDULE)
    return started


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    speaker = Speaker("teacher", (Said(2, ("a", "שלום"), (0.5, 0.25)),))
    shown = Shown("1", "<script>", 'an "answer"', ("a", "b"), ("data:image/png;base64,",), (speaker,))
    write_sayings(tmp_path, [shown])
    assert read_sayings(tmp_path) == [shown]
    assert read_sayings(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(("size", "expected"), [((1000, 500), (256, 128)), ((40, 60), (40, 60))])
def test_a_thumbnail_is_small_and_keeps_its_shape(size: tuple[int, int], expected: tuple[int, int]) -> None:
    uri = thumbnail(Image.new("RGB", size, "red"))
    _, _, data = uri.partition(";base64,")
    picture = Image.open(io.BytesIO(b64decode(data)))
    assert picture.size == expected
    assert max(picture.size) <= THUMBNAIL_PIXELS


def test_verbalization_lets_teacher_and_backbone_speak_about_every_kind_of_question(chain: Chain) -> None:
    shown = read_sayings(chain.places["verbalization"])
    assert len(shown) == 4
    assert {sample.answer.count(" ") for sample in shown} == {0, 1}
    for sample in shown:
        assert "".join(sample.tokens).replace("<|im_end|>", " ").split()[-1] == sample.answer.split()[-1]
        assert [(model.name, [layer.block for layer in model.layers]) for model in sample.models] == [
            ("teacher", [0, 1, 3]),
            ("backbone", [0, 2]),
        ]
        for model in sample.models:
            for layer in model.layers:
                assert len(layer.words) == len(layer.confidence) == len(sample.tokens)
                assert all(0 < value <= 1 for value in layer.confidence)


def test_interaction_lets_the_student_speak_about_the_same_samples(chain: Chain) -> None:
    before, after = (read_sayings(chain.places[stage]) for stage in ("verbalization", "interaction"))
    assert {sample.id for sample in before} == {sample.id for sample in after}
    for sample in after:
        (student,) = sample.models
        assert student.name == "student"
        (earlier,) = [one for one in before if one.id == sample.id]
        assert earlier.tokens == sample.tokens
        assert student.layers != earlier.models[1].layers


def test_how_many_are_shown_is_a_setting_and_none_are_needed(chain: Chain) -> None:
    schedule = SCHEDULE | {"steps": 1, "batch_size": 8}
    place = chain.run("verbalization", name="mute", model=FLOAT32, target_layers=[0, 2], schedule=schedule, sayings=0)
    assert read_sayings(place) == []


def test_without_verbalizers_nothing_is_said(chain: Chain) -> None:
    losses = {"intermediate": "none", "last": "kl"}
    place = chain.run("interaction", name="mute", model=FLOAT32, losses=losses, schedule=SCHEDULE | {"steps": 1})
    assert read_sayings(place) == []


def test_the_sayings_change_no_weight(chain: Chain) -> None:
    """Speaking draws no random number and trains nothing."""
    schedule = SCHEDULE | {"batch_size": 8}
    place = chain.run("verbalization", name="more", model=FLOAT32, target_layers=[0, 2], schedule=schedule, sayings=1)
    for file in ("teacher_verbalizers.safetensors", "student_verbalizers.safetensors"):
        assert (place / file).read_bytes() == (chain.places["verbalization"] / file).read_bytes()


def test_a_student_in_half_precision_speaks_too(chain: Chain, tmp_path: Path) -> None:
    inputs = {name: str(chain.places[name]) for name in ("student", "samples", "verbalization", "precompute")}
    job = Job(stage="interaction", settings={"schedule": SCHEDULE}, inputs=inputs, output=str(chain.root / "unused"))
    InteractionObjective(job).save(tmp_path, [{"step": 1, "loss": 1.0}])
    assert [model.name for sample in read_sayings(tmp_path) for model in sample.models] == ["student"] * 4
