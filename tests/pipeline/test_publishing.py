"""`vlsi push-to-hub`: a dry run unless it is told otherwise, and what leaves the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.made import Made
from pipeline.origin import GIT_COMMIT
from pipeline.publishing import card_scores, prepare_publishing
from pipeline.runner import Outcome
from pipeline.session import Session
from stages.contract import Artifact
from tests.pipeline.conftest import Command, Question

Run = Callable[..., Outcome]
FILES = ["README.md", "config.json", "model.safetensors", "weights.bin"]
TOKEN = "hf_not_a_real_token"


class FakeHub:
    """Keeps what is sent to it."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.commits = 0
        self.token: str | None = None
        self.refuses = False

    def __call__(self, token: str) -> FakeHub:
        self.token = token
        return self

    def create_repo(self, repo: str, **options: Any) -> str:
        if self.refuses:
            raise OSError(f"403 for {self.token}\nsecond line")
        self.created.append({"repo": repo, **options})
        return f"https://hub/{repo}"

    def create_commit(self, repo: str, operations: list[Any], commit_message: str) -> None:
        self.commits += 1
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import transformers.utils.hub  # noqa: F401 - its own HfApi is the real one, whichever test is the first

    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return fake


@pytest.fixture
def finished(run: Run, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A student with files of a checkpoint beside what tells of the run."""
    from tests.pipeline.conftest import FakeExecutor

    plain = FakeExecutor._stage

    def stage(self: FakeExecutor, job: Any, work: Path) -> dict[str, Any]:
        if job.stage == "reinforcement":
            (work / "config.json").write_text("{}")
            (work / "model.safetensors").write_bytes(b"weights")
        if job.stage == "evaluation":
            rows = [{"id": str(i), "task": "read" if i % 2 else "", "correct": i < 3} for i in range(4)]
            (work / "predictions").mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), work / "predictions" / "0.parquet")
        return plain(self, job, work)

    monkeypatch.setattr(FakeExecutor, "_stage", stage)
    run("~variants")
    return Session.open([]).artifacts()["reinforcement"]


def test_a_dry_run_shows_files_and_card_and_sends_nothing(finished: Artifact, vlsi: Command, hub: FakeHub) -> None:
    code, text = vlsi("push-to-hub", "me/student", width=200)
    assert code == 0
    for expected in ("config.json", "model.safetensors", "README.md", "# me/student", "Nothing was uploaded"):
        assert expected in text
    assert (hub.created, hub.files) == ([], {})


def test_what_is_sent_is_the_checkpoint_and_its_card(
    finished: Artifact, vlsi: Command, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, text = vlsi("push-to-hub", "me/student", "--license", "mit", "--yes", width=200)
    assert (code, "published: https://hub/me/student" in text) == (0, True)
    assert hub.created == [{"repo": "me/student", "private": True, "exist_ok": True}]
    assert (sorted(hub.files), hub.commits) == (FILES, 1)
    assert hub.files["model.safetensors"] == b"weights"
    card = hub.files["README.md"].decode()
    assert "license: mit" in card
    assert "75.0 (" in card
    assert str(finished.place.parent.parent) not in card
    assert hub.token == TOKEN
    assert TOKEN not in text + card


def test_it_is_public_only_if_that_is_asked_for(
    finished: Artifact, vlsi: Command, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    vlsi("push-to-hub", "me/student", "--public", "--yes")
    assert hub.created[0]["private"] is False


def test_without_a_token_nothing_is_tried(finished: Artifact, vlsi: Command, hub: FakeHub) -> None:
    code, text = vlsi("push-to-hub", "me/student", "--yes", width=200)
    assert (code, "HF_TOKEN is not set" in text, hub.token) == (2, True, None)


def test_a_refusal_is_one_sentence_without_the_token(
    finished: Artifact, vlsi: Command, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refuses = True
    code, text = vlsi("push-to-hub", "me/student", "--yes", width=200)
    assert (code, "failed  me/student was not published: 403 for …\n" in text) == (1, True)
    assert TOKEN not in text


def test_a_damaged_student_is_not_published(
    finished: Artifact, vlsi: Command, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (Path(str(finished.path)) / "model.safetensors").write_bytes(b"Weights")
    code, text = vlsi("push-to-hub", "me/student", "--yes", width=200)
    assert (code, "is not what was committed" in text, hub.commits) == (1, True, 0)


def test_the_student_of_an_earlier_run_is_published(finished: Artifact, run: Run, ask_vlsi: Question) -> None:
    run("~variants", "reinforcement.schedule.steps=5")
    _, newest = ask_vlsi("push-to-hub", "me/student", "reinforcement.schedule.steps=5", "~variants")
    code, earlier = ask_vlsi("push-to-hub", "me/student", "--run", "digits~1")
    assert (code, earlier["url"], earlier["private"]) == (0, None, True)
    assert finished.manifest.fingerprint in earlier["card"]
    assert finished.manifest.fingerprint not in newest["card"]
    assert sorted(file["path"] for file in earlier["files"]) == FILES


def test_the_commit_is_that_of_the_run_that_made_it(finished: Artifact) -> None:
    made = Made.find(None, ["~variants"])
    maker = made.maker(finished)
    assert maker is not None
    maker.origin = {GIT_COMMIT: "c0ffee", "git.dirty": "true"}
    assert "`c0ffee with changes`" in prepare_publishing("me/x", made, None).card


def test_the_student_stands_first_and_what_was_not_asked_is_left_out(finished: Artifact) -> None:
    made = Session.open(["~variants"]).artifacts()
    evaluations = {"teacher": made["evaluation@teacher"], "vlsi": made["evaluation"], "other": made["reinforcement"]}
    rows = card_scores(evaluations)
    assert [row.label for row in rows] == ["VLsI", "teacher"]
    assert rows[0].by_task["overall"].value == 0.75
    assert rows[0].by_task["read"].value == 0.5
    assert rows[0].by_task["overall"].low < 0.75 < rows[0].by_task["overall"].high
    json.dumps([row.by_task for row in rows])


@pytest.mark.parametrize("repo", ["student", "a/b/c", "../x", "me/"])
def test_a_repository_has_an_owner_and_a_name(vlsi: Command, repo: str) -> None:
    code, text = vlsi("push-to-hub", repo)
    assert (code, "write owner/name" in text) == (2, True)
