"""The graph of what an experiment needs, built backwards from what it wants to know.

Wanted are the scores of the student, of every variant, of the teacher and of the small backbone.
Each node asks for its inputs, so what nothing needs does not exist: without interaction there is no
capture, without a teacher signal in the losses there is no cache. Nodes with one fingerprint are one
node, which is how variants share work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError, Configuration
from pipeline.experiment import MAIN, UNTRAINED, Experiment, Model
from pipeline.identity import Digests, MissingInput, fingerprint
from stages.contract import STAGES, Job, Resources
from stages.contract.place import Place, place_of
from stages.contract.settings import EvaluationSettings, Settings


@dataclass(frozen=True)
class Source:
    """Something that comes from outside the store: a checkpoint or a sample file."""

    place: str
    digest: str


@dataclass(frozen=True)
class Node:
    """One artifact that has to exist, and how to make it.

    Attributes:
        key: its name for people: `interaction`, `interaction@sft`, `evaluation@teacher`.
        stage: name of the stage that makes it.
        settings: of that stage.
        inputs: other nodes, or what comes from outside.
        store: folder of all artifacts.
        fixed_output: place of an artifact whose path people choose; None names it by fingerprint.
    """

    key: str
    stage: str
    settings: Settings
    inputs: dict[str, Node | Source]
    store: Place
    fixed_output: Path | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that can change the result, and nothing else."""
        return {
            "stage": self.stage,
            "version": STAGES[self.stage].version,
            "settings": self.settings.identity(),
            "inputs": {
                name: source.fingerprint if isinstance(source, Node) else source.digest
                for name, source in self.inputs.items()
            },
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the identity."""
        return fingerprint(self.identity)

    @property
    def output(self) -> Place:
        """Where the artifact stands once it is committed."""
        return self.fixed_output or self.store / self.stage / self.fingerprint

    @property
    def upstream(self) -> tuple[Node, ...]:
        """The nodes among the inputs."""
        return tuple(source for source in self.inputs.values() if isinstance(source, Node))

    def job(self, resources: Resources, *, force: bool = False) -> Job:
        """What the stage is told."""
        places = {
            name: str(source.output) if isinstance(source, Node) else source.place
            for name, source in self.inputs.items()
        }
        return Job(
            stage=self.stage,
            settings=self.settings,
            inputs=places,
            output=str(self.output),
            resources=resources,
            fingerprint=self.fingerprint,
            identity=self.identity,
            force=force,
        )


@dataclass(frozen=True)
class Graph:
    """All nodes of an experiment, inputs before what uses them, and the evaluations by name."""

    nodes: tuple[Node, ...]
    targets: dict[str, Node]
    """`teacher`, `backbone`, every variant, `vlsi`: in the order of the table."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything wanted: the same experiment gives the same one."""
        return fingerprint({name: node.fingerprint for name, node in self.targets.items()})

    def named(self, name: str) -> list[Node]:
        """The nodes of a stage, or the one node with this key.

        Raises:
            ConfigError: there is none.
        """
        found = [node for node in self.nodes if name in (node.stage, node.key)]
        if not found:
            known = dict.fromkeys([*(node.stage for node in self.nodes), *(node.key for node in self.nodes)])
            raise ConfigError(f"stage {name!r} is not part of this experiment; allowed: {', '.join(known)}")
        return found


def build_graph(configuration: Configuration, digests: Digests) -> Graph:
    """The graph of an experiment and its variants.

    Raises:
        ConfigError: a checkpoint or sample file does not exist; says how to get it.
    """
    main = configuration.main
    nodes: dict[str, Node] = {}
    trained = {MAIN: _Chain(main, "", digests, nodes).evaluation()}
    for variant, experiment in configuration.variants.items():
        trained[variant] = _Chain(experiment, variant, digests, nodes).evaluation()
    targets = {name: _Chain(main, name, digests, nodes).untrained() for name in UNTRAINED}
    targets |= {name: trained[name] for name in (*configuration.variants, MAIN)}
    digests.save()
    return Graph(tuple(nodes.values()), targets)


def student_graph(experiment: Experiment, digests: Digests) -> Graph:
    """The graph of an experiment's own student, without what it is compared with.

    Raises:
        ConfigError: a checkpoint or sample file does not exist; says how to get it.
    """
    nodes: dict[str, Node] = {}
    target = _Chain(experiment, "", digests, nodes).evaluation()
    digests.save()
    return Graph(tuple(nodes.values()), {MAIN: target})


def prepare_graph(experiment: Experiment) -> Graph:
    """The one node that makes an experiment's own models and data.

    Raises:
        ConfigError: the experiment brings none of its own.
    """
    if experiment.prepare is None:
        needed = {
            "teacher.path": experiment.teacher.path,
            "student.path": experiment.student.path,
            "data.train": experiment.data.train,
            "data.test": experiment.data.test,
        }
        listed = "\n".join(f"  {key}: {place}" for key, place in needed.items())
        raise ConfigError(
            f"prepare: experiment {experiment.name} has nothing to prepare; these have to exist "
            f"(a hub id is downloaded when it is first used):\n{listed}"
        )
    place = Path(experiment.prepared)
    return Graph((Node("prepare", "prepare", experiment.prepare, {}, place_of(experiment.store), place),), {})


def benchmark_graph(
    configuration: Configuration, digests: Digests, asked: Sequence[Asked], models: Sequence[str]
) -> Graph:
    """The graph of what models answer to benchmarks; targets are called `model:benchmark`.

    Args:
        configuration: of the experiment, whose models they are.
        digests: of what comes from outside.
        asked: the benchmarks.
        models: `teacher`, `backbone`, names of variants, `vlsi`.

    Raises:
        ConfigError: a model is none of the experiment's, or a checkpoint or file does not exist.
    """
    main = configuration.main
    known = {**dict.fromkeys(UNTRAINED, main), **configuration.variants, MAIN: main}
    if unknown := [model for model in models if model not in known]:
        raise ConfigError(f"--model: {unknown[0]!r} is no model of {main.name}; allowed: {', '.join(known)}")
    nodes: dict[str, Node] = {}
    targets = {}
    for benchmark in asked:
        for model in models:
            chain = _Chain(known[model], "" if model == MAIN else model, digests, nodes, benchmark)
            target = chain.untrained() if model in UNTRAINED else chain.evaluation()
            targets[f"{model}:{benchmark.label}"] = target
    digests.save()
    return Graph(tuple(nodes.values()), targets)


def closure(nodes: list[Node]) -> Iterator[str]:
    """Keys of `nodes` and of everything upstream of them."""
    for node in nodes:
        yield node.key
        yield from closure(list(node.upstream))


@dataclass(frozen=True)
class Asked:
    """A benchmark that is asked for.

    Attributes:
        name: of the benchmark.
        place: of its local copy.
        label: what it is called here; two copies of one benchmark have two labels.
    """

    name: str
    place: str
    label: str

    def settings(self, settings: EvaluationSettings) -> EvaluationSettings:
        """How it is evaluated: as everything else, with room for its answers, and with a judge only if it needs one."""
        from stages.benchmarks import benchmark_named

        benchmark = benchmark_named(self.name)
        changes = {
            "benchmark": self.name,
            "max_new_tokens": max(settings.max_new_tokens, benchmark.max_new_tokens),
            "judge": settings.judge if benchmark.needs_judge else None,
        }
        return settings.model_copy(update=changes)


@dataclass
class _Chain:
    """The nodes of one experiment or variant; each method adds a node and what it needs."""

    experiment: Experiment
    variant: str
    digests: Digests
    nodes: dict[str, Node] = field(default_factory=dict)
    asked: Asked | None = None
    """Whose questions are evaluated; None: the experiment's own."""

    def evaluation(self) -> Node:
        """The scores of the finished student."""
        return self._evaluate(self.experiment.evaluation, self.reinforcement())

    def untrained(self) -> Node:
        """The scores of the teacher or the small backbone as it is; the variant says which."""
        is_teacher = self.variant == "teacher"
        model = self.experiment.teacher if is_teacher else self.experiment.student
        settings = self.experiment.evaluation.model_copy(update={"model": model.loading})
        source = self._teacher() if is_teacher else self._student()
        return self._evaluate(settings, source)

    def reinforcement(self) -> Node:
        """Step 3, from the interacted student or straight from the backbone."""
        student = self.interaction() or self._student()
        return self._node("reinforcement", self.experiment.reinforcement, student=student, samples=self._train())

    def interaction(self) -> Node | None:
        """Step 2, with the inputs its losses ask for."""
        settings = self.experiment.interaction
        if settings is None:
            return None
        inputs: dict[str, Node | Source] = {"student": self._student(), "samples": self._train()}
        if settings.losses.intermediate != "none":
            inputs["verbalization"] = self.verbalization()
        if settings.losses.need_teacher:
            inputs["precompute"] = self.precompute()
        return self._node("interaction", settings, **inputs)

    def precompute(self) -> Node:
        """The cache of what the teacher says."""
        settings = self.experiment.precompute
        assert settings is not None, "the experiment's validation keeps precompute where losses need the teacher"
        inputs: dict[str, Node | Source] = {"capture": self.capture()}
        if settings.layers == "all":
            inputs["verbalization"] = self.verbalization()
        return self._node(
            "precompute", settings, **inputs, teacher=self._teacher(), student=self._student(), samples=self._train()
        )

    def verbalization(self) -> Node:
        """Step 1, for teacher and student."""
        return self._node(
            "verbalization",
            self.experiment.verbalization,
            capture=self.capture(),
            student=self._student(),
            samples=self._train(),
        )

    def capture(self) -> Node:
        """The teacher's raw hidden states."""
        return self._node("capture", self.experiment.capture, teacher=self._teacher(), samples=self._train())

    def _evaluate(self, settings: EvaluationSettings, model: Node | Source) -> Node:
        if self.asked is None:
            return self._node("evaluation", settings, model=model, samples=self._test())
        samples = self._questions(self.asked)
        return self._node("evaluation", self.asked.settings(settings), model=model, samples=samples)

    def _node(self, stage: str, settings: Settings, **inputs: Node | Source) -> Node:
        key = f"{stage}@{self.variant}" if self.variant else stage
        if self.asked is not None and stage == "evaluation":
            key = f"{key}:{self.asked.label}"
        node = Node(key, stage, settings, inputs, place_of(self.experiment.store))
        return self.nodes.setdefault(node.fingerprint, node)

    def _teacher(self) -> Source:
        return self._checkpoint("teacher", self.experiment.teacher)

    def _student(self) -> Source:
        return self._checkpoint("student", self.experiment.student)

    def _checkpoint(self, name: str, model: Model) -> Source:
        try:
            return Source(model.place, self.digests.checkpoint(model.place))
        except MissingInput as error:
            raise self._missing(f"{name}.path", error) from error

    def _train(self) -> Source:
        return self._samples("train")

    def _test(self) -> Source:
        return self._samples("test")

    def _samples(self, split: str) -> Source:
        data = self.experiment.data
        place = data.place(split)
        try:
            return Source(place, self.digests.samples(place, pictures=data.digest_pictures))
        except MissingInput as error:
            raise self._missing(f"data.{split}", error) from error

    def _questions(self, asked: Asked) -> Source:
        try:
            return Source(asked.place, self.digests.questions(asked.name, asked.place))
        except MissingInput as error:
            raise ConfigError(f"--benchmark {asked.label}: {error}") from error

    def _missing(self, key: str, error: MissingInput) -> ConfigError:
        if self.experiment.prepare is not None:
            return ConfigError(f"{key}: {error}; run `vlsi prepare experiment={self.experiment.name}` to make it")
        kind = "a file, folder or mixture of samples" if key.startswith("data") else "a checkpoint folder or a hub id"
        return ConfigError(f"{key}: {error}; set {key} to {kind}")
