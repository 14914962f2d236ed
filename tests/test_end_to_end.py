"""The command `vlsi` on real stages: every stage a process, from tiny checkpoints to scores, twice."""

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


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("vlsi")
    samples = tiny.save_samples(root / "data")
    schedule = {"steps": 3, "batch_size": 4, "micro_batch_size": 2}
    return [
        "~variants",
        "prepare=null",
        f"store={root / 'store'}",
        f"teacher.path={tiny.save_qwen2vl(root / 'teacher', width=32, layers=5, pad_rows=5, seed=0)}",
        f"student.path={tiny.save_qwen2vl(root / 'student', width=16, layers=4, pad_rows=2, seed=1)}",
        "teacher.target_layers=[0,1,3]",
        "student.target_layers=[0,2]",
        f"data.train={samples}",
        f"data.test={samples}",
        *(f"{stage}.schedule.{key}={value}" for stage in TRAINED for key, value in schedule.items()),
        *(f"executor.resources.{stage}.workers=0" for stage in STAGES),
    ]


def vlsi(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "VLSI", "RAY_ADD"))}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"}, check=False
    )


@pytest.mark.timeout(900)
def test_a_run_makes_everything_and_the_next_one_nothing(overrides: list[str]) -> None:
    store = Path(overrides[2].partition("=")[2])
    first = vlsi("run", *overrides)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "VLsI" in first.stdout
    manifests = {path: path.read_text() for path in store.glob("*/*/manifest.json")}
    assert sorted({path.parents[1].name for path in manifests}) == sorted(STAGES)
    assert all(json.loads(text)["run"] for text in manifests.values())
    (student,) = (store / "reinforcement").iterdir()
    assert AutoModelForImageTextToText.from_pretrained(student).config.model_type == "qwen2_vl"
    second = vlsi("run", *overrides)
    assert second.returncode == 0, second.stdout + second.stderr
    assert {path: path.read_text() for path in store.glob("*/*/manifest.json")} == manifests

    job = vlsi("job", "interaction", *overrides)
    job_file = store / "job.json"
    job_file.write_text(job.stdout)
    by_hand = [sys.executable, "-m", "stages.interaction", "--job", str(job_file), "--output", str(store / "by-hand")]
    subprocess.run(by_hand, check=True, capture_output=True)
    (made,) = (store / "interaction").iterdir()
    assert (store / "by-hand" / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
