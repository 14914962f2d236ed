"""From a sweep to trials, one for each point and seed, and to the one graph of all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from pipeline.config import ConfigError, Configuration, load_experiment
from pipeline.experiment import MAIN, Experiment
from pipeline.graph import Graph, Node, student_graph
from pipeline.identity import Digests
from pipeline.sweeps.definition import Points
from stages.contract.settings import InteractionSettings, ReinforcementSettings

_SEEDED = ("interaction", "reinforcement")
Trained = TypeVar("Trained", InteractionSettings, ReinforcementSettings)


@dataclass(frozen=True)
class Trial:
    """One student: a point with one seed.

    Attributes:
        point: its name.
        seed: of interaction and reinforcement.
        configuration: an experiment of its own, without variants.
        graph: what it needs, its nodes named as those of any experiment.
    """

    point: str
    seed: int
    configuration: Configuration
    graph: Graph

    @property
    def name(self) -> str:
        """Unique in the sweep."""
        return f"{self.point}.{self.seed}"

    @property
    def target(self) -> Node:
        """The evaluation of its student."""
        return self.graph.targets[MAIN]


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep; a node that several of them need is there once.

    The trials of the first seed come first, so that what an interrupted sweep has made can be compared.
    """

    trials: tuple[Trial, ...]

    @property
    def points(self) -> tuple[str, ...]:
        """Their names, in the order of the table."""
        return tuple(dict.fromkeys(trial.point for trial in self.trials))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of every point."""
        return tuple(dict.fromkeys(trial.seed for trial in self.trials))

    @cached_property
    def graph(self) -> Graph:
        """Of everything; the name of a node says which point and seed it is for, unless it is for all."""
        users = self._users()
        nodes: dict[str, Node] = {}
        for trial in self.trials:
            for node in trial.graph.nodes:
                if node.fingerprint not in nodes:
                    inputs = {
                        name: nodes[source.fingerprint] if isinstance(source, Node) else source
                        for name, source in node.inputs.items()
                    }
                    key = node.stage + self._scope(users[node.fingerprint])
                    nodes[node.fingerprint] = replace(node, key=key, inputs=inputs)
        targets = {trial.name: nodes[trial.target.fingerprint] for trial in self.trials}
        return Graph(tuple(nodes.values()), targets)

    @cached_property
    def own_names(self) -> dict[str, dict[str, str]]:
        """By trial: what it calls its nodes, by their names in the whole graph."""
        key_of = {node.fingerprint: node.key for node in self.graph.nodes}
        return {trial.name: {key_of[node.fingerprint]: node.key for node in trial.graph.nodes} for trial in self.trials}

    def _users(self) -> dict[str, list[Trial]]:
        users: dict[str, list[Trial]] = defaultdict(list)
        for trial in self.trials:
            for node in trial.graph.nodes:
                users[node.fingerprint].append(trial)
        return users

    def _scope(self, users: Sequence[Trial]) -> str:
        """Nothing for all trials, `@point` for all seeds of one, else `@point.seed`; unique within a stage."""
        if len(users) == len(self.trials):
            return ""
        first = users[0]
        siblings = sum(trial.point == first.point for trial in self.trials)
        whole = sum(trial.point == first.point for trial in users) == siblings
        return f"@{first.point}" if whole else f"@{first.name}"


def make_plan(points: Points, seeds: Sequence[int], overrides: Sequence[str], digests: Digests) -> Plan:
    """Compose every point once and give it every seed.

    Raises:
        ConfigError: a point is not valid, or models or data are missing.
    """
    experiments = {point: _experiment(point, [*overrides, *changes]) for point, changes in points.items()}
    trials = []
    for seed in seeds:
        for point, experiment in experiments.items():
            seeded = _with_seed(experiment, seed)
            given = (*overrides, *points[point], *_seed_overrides(experiment, seed))
            trials.append(Trial(point, seed, Configuration(seeded, {}, given), student_graph(seeded, digests)))
    return Plan(tuple(trials))


def _experiment(point: str, overrides: Sequence[str]) -> Experiment:
    try:
        return load_experiment(overrides)
    except ConfigError as error:
        raise ConfigError(f"point {point}: {error}") from error


def _with_seed(experiment: Experiment, seed: int) -> Experiment:
    changed = {name: _seeded(settings, seed) for name in _SEEDED if (settings := getattr(experiment, name)) is not None}
    return experiment.model_copy(update={**changed, "variants": {}})


def _seeded(settings: Trained, seed: int) -> Trained:
    return settings.model_copy(update={"schedule": settings.schedule.model_copy(update={"seed": seed})})


def _seed_overrides(experiment: Experiment, seed: int) -> list[str]:
    return [f"{name}.schedule.seed={seed}" for name in _SEEDED if getattr(experiment, name) is not None]
