"""Publishing a student: its files, its card with scores, and one commit to a repository of the hub."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import ConfigError
from pipeline.history import RunRecord
from pipeline.identity import is_of_the_model
from pipeline.made import Made
from pipeline.origin import GIT_COMMIT, GIT_DIRTY
from pipeline.results import LABELS, answers_of
from pipeline.statistics import interval
from stages.contract import Artifact
from stages.contract.place import local_copy

if TYPE_CHECKING:
    from stages.models.card import Accuracy, CardScores

TOKEN_VARIABLE = "HF_TOKEN"


class NotPublished(Exception):
    """The hub refused; says what it said."""


@dataclass(frozen=True)
class Publishing:
    """A student and where it goes.

    Attributes:
        repo: `owner/name` on the hub.
        student: what is published.
        files: sizes by name: the checkpoint and its card, and nothing that tells of the machine that made it.
        card: the README.md.
    """

    repo: str
    student: Artifact
    files: Mapping[str, int]
    card: str

    def upload(self, *, private: bool) -> str:
        """Make the repository if there is none, and put everything there in one commit.

        Args:
            private: whether only its owner sees a repository that is made now.

        Returns:
            Where it is.

        Raises:
            ConfigError: the environment has no token.
            ArtifactError: a file is not what was committed.
            NotPublished: the hub cannot be reached or refused.
        """
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        from stages.models.card import CARD_FILE

        token = os.environ.get(TOKEN_VARIABLE)
        if not token:
            raise ConfigError(f"{TOKEN_VARIABLE} is not set; set it to a token that may write to {self.repo}")
        self.student.verify()
        folder = self.student.path
        weights = [CommitOperationAdd(n, local_copy(folder / n)) for n in self.files if n != CARD_FILE]
        operations = [*weights, CommitOperationAdd(CARD_FILE, self.card.encode())]
        message = f"VLsI student {self.student.manifest.fingerprint}"
        api = HfApi(token=token)
        try:
            url = api.create_repo(self.repo, private=private, exist_ok=True)
            api.create_commit(self.repo, operations, commit_message=message)
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(token, "…")
            raise NotPublished(f"{self.repo} was not published: {reason}") from error
        return str(url)


def prepare_publishing(repo: str, made: Made, licence: str | None) -> Publishing:
    """What would be published of an experiment or a run; nothing leaves this machine.

    Raises:
        ConfigError: there is no finished student.
    """
    from stages.models.card import CARD_FILE, Publication, model_card

    student = made.need("reinforcement")
    publication = Publication(repo, card_scores(made.evaluations), _commit(made.maker(student)), licence)
    card = model_card(made.lineage(student), publication)
    sizes = {file.path: file.bytes for file in student.manifest.files if is_of_the_model(file.path)}
    return Publishing(repo, student, sizes | {CARD_FILE: len(card.encode())}, card)


def card_scores(evaluations: Mapping[str, Artifact]) -> list[CardScores]:
    """Accuracy with its interval, for every model whose answers are there, the student first."""
    from stages.models.card import OVERALL, CardScores

    rows = []
    for name, evaluation in sorted(evaluations.items(), key=lambda item: _rank(item[0])):
        answers: dict[str, list[float]] = defaultdict(list)
        for task, correct in answers_of(evaluation).values():
            answers[OVERALL].append(correct)
            if task:
                answers[task].append(correct)
        if answers:
            by_task = {task: _accuracy(correct) for task, correct in answers.items()}
            rows.append(CardScores(LABELS.get(name, name), len(answers[OVERALL]), by_task))
    return rows


def _rank(name: str) -> int:
    """The student, what is trained as it is, then the others in the order in which they were made."""
    order = list(reversed(LABELS))
    return order.index(name) if name in order else len(order)


def _accuracy(correct: list[float]) -> Accuracy:
    from stages.models.card import Accuracy

    return Accuracy(sum(correct) / len(correct), *interval(correct))


def _commit(maker: RunRecord | None) -> str:
    origin = maker.origin if maker else {}
    changed = " with changes" if origin.get(GIT_DIRTY) == "true" else ""
    return origin[GIT_COMMIT] + changed if origin.get(GIT_COMMIT) else ""
