"""Real stages on a disk that is full: one sentence, no artifact, and the next start goes on from what is finished."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stages.contract import Job, open_artifact, read_journal
from stages.contract.artifact import work_folder
from stages.contract.job import main
from tests.stages import tiny
from tests.stages.contract.test_failures import KEPT, fail_from
from tests.stages.test_chain import FLOAT32, SCHEDULE

SETTINGS = {
    "capture": {"model": FLOAT32, "target_layers": [0, 1, 3], "fraction": 1.0, "shard_samples": 2},
    "reinforcement": {"model": FLOAT32, "schedule": SCHEDULE},
}
MODELS = {"capture": "teacher", "reinforcement": "student"}
FIRST_FILES = 5
"""Of a stage: the owner's mark, the job, the journal; then two shards, or a checkpoint with its record."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("places")
    return {
        "teacher": str(tiny.save_qwen2vl(root / "teacher", width=32, layers=5, pad_rows=5, seed=0)),
        "student": str(tiny.save_qwen2vl(root / "student", width=16, layers=4, pad_rows=2, seed=1)),
        "samples": str(tiny.save_samples(root / "data")),
    }


@pytest.mark.parametrize("stage", SETTINGS)
def test_a_full_disk_stops_a_stage_with_a_sentence_and_costs_nothing_that_was_finished(
    places: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str], stage: str
) -> None:
    output = tmp_path / stage
    inputs = {name: places[name] for name in (MODELS[stage], "samples")}
    job = Job(stage=stage, settings=SETTINGS[stage], inputs=inputs, output=str(output), resources={"workers": 0})
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    with pytest.MonkeyPatch.context() as disk:
        fail_from(FIRST_FILES + 1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), disk)
        assert main(stage, ["--job", str(file)]) == 1
    said = capfd.readouterr().err
    assert f"{stage}: {output}: no space left on device; free some space, and {KEPT}" in said
    assert open_artifact(output) is None
    finished = {path: path.stat().st_ino for path in work_folder(output).rglob("shard-*.parquet")}
    assert main(stage, ["--job", str(file)]) == 0
    artifact = open_artifact(output)
    assert artifact is not None
    artifact.verify()
    assert all((output / path.relative_to(work_folder(output))).stat().st_ino == finished[path] for path in finished)
    steps = [line["step"] for line in read_journal(output)]
    assert steps == sorted(set(steps))
