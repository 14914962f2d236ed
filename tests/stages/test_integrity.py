"""Caches survive kills and flipped bits: rows are complete and right, and finished shards are not made again."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from stages.cache.reader import CacheReader
from stages.cache.shard import Row
from stages.contract import Job, StageError
from stages.contract.files import STATES_FOLDER, TARGETS_FOLDER
from stages.contract.job import execute
from tests.stages import tiny
from tests.stages.test_chain import FLOAT32, SCHEDULE, Chain, start_chain

KILLS = 10
"""Over capture and precompute together."""
FOLDERS = {"capture": STATES_FOLDER, "precompute": TARGETS_FOLDER}
SETTINGS = {
    "capture": {"model": FLOAT32, "target_layers": [0, 1, 3], "fraction": 1.0, "shard_samples": 2},
    "precompute": {"model": FLOAT32, "codec": "sampled", "shard_samples": 2},
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    chain = start_chain(tmp_path_factory.mktemp("integrity"), "qwen2_vl")
    chain.places["samples"] = tiny.save_samples(chain.root / "more", count=48)
    return chain


def rows(artifact: Path, stage: str) -> list[Row]:
    reader = CacheReader(artifact / FOLDERS[stage])
    return [reader.read(sample_id) for sample_id in reader.ids]


def run(chain: Chain, stage: str, name: str) -> Path:
    return chain.run(stage, name=name, **SETTINGS[stage])


@pytest.mark.parametrize(("stage", "kills"), [("capture", KILLS // 2), ("precompute", KILLS - KILLS // 2)])
def test_kills_lose_no_row_and_no_finished_shard(chain: Chain, stage: str, kills: int) -> None:
    """Row by row what an undisturbed run makes. Red if a torn shard counts as made, or a whole one is made twice."""
    straight = run(chain, stage, f"{stage}-straight")
    names = (
        ("teacher", "samples") if stage == "capture" else ("capture", "verbalization", "teacher", "student", "samples")
    )
    job = Job(
        stage=stage,
        settings=SETTINGS[stage],
        inputs={name: str(chain.places[name]) for name in names},
        output=str(chain.root / "killed" / stage),
        resources={"workers": 0},
    )
    file = chain.root / f"{stage}.json"
    file.write_text(job.model_dump_json())
    command = [sys.executable, "-m", "tests.stages.kills", str(file), "7", str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    history = json.loads(done.stdout.splitlines()[-1])
    assert len(history) == kills + 1, "the stage ended before it was killed often enough"
    for step in history:
        made_again = [name for name, inode in step["before"].items() if step["after"].get(name) != inode]
        assert made_again == [], made_again
    assert any(0 < len(step["after"]) < 24 for step in history), "no kill came while shards were being made"
    assert rows(Path(job.output), stage) == rows(straight, stage)
    summaries = [json.loads((place / "manifest.json").read_text())["summary"] for place in (straight, Path(job.output))]
    assert all(summary.pop("peak_memory_bytes") for summary in summaries)
    assert summaries[0] == summaries[1]


def test_a_flipped_bit_is_named_and_that_shard_alone_is_made_again(chain: Chain) -> None:
    cache = run(chain, "precompute", "flipped")
    whole, shards = rows(cache, "precompute"), sorted((cache / TARGETS_FOLDER).iterdir())
    inodes = {path.name: path.stat().st_ino for path in shards}
    victim = shards[3]
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 4
    victim.write_bytes(bytes(data))
    chain.places["precompute"], kept = cache, chain.places["precompute"]
    try:
        with pytest.raises(StageError, match=r"shard-000003\.parquet.*the next run makes it anew"):
            chain.run("interaction", name="on-flipped", model=FLOAT32, schedule=SCHEDULE | {"epochs": 4, "steps": None})
    finally:
        chain.places["precompute"] = kept
    assert run(chain, "precompute", "flipped") == cache
    after = {path.name: path.stat().st_ino for path in (cache / TARGETS_FOLDER).glob("*.parquet")}
    assert {name for name in inodes if after[name] != inodes[name]} == {victim.name}
    assert rows(cache, "precompute") == whole


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_truncated_or_missing_shard_is_made_again(chain: Chain, damage: str) -> None:
    cache = run(chain, "precompute", damage)
    whole = rows(cache, "precompute")
    victim = sorted((cache / TARGETS_FOLDER).iterdir())[5]
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-100])
    job = json.loads((cache / "job.json").read_text())
    manifest = execute(Job.model_validate(job), importlib.import_module("stages.precompute").run)
    assert rows(cache, "precompute") == whole
    assert manifest.summary["rows"] == len(whole) == 48
