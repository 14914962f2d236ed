"""What an experiment or a run has made: its artifacts by node, wherever a command wants to look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import ConfigError, load
from pipeline.experiment import MAIN
from pipeline.history import History, RunRecord
from pipeline.session import Session
from pipeline.store import Store
from stages.contract import Artifact, open_artifact
from stages.contract.lineage import Lineage, trace

_EVALUATION = "evaluation"


@dataclass(frozen=True)
class Made:
    """Artifacts of one experiment.

    Attributes:
        experiment: its name, or that of a point of a sweep.
        artifacts: those that are there, by node key.
        store: where they are.
        records: runs by id.
        advice: what to do about one that is not there.
    """

    experiment: str
    artifacts: Mapping[str, Artifact]
    store: Store
    records: Mapping[str, RunRecord]
    advice: str

    @classmethod
    def find(cls, run: str | None, overrides: Sequence[str]) -> Made:
        """By a run, or what is up to date.

        Args:
            run: an id or an experiment, as `vlsi runs` shows them; None for the experiment of `overrides`.
            overrides: changes to the configuration, which also say where the store is.

        Raises:
            ConfigError: there is no such run, or the configuration is not valid.
        """
        return cls._of_run(run, overrides) if run else cls._up_to_date(overrides)

    @classmethod
    def _up_to_date(cls, overrides: Sequence[str]) -> Made:
        session = Session.open(overrides)
        advice = f"run `{session.command('run')}` first, or name a run that `vlsi runs` lists"
        records = {record.id: record for record in session.history.records()}
        return cls(session.experiment.name, session.artifacts(), session.store, records, advice)

    @classmethod
    def _of_run(cls, run: str, overrides: Sequence[str]) -> Made:
        store = Store(load(overrides).main.store)
        history = History(store.artifacts)
        record = history.find(run)
        opened = {key: open_artifact(store.artifacts / name) for key, name in record.wanted.items()}
        artifacts = {key: artifact for key, artifact in opened.items() if artifact}
        records = {record.id: record for record in history.records()}
        return cls(record.experiment, artifacts, store, records, f"run {record.id} did not make it, or it was deleted")

    def need(self, key: str) -> Artifact:
        """One artifact.

        Raises:
            ConfigError: it is not there; says how to make it.
        """
        if key not in self.artifacts:
            raise ConfigError(f"{self.experiment} has no {key} that is up to date: {self.advice}")
        return self.artifacts[key]

    @property
    def evaluations(self) -> dict[str, Artifact]:
        """Of the student (`vlsi`) and of what it is compared with, by name."""
        found = {key: artifact for key, artifact in self.artifacts.items() if key.partition("@")[0] == _EVALUATION}
        return {key.partition("@")[2] or MAIN: artifact for key, artifact in found.items()}

    def maker(self, artifact: Artifact) -> RunRecord | None:
        """The run that made it, if its record is still there."""
        return self.records.get(artifact.manifest.run or "")

    def lineage(self, artifact: Artifact) -> Lineage:
        """What it was made from."""
        return trace(artifact.manifest, self.store.artifacts)
