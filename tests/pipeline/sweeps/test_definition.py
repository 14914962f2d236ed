"""What files of conf/sweep may say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import CONF_VARIABLE, ConfigError, conf_folder, load_experiment
from pipeline.sweeps.definition import Sweep, choose

NAMES = sorted(path.stem for path in (conf_folder() / "sweep").glob("*.yaml"))
POINTS = {"one": ["seed=1"], "two": ["seed=2"]}


def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **content: Any) -> None:
    """Choose a sweep that says this."""
    folder = tmp_path / "conf" / "sweep"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump({"title": "Mine", "baseline": "one", **content}))
    monkeypatch.setenv(CONF_VARIABLE, str(tmp_path / "conf"))
    choose(["sweep=mine"])


@pytest.mark.parametrize("name", NAMES)
def test_every_point_of_every_sweep_is_a_valid_experiment(name: str) -> None:
    sweep = choose([f"sweep={name}"])[1].within(load_experiment())
    points = sweep.every_point()
    assert sweep.baseline in points
    for changes in [*points.values(), *sweep.preparations.values()]:
        load_experiment(changes)


def test_the_strategies_are_those_that_there_are() -> None:
    _, sweep, _ = choose(["sweep=matching"])
    chosen = {load_experiment(changes).interaction.matching.strategy for changes in sweep.points.values()}  # type: ignore[union-attr]
    assert chosen == set(sweep.points)
    assert len(chosen) == 8


def test_variants_are_points_beside_the_experiment() -> None:
    _, sweep, _ = choose(["sweep=seeds"])
    assert list(sweep.within(load_experiment()).every_point()) == ["sft", "last-layer-kd", "vlsi"]
    assert list(sweep.within(load_experiment(["~variants"])).every_point()) == ["vlsi"]


def test_points_can_be_added_to_the_variants() -> None:
    both = Sweep(title="Both", baseline="uniform", variants=True, points={"uniform": ("seed=1",)})
    assert list(both.within(load_experiment()).every_point()) == ["sft", "last-layer-kd", "vlsi", "uniform"]


def test_a_baseline_that_the_experiment_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match="baseline: 'sft' is no point of digits; allowed: vlsi"):
        Sweep(title="Alone", baseline="sft", variants=True).within(load_experiment(["~variants"]))


def test_two_axes_give_every_pair() -> None:
    _, sweep, _ = choose(["sweep=sizes"])
    assert set(sweep.every_point()) == {
        f"{teacher}-to-{student}" for teacher in sweep.axes["teacher"] for student in sweep.axes["student"]
    }


def test_variants_are_the_first_rows_of_two_axes() -> None:
    axes = {"method": {"uniform": ("seed=1",)}, "rate": {"low": ("interaction.schedule.learning_rate=1e-3",)}}
    sweep = Sweep(title="Grid", baseline="vlsi-to-low", variants=True, axes=axes).within(load_experiment())
    assert list(sweep.axes["method"]) == ["sft", "last-layer-kd", "vlsi", "uniform"]
    assert load_experiment(sweep.every_point()["sft-to-low"]).interaction is None
    assert sweep.within(load_experiment()) == sweep


def test_other_overrides_stay_what_they_are() -> None:
    name, _, rest = choose(["experiment=digits", "sweep=losses", "seed=1"])
    assert (name, rest) == ("losses", ["experiment=digits", "seed=1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "choose one with sweep=NAME; allowed: joint, losses, matching"),
        (["sweep=matching", "sweep=losses"], "choose one with sweep=NAME"),
        (["sweep=matchin"], "'matchin' is unknown; allowed: joint, losses, matching"),
    ],
)
def test_a_sweep_is_chosen_by_its_name(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"points": POINTS, "sedes": [1]}, "sedes: unknown key; allowed: title, baseline, seeds, points"),
        ({"points": POINTS, "baseline": "three"}, "baseline: 'three' is no point; allowed: one, two"),
        ({"points": POINTS, "seeds": []}, "seeds: "),
        ({"points": POINTS, "seeds": [-1]}, "seeds.0: "),
        ({"points": {"a/b": []}}, "points: 'a/b' cannot name a point"),
        ({"points": POINTS, "axes": {"x": POINTS, "y": POINTS}}, "give points or axes, variants, or variants with one"),
        ({}, "give points or axes, variants, or variants with one"),
        ({"axes": {"only": POINTS}}, "axes: 1 given; a sweep has none or two"),
        ({"axes": {"x": {"A": []}, "y": POINTS}}, "axes: 'A' cannot name a point"),
    ],
)
def test_what_is_not_valid_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"conf/sweep/mine\.yaml: {message}"):
        read(tmp_path, monkeypatch, **content)


def test_what_is_no_yaml_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(conf_folder(), tmp_path / "conf")
    (tmp_path / "conf" / "sweep" / "matching.yaml").write_text("points: [")
    monkeypatch.setenv(CONF_VARIABLE, str(tmp_path / "conf"))
    with pytest.raises(ConfigError, match=r"conf/sweep/matching\.yaml is not YAML"):
        choose(["sweep=matching"])
