"""Capture goes on at a shard: what was written before an interruption is kept and not computed again."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages import capture, shards
from stages.cache.reader import CacheReader
from stages.contract import Job, open_artifact
from stages.contract.files import STATES_FOLDER
from stages.contract.job import execute
from tests.stages import tiny


def test_an_interrupted_capture_computes_only_the_missing_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model": {"dtype": "float32"}, "fraction": 1.0, "shard_samples": 4, "target_layers": [0]}
    inputs = {
        "teacher": str(tiny.save_qwen2vl(tmp_path / "teacher", width=16, layers=2, pad_rows=2, seed=0)),
        "samples": str(tiny.save_samples(tmp_path / "data")),
    }
    output = tmp_path / "capture"
    job = Job(stage="capture", settings=settings, inputs=inputs, output=str(output), resources={"workers": 0})
    write, written = shards.write_table, []

    def dies_at_the_third(path: Path, *rest: object) -> object:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return write(path, *rest)

    monkeypatch.setattr(shards, "write_table", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        execute(job, capture.run)
    assert open_artifact(output) is None
    again = []
    monkeypatch.setattr(shards, "write_table", lambda path, *rest: (again.append(path.name), write(path, *rest))[1])
    execute(job, capture.run)
    assert written == ["shard-000000.parquet", "shard-000001.parquet"]
    assert again == ["shard-000002.parquet"]
    assert CacheReader(output / STATES_FOLDER).ids == [f"sample-{index}" for index in range(12)]
