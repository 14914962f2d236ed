"""The command `vlsi` on real stages: every stage a process, from small checkpoints to scores, twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from tests.stages import tiny

TRAINED = ("verbalization", "interaction", "reinforcement")
STAGES = ("capture", *TRAINED[:1], "precompute", *TRAINED[1:], "evaluation")
MEMORY_TOLERANCE = 0.15


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of an experiment with models that weigh something against the process that holds them."""
    root = tmp_path_factory.mktemp("vlsi")
    samples = tiny.save_samples(root / "data", count=48)
    schedule = {"steps": 3, "batch_size": 16, "learning_rate": 1e-2}
    return [
        "~variants",
        "prepare=null",
        f"store={root / 'store'}",
        f"teacher.path={tiny.save_qwen2vl(root / 'teacher', width=768, layers=5, pad_rows=5, seed=0)}",
        f"student.path={tiny.save_qwen2vl(root / 'student', width=512, layers=5, pad_rows=2, seed=1)}",
        "teacher.target_layers=[0,1,3]",
        "student.target_layers=[0,2]",
        f"data.train={samples}",
        f"data.test={samples}",
        "evaluation.max_new_tokens=4",
        *(f"{stage}.schedule.{key}={value}" for stage in TRAINED for key, value in schedule.items()),
        *(f"executor.resources.{stage}.workers=0" for stage in STAGES),
    ]


@pytest.fixture(scope="module")
def store(overrides: list[str]) -> Path:
    """After a run."""
    first = vlsi("run", *overrides)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "VLsI" in first.stdout
    return Path(overrides[2].partition("=")[2])


def vlsi(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "VLSI", "RAY_ADD"))}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"}, check=False
    )


@pytest.mark.timeout(900)
def test_a_run_makes_everything_and_the_next_one_nothing(overrides: list[str], store: Path) -> None:
    manifests = {path: path.read_text() for path in store.glob("*/*/manifest.json")}
    assert sorted({path.parents[1].name for path in manifests}) == sorted(STAGES)
    assert all(json.loads(text)["run"] for text in manifests.values())
    (student,) = (store / "reinforcement").iterdir()
    assert AutoModelForImageTextToText.from_pretrained(student).config.model_type == "qwen2_vl"
    second = vlsi("run", *overrides)
    assert second.returncode == 0, second.stdout + second.stderr
    assert {path: path.read_text() for path in store.glob("*/*/manifest.json")} == manifests


@pytest.mark.timeout(900)
def test_a_stage_by_hand_makes_the_same_bytes(overrides: list[str], store: Path) -> None:
    job = vlsi("job", "interaction", *overrides)
    job_file = store / "job.json"
    job_file.write_text(job.stdout)
    by_hand = [sys.executable, "-m", "stages.interaction", "--job", str(job_file), "--output", str(store / "by-hand")]
    subprocess.run(by_hand, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (made,) = (store / "interaction").iterdir()
    assert (store / "by-hand" / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


@pytest.mark.timeout(900)
def test_memory_of_every_stage_is_what_is_planned(overrides: list[str], store: Path) -> None:
    said = vlsi("plan", "--json", "--no-rehearse", *overrides)
    assert said.returncode == 0, said.stderr
    planned = {name: stage["peak_bytes"] for name, stage in json.loads(said.stdout)["stages"].items()}
    peaks = {}
    for stage in planned:
        (manifest,) = (store / stage).glob("*/manifest.json")
        peaks[stage] = json.loads(manifest.read_text())["summary"]["peak_memory_bytes"]
    assert set(planned) == set(STAGES) - {"evaluation"}
    assert max(planned.values()) > 1.2 * min(planned.values())
    assert planned == pytest.approx(peaks, rel=MEMORY_TOLERANCE)
