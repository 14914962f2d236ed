"""The one graph of all trials: what is shared, and what nodes are called."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.config import ConfigError, load_experiment
from pipeline.sweeps import plan
from pipeline.sweeps.study import Study

pytestmark = pytest.mark.usefixtures("world")


def counts(study: Study) -> dict[str, int]:
    """Nodes of every stage."""
    return dict(Counter(node.stage for node in study.plan.graph.nodes))


def keys(study: Study, stage: str) -> list[str]:
    return [node.key for node in study.plan.graph.nodes if node.stage == stage]


def test_seeds_change_interaction_and_what_follows_alone() -> None:
    study = Study.open(["sweep=matching"], [0, 1, 2])
    shared = {"capture": 1, "verbalization": 1, "precompute": 1}
    assert counts(study) == {**shared, "interaction": 24, "reinforcement": 24, "evaluation": 24}
    assert len(study.plan.trials) == 24


def test_names_say_which_point_and_seed_a_node_is_for() -> None:
    study = Study.open(["sweep=verbalizer"], [0, 1])
    assert keys(study, "capture") == ["capture"]
    assert keys(study, "precompute") == ["precompute@logit-lens", "precompute@literal", "precompute@stable"]
    assert keys(study, "interaction")[:2] == ["interaction@logit-lens.0", "interaction@literal.0"]
    assert len({node.key for node in study.plan.graph.nodes}) == len(study.plan.graph.nodes)


def test_with_one_seed_names_need_none() -> None:
    assert keys(Study.open(["sweep=seeds"], [3]), "interaction") == ["interaction@last-layer-kd", "interaction@vlsi"]


def test_a_trial_is_an_experiment_that_can_be_run_alone() -> None:
    study = Study.open(["sweep=matching", "interaction.schedule.steps=7"], [5])
    trial = next(trial for trial in study.plan.trials if trial.point == "bottom-1")
    alone = load_experiment(trial.configuration.overrides)
    assert alone.model_copy(update={"variants": {}}) == trial.configuration.main
    assert (alone.interaction.schedule.seed, alone.reinforcement.schedule.seed) == (5, 5)  # type: ignore[union-attr]
    assert alone.verbalization.schedule.seed == 0
    assert {node.key for node in trial.graph.nodes} == {node.stage for node in trial.graph.nodes}


def test_points_are_composed_once_whatever_the_number_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    monkeypatch.setattr(plan, "load_experiment", lambda overrides: composed.append(1) or load_experiment(overrides))
    Study.open(["sweep=matching"], range(8))
    assert len(composed) == 8


def test_a_point_that_is_not_valid_is_named() -> None:
    only_the_last = ["precompute.layers=last", "interaction.losses.intermediate=none"]
    with pytest.raises(ConfigError, match=r"point kl\+none: precompute.layers: 'last' caches no intermediate layer"):
        Study.open(["sweep=losses", *only_the_last], [0])


def test_models_of_other_sizes_have_to_be_prepared_first() -> None:
    with pytest.raises(ConfigError, match=r"run first:\n  vlsi prepare seed=1 'prepared=\$\{store\}"):
        Study.open(["sweep=sizes", "seed=1"])
