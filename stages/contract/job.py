"""A job: everything one stage needs to know, and the program that carries it out.

    python -m stages.interaction --job job.json
    python -m stages.interaction --job "$VLSI_JOB"
    python -m stages.interaction --help

The same line is what a container runs, what `ray job submit` submits, what a RayJob's entrypoint
names and what the chain calls. Exit codes: 0 the artifact is there (made now, or before); 1 the
stage failed; 2 the job is not valid; 3 it was asked to stop (SIGTERM), and the next start goes on there.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from stages.contract import settings as s
from stages.contract.artifact import ArtifactError, Manifest, commit, folder_of, open_artifact, prepare_work, reopen
from stages.contract.failures import explain
from stages.contract.files import JOB_FILE
from stages.contract.lease import lease
from stages.contract.place import Place, Remote, absolute, place_of, write_whole

S = TypeVar("S", bound=s.Settings)
EXIT_FAILED = 1
EXIT_INVALID = 2
EXIT_STOPPED = 3
SIDE_CPUS = 0.5
"""Of an actor that encodes samples, and of a task that writes a shard."""


class StageError(Exception):
    """A stage cannot go on; the message says what, where, what is allowed and what to do."""


class Stopped(Exception):
    """A stage was asked to stop; what it has done is kept."""


@dataclass(frozen=True)
class Stage:
    """A stage as the chain knows it.

    Attributes:
        name: also the module, `stages.<name>`, and the folder in the store.
        version: raised when the same settings and inputs would give another result.
        summary: one line for people.
        settings: the typed settings.
        inputs: names of the places it reads; a job may leave out the optional ones.
        optional: inputs that some settings do without.
    """

    name: str
    version: int
    summary: str
    settings: type[s.Settings]
    inputs: tuple[str, ...]
    optional: frozenset[str] = frozenset()


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            1,
            "make a task, its teacher and its small backbone from scratch",
            s.PrepareSettings,
            (),
        ),
        Stage(
            "capture",
            2,
            "run the teacher over some samples, keep its hidden states at response tokens",
            s.CaptureSettings,
            ("teacher", "samples"),
        ),
        Stage(
            "verbalization",
            3,
            "train a verbalizer on every target layer of teacher and student (step 1)",
            s.VerbalizationSettings,
            ("capture", "student", "samples"),
        ),
        Stage(
            "precompute",
            2,
            "cache what every teacher layer says about every response token",
            s.PrecomputeSettings,
            ("capture", "verbalization", "teacher", "student", "samples"),
            frozenset({"verbalization"}),
        ),
        Stage(
            "interaction",
            3,
            "train the student's decoder against the teacher's verbalized layers (step 2)",
            s.InteractionSettings,
            ("student", "samples", "verbalization", "precompute"),
            frozenset({"verbalization", "precompute"}),
        ),
        Stage(
            "reinforcement",
            2,
            "finetune the whole distilled student on the responses (step 3), export it",
            s.ReinforcementSettings,
            ("student", "samples"),
        ),
        Stage(
            "evaluation",
            2,
            "answer held-out questions or a benchmark's, score the answers by task",
            s.EvaluationSettings,
            ("model", "samples"),
        ),
    )
}


class Resources(BaseModel):
    """Where and how fast a stage runs; never part of a fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 1
    """Ray Train workers, or the actors of a Ray Data stage; 0 runs in the stage's own process, and
    (least, most) takes what the cluster has."""
    encoders: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 1
    """Actors of a Ray Data stage that read, decode and encode samples for its workers, half a CPU each."""
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """Several training workers each hold the whole student (`ddp`), or a share of it (`fsdp`)."""
    max_failures: int = Field(default=0, ge=0)
    """How often Ray Train restarts lost workers from the last checkpoint."""

    @model_validator(mode="after")
    def _least_before_most(self) -> Resources:
        for name, value in (("workers", self.workers), ("encoders", self.encoders)):
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name}: the least, {value[0]}, is more than the most, {value[1]}")
        return self

    @property
    def most_workers(self) -> int:
        """How many there are at most."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def least_cpus(self) -> float:
        """What a Ray Data stage needs to start: its workers and encoders, and one who writes."""
        workers, encoders = (v[0] if isinstance(v, tuple) else v for v in (self.workers, self.encoders))
        return workers * self.cpus_per_worker + (encoders + 1) * SIDE_CPUS

    @property
    def most_cpus(self) -> float:
        """What a stage uses at most."""
        encoders = self.encoders[1] if isinstance(self.encoders, tuple) else self.encoders
        return self.most_workers * (self.cpus_per_worker + SIDE_CPUS) + encoders * SIDE_CPUS


class Job(BaseModel):
    """What one run of one stage is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    settings: SerializeAsAny[s.Settings]
    inputs: dict[str, str]
    """Absolute places by input name: an artifact, a checkpoint folder or hub id, a sample file. Artifacts
    and checkpoints may be in an object store."""
    output: str
    """Absolute place of the artifact, a path or URL; nothing is there until it is committed whole."""
    resources: Resources = Resources()
    fingerprint: str = ""
    identity: dict[str, Any] = {}
    """What the fingerprint was made of, in readable form."""
    force: bool = False
    """Make the artifact anew; the committed one stays until then."""

    @model_validator(mode="before")
    @classmethod
    def _typed_settings(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        stage = STAGES.get(data.get("stage", ""))
        if stage is None:
            raise ValueError(f"stage: {data.get('stage')!r} is unknown; allowed: {', '.join(STAGES)}")
        if isinstance(data.get("settings"), dict):
            data = {**data, "settings": stage.settings.model_validate(data["settings"])}
        return data

    @model_validator(mode="after")
    def _places_are_valid(self) -> Job:
        for place in (self.output, *self.inputs.values()):
            place_of(place)
        if isinstance(place_of(self.inputs.get("samples", "")), Remote):
            raise ValueError(f"inputs: samples {self.inputs['samples']} has to be a path that all workers can read")
        return self

    @model_validator(mode="after")
    def _inputs_fit(self) -> Job:
        stage = STAGES[self.stage]
        unknown = sorted(set(self.inputs) - set(stage.inputs))
        missing = sorted(set(stage.inputs) - stage.optional - set(self.inputs))
        if unknown or missing:
            raise ValueError(
                f"inputs of {self.stage}: unknown {unknown}, missing {missing}; "
                f"it takes {list(stage.inputs)}, of which {sorted(stage.optional)} may be left out"
            )
        return self

    def folder(self, name: str) -> Place:
        """Where the files of an input are."""
        return folder_of(self.inputs[name])

    def typed(self, settings: type[S]) -> S:
        """The settings as the stage's own class."""
        if not isinstance(self.settings, settings):
            raise TypeError(f"a {self.stage} job has {type(self.settings).__name__}, not {settings.__name__}")
        return self.settings


Run = Callable[[Job, Place], dict[str, Any]]
"""A stage's work: fill the folder, return the summary that goes into the manifest."""


def execute(job: Job, run: Run) -> Manifest:
    """Carry out a job: the committed artifact if there is one, else run the stage and commit.

    A stage that was interrupted finds its own work folder again, with its checkpoints. An artifact that
    has lost a file becomes a work folder again; if its result then is what it was, so is its date. Of
    several processes with the same output one works, and the others then find what it made.
    """
    output = place_of(job.output)
    with lease(output):
        return _execute(job, run, output)


def _execute(job: Job, run: Run, output: Place) -> Manifest:
    done = None if job.force else open_artifact(output)
    if done is not None and not done.damage():
        return done.manifest
    if done is not None:
        reopen(done, identity=job.fingerprint)
    work = prepare_work(output, fresh=job.force, identity=job.fingerprint)
    write_whole(work / JOB_FILE, job.model_dump_json(indent=2))
    started = time.time()
    summary = run(job, work)
    manifest = Manifest.of_folder(
        work,
        stage=job.stage,
        fingerprint=job.fingerprint,
        identity=job.identity,
        inputs=job.inputs,
        summary=summary,
        started=started,
    )
    if done is not None and manifest.has_result_of(done.manifest):
        dates = {"started": done.manifest.started, "duration_seconds": done.manifest.duration_seconds}
        manifest = manifest.model_copy(update=dates)
    commit(work, output, manifest)
    return manifest


def main(name: str, argv: list[str] | None = None) -> int:
    """The command line of one stage: `python -m stages.<name>`."""
    stage = STAGES[name]
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{name}",
        description=f"{name}: {stage.summary}.",
        epilog=_describe(stage),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "the job: a file, an object's URL, or the JSON itself; `vlsi job STAGE` writes it"
    parser.add_argument("--job", required=True, metavar="FILE", help=what)
    parser.add_argument("--output", metavar="PLACE", help="put the artifact there instead of where the job says")
    parser.add_argument("--force", action="store_true", help="make the artifact anew even if it exists")
    arguments = parser.parse_args(argv)
    try:
        job = _read_job(arguments.job)
        changes = {"output": arguments.output and absolute(arguments.output), "force": arguments.force}
        job = job.model_copy(update={key: value for key, value in changes.items() if value})
        if job.stage != name:
            raise ValueError(f"it is a job for stage {job.stage}, not {name}")
    except (OSError, ValidationError, ValueError) as error:
        return _end(EXIT_INVALID, name, str(error))
    signal.signal(signal.SIGTERM, _stop)
    try:
        manifest = execute(job, importlib.import_module(f"stages.{name}").run)
    except Stopped as stopped:
        return _end(EXIT_STOPPED, name, f"stopped, {stopped}")
    except (StageError, ArtifactError) as error:
        return _end(EXIT_FAILED, name, str(error).removeprefix(f"{name}: "))
    except Exception as error:
        sentence = explain(error, job.output)
        if sentence is None:
            raise
        return _end(EXIT_FAILED, name, sentence)
    print(f"{name}: {job.output} ({manifest.duration_seconds:.1f} s)")
    return 0


def _read_job(job: str) -> Job:
    return Job.model_validate_json(job if job.lstrip().startswith("{") else place_of(job).read_text())


def _end(code: int, stage: str, sentence: str) -> int:
    print(f"{stage}: {sentence}", file=sys.stderr)
    return code


def _stop(*_: object) -> NoReturn:
    """What SIGTERM does, unless the stage has something to finish first: shards are whole at any moment."""
    raise Stopped("the next start goes on at the first shard that is missing")


def _describe(stage: Stage) -> str:
    lines = ["inputs:"]
    lines += [f"  {name}{' (optional)' if name in stage.optional else ''}" for name in stage.inputs]
    lines += ["", "settings (defaults):", *_describe_settings(stage.settings(), indent=2)]
    return "\n".join(lines)


def _describe_settings(settings: s.Settings, indent: int) -> list[str]:
    lines = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, s.Settings):
            lines += [f"{' ' * indent}{name}:", *_describe_settings(value, indent + 2)]
        else:
            note = f"   {field.description}" if field.description else ""
            lines.append(f"{' ' * indent}{name} = {value!r}{note}")
    return lines
