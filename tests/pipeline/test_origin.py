"""What a run says of the code and the machine it comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline import origin


def test_code_and_machine_are_described() -> None:
    described = origin.describe_origin()
    assert {"host", "mlflow.user", "mlflow.source.name", "hardware.cpu", "hardware.gpus"} <= set(described)
    assert int(described["hardware.cores"]) >= 1
    assert all(described.values())


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that holds the package."""
    package = tmp_path / "pipeline"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(origin, "__file__", str(package / "origin.py"))
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q", "-b", "trunk"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return package


def test_a_checkout_is_named_by_commit_and_state(checkout: Path) -> None:
    clean = origin._code.__wrapped__()
    assert (len(clean[origin.GIT_COMMIT]), clean["mlflow.source.git.branch"], clean["git.dirty"]) == (
        40,
        "trunk",
        "false",
    )
    (checkout / "__init__.py").write_text("changed = True")
    assert origin._code.__wrapped__()["git.dirty"] == "true"


def test_without_a_checkout_the_version_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "origin.py"))
    described = origin._code.__wrapped__()
    assert origin.GIT_COMMIT not in described
    assert "version.python" in described


def test_a_program_that_fails_or_is_not_there_says_nothing() -> None:
    assert origin._ask("no-such-program-at-all") == ""
    assert origin._ask("git", "no-such-command") == ""
