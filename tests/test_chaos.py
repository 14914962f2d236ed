"""Whatever is killed, and however often: the run ends with what an undisturbed one ends with."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from stages.contract import read_journal
from stages.contract.files import PREDICTIONS_FOLDER, QUARANTINE_FILE, STATES_FOLDER, TARGETS_FOLDER
from tests.chaos import Kill
from tests.stages import tiny

TRAINED = ("verbalization", "interaction", "reinforcement")
IN_SHARDS = {"capture": STATES_FOLDER, "precompute": TARGETS_FOLDER, "evaluation": PREDICTIONS_FOLDER}
STAGES = ("capture", "verbalization", "precompute", "interaction", "reinforcement", "evaluation")
ON_RAY = {"capture": "actor", "interaction": "worker"}
TARGETS = ("driver", "both", "stage")
SCHEDULE = {"steps": 12, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every_steps": 3}
SAMPLES = 12
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}
MOST_CALLS = 3000
"""About those of a step or a shard."""
WHAT_A_CLOCK_SAYS = ("time", "samples_per_second", "tokens_per_second", "seconds_waiting", "memory_gb")
OF_THE_RUN = ("peak_memory_bytes", "waiting_share")


def plan(count: int, seed: int) -> list[Kill]:
    """So many kills over all stages, in their order; those that the stage may outlive come last."""
    source, lasts = random.Random(seed), cycle(TARGETS)
    kills = []
    for place, stage in enumerate(STAGES):
        targets = [source.choice(("both", "stage")) for _ in range(place, count, len(STAGES))]
        if targets:
            targets[-1] = ON_RAY.get(stage) or next(lasts)
        kills += [
            Kill(stage, target, line=source.randint(1, SAMPLES // 3), calls=source.randint(0, MOST_CALLS))
            for target in targets
        ]
    return kills


def save_samples(folder: Path) -> Path:
    """And one whose picture is gone."""
    file = tiny.save_samples(folder, count=SAMPLES)
    lost = json.loads(file.read_text().splitlines()[0]) | {"id": "lost", "images": ["images/gone.png"]}
    with file.open("a") as lines:
        lines.write(json.dumps(lost) + "\n")
    return file


def overrides(root: Path, store: Path) -> list[str]:
    return [
        "~variants",
        "prepare=null",
        "tracking.enabled=false",
        f"store={store}",
        f"teacher.path={root / 'teacher'}",
        f"student.path={root / 'student'}",
        "teacher.target_layers=[0,1,3]",
        "student.target_layers=[0,2]",
        f"data.train={root / 'data' / 'samples.jsonl'}",
        f"data.test={root / 'data' / 'samples.jsonl'}",
        "data.preprocessing.max_bad_fraction=0.2",
        "evaluation.max_new_tokens=8",
        "executor.parallel_stages=1",
        *(f"{stage}.shard_samples=1" for stage in IN_SHARDS),
        *(f"{stage}.schedule.{key}={value}" for stage in TRAINED for key, value in SCHEDULE.items()),
        *(f"executor.resources.{stage}.workers=0" for stage in STAGES),
    ]


@pytest.fixture(scope="module")
def kills(request: pytest.FixtureRequest) -> list[Kill]:
    return plan(request.config.getoption("--kills"), seed=0)


@pytest.fixture(scope="module")
def stores(kills: list[Kill], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """One of an undisturbed run, and one of a run that was killed."""
    root = tmp_path_factory.mktemp("chaos")
    tiny.save_qwen2vl(root / "teacher", width=32, layers=5, pad_rows=5, seed=0)
    tiny.save_qwen2vl(root / "student", width=16, layers=4, pad_rows=2, seed=1)
    save_samples(root / "data")
    undisturbed, disturbed = root / "undisturbed", root / "disturbed"
    told = {
        "undisturbed": overrides(root, undisturbed),
        "disturbed": overrides(root, disturbed),
        "kills": [asdict(kill) for kill in kills],
    }
    (root / "plan.json").write_text(json.dumps(told))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "VLSI", "RAY_ADD"))}
    command = [sys.executable, "-m", "tests.chaos", str(root / "plan.json")]
    chaos = subprocess.Popen(command, env=environment | ENVIRONMENT)
    try:
        assert chaos.wait(300 + 100 * len(kills)) == 0
        yield undisturbed, disturbed
    finally:
        if chaos.poll() is None:
            for process in psutil.Process(chaos.pid).children(recursive=True):
                process.kill()
            chaos.kill()


def artifacts(store: Path, stage: str) -> list[Path]:
    return sorted(path.parent for path in (store / stage).glob("*/manifest.json"))


def summary(artifact: Path) -> dict[str, Any]:
    said = json.loads((artifact / "manifest.json").read_text())["summary"]
    return {key: value for key, value in said.items() if key not in OF_THE_RUN}


def tensors(file: Path) -> dict[str, bytes]:
    with safe_open(file, framework="np") as found:
        return {name: found.get_tensor(name).tobytes() for name in found.keys()}  # noqa: SIM118


def numbers(artifact: Path) -> list[dict[str, Any]]:
    lines = read_journal(artifact)
    return [{key: value for key, value in line.items() if key not in WHAT_A_CLOCK_SAYS} for line in lines]


@pytest.mark.timeout(3000)
class TestChaos:
    def test_every_stage_is_there_once(self, stores: tuple[Path, Path]) -> None:
        made = [[path.relative_to(store) for path in store.glob("*/*/manifest.json")] for store in stores]
        assert sorted(made[0]) == sorted(made[1])
        assert {path.parts[0] for path in made[0]} == set(STAGES)
        assert not list(stores[1].glob("*/*.partial"))

    def test_the_student_has_the_same_bytes(self, stores: tuple[Path, Path]) -> None:
        for stage in TRAINED:
            for pair in zip(*(artifacts(store, stage) for store in stores), strict=True):
                files = [sorted(path.name for path in artifact.glob("*.safetensors")) for artifact in pair]
                assert files[0] == files[1]
                for name in files[0]:
                    assert tensors(pair[0] / name) == tensors(pair[1] / name), f"{stage}/{name}"

    def test_scores_and_summaries_are_the_same(self, stores: tuple[Path, Path]) -> None:
        for stage in STAGES:
            one, other = ([summary(artifact) for artifact in artifacts(store, stage)] for store in stores)
            assert one == other, stage

    def test_caches_and_predictions_have_the_same_rows(self, stores: tuple[Path, Path]) -> None:
        for stage, folder in IN_SHARDS.items():
            for pair in zip(*(artifacts(store, stage) for store in stores), strict=True):
                one, other = (
                    {shard.name: pq.read_table(shard).to_pylist() for shard in (artifact / folder).glob("*.parquet")}
                    for artifact in pair
                )
                assert len(one) == SAMPLES + 1
                assert one == other, stage

    def test_the_same_samples_are_quarantined(self, stores: tuple[Path, Path]) -> None:
        for stage in STAGES:
            for pair in zip(*(artifacts(store, stage) for store in stores), strict=True):
                one, other = ((artifact / QUARANTINE_FILE).read_text() for artifact in pair)
                assert one == other, stage
        (artifact,) = artifacts(stores[1], "capture")
        assert "gone.png" in (artifact / QUARANTINE_FILE).read_text()

    def test_every_step_stands_once_in_the_journals(self, stores: tuple[Path, Path]) -> None:
        for stage in STAGES:
            for pair in zip(*(artifacts(store, stage) for store in stores), strict=True):
                one, other = (numbers(artifact) for artifact in pair)
                assert [line["step"] for line in one] == [line["step"] for line in other], stage
                if stage in TRAINED:
                    assert one == other, stage

    def test_one_record_tells_of_a_finished_run(self, stores: tuple[Path, Path]) -> None:
        (record,) = (stores[1] / "runs").glob("*/*.json")
        assert json.loads(record.read_text())["status"] == "finished"


@pytest.mark.parametrize("count", [6, 20])
def test_a_plan_reaches_every_stage_and_every_kind_of_process(count: int) -> None:
    kills = plan(count, seed=0)
    assert len(kills) == count
    assert {kill.stage for kill in kills} == set(STAGES)
    assert {kill.target for kill in kills} == {*TARGETS, *ON_RAY.values()}
