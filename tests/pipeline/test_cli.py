"""The command line: what it prints, how it ends, and what it does not load."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import cli
from pipeline.results import Scores
from pipeline.runner import Outcome
from pipeline.screen import show_scores
from tests.pipeline.conftest import Command, FakeExecutor, summary_of

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = "run plan status explain runs diff prepare sweep report job gc push pull chat push-to-hub verbalize".split()
HEAVY = ("torch", "transformers", "ray", "mlflow", "matplotlib")


def test_a_run_shows_scores_times_files_and_what_is_next(vlsi: Command) -> None:
    code, text = vlsi("run", "tracking.enabled=false")
    assert code == 0
    for expected in ("small backbone", "last-layer-kd", "VLsI", "65.0", "no artifact yet", "Try next:", "report  "):
        assert expected in text
    code, text = vlsi("run", "tracking.enabled=false")
    assert (code, text.count("reused")) == (0, 28)


def test_status_and_dry_run_run_nothing(vlsi: Command, executor: FakeExecutor) -> None:
    code, text = vlsi("run", "--dry-run", "--force", "experiment=digits")
    assert (code, "forced" in text) == (0, True)
    code, text = vlsi("status")
    assert (code, "14 of 14 would run: vlsi run experiment=digits" in text) == (0, True)
    assert executor.jobs == []


def test_explain_names_the_field(vlsi: Command, run: Callable[..., Outcome]) -> None:
    run()
    code, text = vlsi("explain", "interaction", "interaction.schedule.learning_rate=5e-5")
    assert code == 0
    assert re.search(r"interaction is stale: interaction\.schedule\.learning_rate \S+ → 5e-5\n", text)
    code, text = vlsi("explain", "reinforcement", "interaction.schedule.learning_rate=5e-5")
    assert "reinforcement is stale because interaction is" in text
    code, text = vlsi("explain", "evaluation@teacher")
    assert "up to date: made in" in text


def test_a_failure_shows_its_message_and_ends_with_1(vlsi: Command, executor: FakeExecutor) -> None:
    executor.failing = {"interaction"}
    code, text = vlsi("run", "tracking.enabled=false", "~variants")
    assert code == 1
    assert "interaction failed: interaction: out of luck" in text
    assert "not tried: interaction failed" in text
    assert "Go on with: vlsi run tracking.enabled=false ~variants" in text


@pytest.mark.parametrize(
    "command", [["run"], ["status"], ["explain", "interaction"], ["prepare"], ["plan"], ["job", "capture"]]
)
def test_a_configuration_that_is_not_valid_ends_with_2(vlsi: Command, command: list[str]) -> None:
    code, text = vlsi(*command, "interaction.lr=1")
    assert code == 2
    assert "interaction.lr: unknown key; did you mean interaction.schedule.learning_rate?" in text


def test_a_job_is_what_the_stage_reads(vlsi: Command) -> None:
    code, text = vlsi("job", "interaction")
    assert (code, json.loads(text)["stage"]) == (0, "interaction")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_to_type_next(vlsi: Command, command: str) -> None:
    code, text = vlsi(command, "--help")
    text = " ".join(text.split())
    assert code == 0
    assert "Exit codes: 0 done" in text
    assert "Try: vlsi" in text or "Then: vlsi" in text


def test_force_alone_means_everything() -> None:
    assert cli._complete_force(["run", "--force"]) == ["run", "--force", "all"]
    assert cli._complete_force(["run", "--force", "seed=1"]) == ["run", "--force", "all", "seed=1"]
    assert cli._complete_force(["run", "--force", "--dry-run"]) == ["run", "--force", "all", "--dry-run"]
    assert cli._complete_force(["run", "--force", "capture"]) == ["run", "--force", "capture"]


def test_the_table_fits_into_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    by_task = {task: entry["accuracy"] for task, entry in summary_of("evaluation")["by_task"].items()}
    names = ("backbone", "last-layer-kd", "vlsi")
    show_scores(Console(width=100), [Scores(name, 1.0, by_task, 1000) for name in names])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "100.0" in text


@pytest.mark.parametrize("by_task", [{}, {"": 0.5}])
def test_the_table_needs_no_kinds_of_question(by_task: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    show_scores(Console(width=100), [Scores("vlsi", 0.5, by_task, 10)])
    text = capsys.readouterr().out
    assert "overall" in text
    assert "50.0" in text


def test_asking_and_running_nothing_load_nothing_heavy(run: Callable[..., Outcome]) -> None:
    run()
    program = (
        "import sys, pipeline.cli\n"
        "plan = ['plan', 'experiment=qwen2vl-2b-from-7b']\n"
        "for arguments in (['status'], ['run'], ['explain', 'interaction'], plan):\n"
        "    sys.argv = ['vlsi', *arguments]\n"
        "    try:\n        pipeline.cli.main()\n"
        "    except SystemExit as ended:\n        assert not ended.code\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert "would run" not in done.stdout


PROGRAM = """
import resource, sys
opened, listed = [], []

def watch(event, details):
    if event == "open":
        opened.append(str(details[0]))
    elif event in ("os.scandir", "os.listdir"):
        listed.append(str(details[0]))

sys.addaudithook(watch)
import pipeline.cli

sys.argv = ["vlsi", *sys.argv[2:]]
try:
    pipeline.cli.main()
except SystemExit as ended:
    assert not ended.code
used = resource.getrusage(resource.RUSAGE_SELF)
found = {
    "opened": [path for path in opened if "/store/" in path],
    "listed": [path for path in listed if "/store/" in path],
    "loaded": [name for name in ("pyarrow", "PIL", "stages.data.sample") if name in sys.modules],
    "cpu_seconds": used.ru_utime + used.ru_stime,
}
import json

print(json.dumps(found))
"""


def draw_pictures(store: Path) -> None:
    """A data set with many pictures."""
    prepared = store / "prepared" / "digits"
    sample = json.loads((prepared / "train.jsonl").read_text())
    pictures = [f"images/{number}.png" for number in range(500)]
    for picture in pictures:
        (prepared / picture).write_bytes(picture.encode())
    lines = (json.dumps({**sample, "id": picture, "images": [picture]}) for picture in pictures)
    (prepared / "train.jsonl").write_text("\n".join(lines))


def crowd(store: Path) -> None:
    """More artifacts and runs than one experiment has."""
    (artifact,) = (store / "capture").iterdir()
    (record,) = (store / "runs" / "digits").iterdir()
    for number in range(300):
        shutil.copytree(artifact, artifact.with_name(f"{number:016x}"))
        shutil.copy(record, record.with_name(f"{number:012d}-{number:08x}.json"))


@pytest.mark.parametrize("command", ["status", "run"])
def test_with_nothing_to_do_little_is_read_however_much_there_is(
    world: Path, run: Callable[..., Outcome], command: str
) -> None:
    draw_pictures(world / "store")
    run("~variants")
    crowd(world / "store")
    arguments = [sys.executable, "-c", PROGRAM, "vlsi", command, "~variants", "tracking.enabled=false"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(arguments, cwd=world, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] == []
    assert len(found["opened"]) < 60, found["opened"]
    assert len(found["listed"]) < 60, found["listed"]
    assert not [path for path in found["opened"] if path.endswith((".png", ".safetensors", ".bin"))]
    assert found["cpu_seconds"] < 15
