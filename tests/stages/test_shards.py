"""Shards: every sample that goes in is in a row or in the quarantine, and an index says what is where."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from stages.cache.table import described
from stages.contract import Job, StageError, read_journal
from stages.contract.files import SHARDS_FILE
from stages.contract.place import sha256_of
from stages.contract.quarantine import BadLine, read_quarantine
from stages.data.encoding import Encoded
from stages.data.sample import Sample
from stages.shards import ShardProgram, run_over_shards

SAMPLES = [Sample(f"s{index}", (), (), line=index + 2) for index in range(7)]
NO_SAMPLE = BadLine("line 1", 1, "invalid JSON")


def open_reader(job: Job):  # type: ignore[no-untyped-def]
    """Cannot read the third sample."""
    return lambda samples: ([], [BadLine(s.id, s.line, "torn") for s in samples if s.id == "s2"])


class Worker:
    """Writes the ids; finds the fifth sample's states not finite."""

    def __init__(self, job: Job, work: Path) -> None:
        pass

    def work(self, ids: list[str], encoded: list[Encoded], bad: list[BadLine]) -> pa.Table:
        if "s4" in ids:
            bad.append(BadLine("s4", 6, "not finite"))
        left_out = {line.id for line in bad}
        return described(pa.table({"id": [name for name in ids if name not in left_out]}), bad, {"response_tokens": 5})


class Forgetful(Worker):
    def work(self, ids: list[str], encoded: list[Encoded], bad: list[BadLine]) -> pa.Table:
        return super().work([name for name in ids if name != "s5"], encoded, bad)


def run(work: Path, worker: type[Worker] = Worker, **preprocessing: float) -> dict:
    settings = {"shard_samples": 3, "preprocessing": {"max_bad_fraction": 0.5} | preprocessing}
    inputs = {"teacher": "/teacher", "samples": "/samples"}
    job = Job(stage="capture", settings=settings, inputs=inputs, output="/output", resources={"workers": 0})
    return run_over_shards(job, work, ShardProgram("states", open_reader, worker), SAMPLES, [NO_SAMPLE])


def test_ids_in_are_ids_out_and_ids_quarantined(tmp_path: Path) -> None:
    totals = run(tmp_path)
    assert totals.pop("bytes") == sum(path.stat().st_size for path in (tmp_path / "states").iterdir())
    assert totals.pop("peak_memory_bytes") > 0
    assert totals == {"samples": 8, "rows": 5, "quarantined": 3, "response_tokens": 15, "shards": 3}
    quarantine = [(line.id, line.line, line.reason) for line in read_quarantine(tmp_path)]
    assert quarantine == [("line 1", 1, "invalid JSON"), ("s2", 4, "torn"), ("s4", 6, "not finite")]
    last = read_journal(tmp_path)[-1]
    assert (last["step"], last["total"], last["rows"], last["quarantined"]) == (7, 7, 5, 3)


def test_the_index_says_what_each_shard_holds(tmp_path: Path) -> None:
    run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / SHARDS_FILE).read_text().splitlines()]
    assert [(line["path"], line["samples"], line["rows"], line["bad"]) for line in lines] == [
        ("states/shard-000000.parquet", 3, 2, 1),
        ("states/shard-000001.parquet", 3, 2, 1),
        ("states/shard-000002.parquet", 1, 1, 0),
    ]
    assert [line["sha256"] for line in lines] == [sha256_of(tmp_path / line["path"]) for line in lines]


def test_a_sample_that_is_lost_stops_the_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"shard-000001\.parquet: samples \['s5'\] are neither in the shard nor quar"):
        run(tmp_path, Forgetful)


def test_too_many_bad_samples_stop_the_stage_at_once(tmp_path: Path) -> None:
    """The third one is found in the second shard; the third shard is not made."""
    with pytest.raises(StageError, match=r"3 samples cannot be used, .*max_bad_fraction allows 2; the first is line 1"):
        run(tmp_path, max_bad_fraction=0.3)
    assert len(list((tmp_path / "states").iterdir())) == 2


def test_the_log_counts_and_names_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    assert "capture: 3 samples quarantined in" in (printed := capsys.readouterr().out)
    assert "s2 (line 4): torn" in printed
