"""The stages with their artifacts in an object store: the same rows, the same repairs, whatever fails on the way."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.cache.reader import CacheReader
from stages.cache.shard import Row
from stages.contract import ArtifactError, Job, open_artifact
from stages.contract import place as places_module
from stages.contract.artifact import prepare_work
from stages.contract.files import QUARANTINE_FILE, STATES_FOLDER
from stages.contract.job import execute
from stages.contract.place import Place, Remote, files_below, place_of
from tests.object_store import BUCKET, Server
from tests.stages import tiny
from tests.stages.test_bad_input import CORPUS, capture, write_corpus
from tests.stages.test_chain import FLOAT32, SCHEDULE, largest_difference
from tests.stages.test_integrity import FOLDERS, SETTINGS

INPUTS = {
    "capture": ("teacher", "samples"),
    "verbalization": ("capture", "student", "samples"),
    "precompute": ("capture", "verbalization", "teacher", "student", "samples"),
    "interaction": ("student", "samples", "verbalization", "precompute"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("places")
    return {
        "teacher": str(tiny.save_qwen2vl(root / "teacher", width=32, layers=5, pad_rows=5, seed=0)),
        "student": str(tiny.save_qwen2vl(root / "student", width=16, layers=4, pad_rows=2, seed=1)),
        "samples": str(tiny.save_samples(root / "data", count=48)),
    }


@pytest.fixture(scope="module")
def captured(places: dict[str, str], store: Server) -> Job:
    """One that is done; whoever damages its artifact repairs it."""
    job = make_job("capture", places, Remote(f"s3://{BUCKET}/captured"))
    run(job)
    return job


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places_module.COPIES_VARIABLE, str(tmp_path / "copies"))


def make_job(stage: str, places: dict[str, str], output: Place, **changes: object) -> Job:
    settings = SETTINGS.get(stage, {"model": FLOAT32, "schedule": SCHEDULE}) | changes
    inputs = {name: places[name] for name in INPUTS[stage]}
    return Job(stage=stage, settings=settings, inputs=inputs, output=str(output), resources={"workers": 0})


def run(job: Job) -> str:
    execute(job, importlib.import_module(f"stages.{job.stage}").run)
    return job.output


def rows(where: str, stage: str = "capture") -> list[Row]:
    artifact = open_artifact(place_of(where))
    assert artifact is not None
    artifact.verify()
    return read_all(artifact.path / FOLDERS[stage])


def read_all(folder: Place) -> list[Row]:
    reader = CacheReader(folder)
    return [reader.read(sample_id) for sample_id in reader.ids]


def make_all(places: dict[str, str], root: Place) -> dict[str, str]:
    """Capture to reinforcement."""
    made = dict(places)
    layers = {"target_layers": [0, 2]}
    for stage, changes in (("capture", {}), ("verbalization", layers), ("precompute", {}), ("interaction", {})):
        made[stage] = run(make_job(stage, made, root / stage, **changes))
    inputs = {"student": made["interaction"], "samples": made["samples"]}
    settings = {"model": FLOAT32, "schedule": SCHEDULE}
    made["reinforcement"] = str(root / "reinforcement")
    job = {"stage": "reinforcement", "settings": settings, "inputs": inputs, "output": made["reinforcement"]}
    run(Job(**job, resources={"workers": 0}))
    return made


@pytest.mark.usefixtures("copies")
def test_the_whole_chain_gives_the_same_student_from_an_object_store(
    places: dict[str, str], bucket: Remote, tmp_path: Path
) -> None:
    here, there = make_all(places, tmp_path), make_all(places, bucket / tmp_path.name)
    for stage in ("capture", "precompute"):
        assert rows(here[stage], stage) == rows(there[stage], stage)
    student = places_module.local_copy(place_of(there["reinforcement"]))
    assert largest_difference(Path(here["reinforcement"]), student) == 0.0
    names = [set(files_below(place_of(made["interaction"]))) for made in (here, there)]
    assert names[0] == names[1]


@pytest.mark.parametrize("stage", ["capture", "precompute"])
@pytest.mark.usefixtures("copies")
def test_kills_lose_no_row_and_put_no_shard_twice(
    places: dict[str, str], bucket: Remote, store: Server, tmp_path: Path, stage: str
) -> None:
    """Ten kills over both stages, while one request in twenty fails."""
    made = dict(places)
    if stage == "precompute":
        made["capture"] = run(make_job("capture", made, tmp_path / "capture"))
        made["verbalization"] = run(make_job("verbalization", made, tmp_path / "verbalization", target_layers=[0, 2]))
    straight = run(make_job(stage, made, tmp_path / "straight"))
    job = make_job(stage, made, bucket / tmp_path.name)
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    store.faults(errors=0.05)
    try:
        command = [sys.executable, "-m", "tests.stages.kills", str(file), "7", "5"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    finally:
        assert store.faults(errors=0.0) > 0
    assert done.returncode == 0, done.stderr[-2000:]
    history = json.loads(done.stdout.splitlines()[-1])
    assert len(history) == 6
    for step in history:
        assert [path for path, count in step["before"].items() if step["after"][path] != count] == []
    assert any(0 < len(step["after"]) < 24 for step in history), "no kill came while shards were being made"
    assert rows(job.output, stage) == rows(straight, stage)
    puts = {path: count for path, count in store.puts(tmp_path.name).items() if "/shard-" in path}
    assert len(puts) == 24
    assert set(puts.values()) == {1}


def test_bad_input_is_quarantined_as_it_is_on_this_machine(
    places: dict[str, str], bucket: Remote, tmp_path: Path
) -> None:
    samples = write_corpus(tmp_path / "data")
    here = capture(Path(places["teacher"]), samples, tmp_path / "captured")
    there = capture(Path(places["teacher"]), samples, bucket / tmp_path.name)
    assert rows(str(here)) == rows(str(there))
    assert (here / QUARANTINE_FILE).read_text() == (there / QUARANTINE_FILE).read_text()
    assert len((here / QUARANTINE_FILE).read_text().splitlines()) == len(CORPUS)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: data[:400] + bytes([data[400] ^ 4]) + data[401:], None],
    ids=["truncated", "flipped", "missing"],
)
def test_a_damaged_shard_is_named_and_it_alone_is_made_again(
    captured: Job, store: Server, damage: Callable[[bytes], bytes] | None
) -> None:
    whole = rows(captured.output)
    victim = place_of(captured.output) / STATES_FOLDER / "shard-000003.parquet"
    assert isinstance(victim, Remote)
    if damage is None:
        victim.unlink()
    else:
        data = damage(victim.read_bytes())
        with victim.filesystem.open_output_stream(victim.key) as file:
            file.write(data)
        with pytest.raises(ArtifactError, match=r"shard-000003\.parquet"):
            rows(captured.output)
        with pytest.raises(ArtifactError, match=r"shard-000003\.parquet.*set aside"):
            read_all(victim.parent)
    before = store.puts("captured")
    assert rows(run(captured)) == whole
    after = store.puts("captured")
    assert [path for path in after if "/shard-" in path and after[path] != before.get(path)] == [f"/{victim.key}"]


def test_requests_that_fail_while_a_cache_is_read_damage_nothing(captured: Job, store: Server) -> None:
    """One in ten. Red if a shard that could not be reached counts as damaged and is set aside."""
    whole, files = rows(captured.output), files_below(place_of(captured.output))
    before = store.faults(errors=0.1)
    try:
        assert read_all(place_of(captured.output) / STATES_FOLDER) == whole
    finally:
        assert store.faults(errors=0.0) > before
    assert files_below(place_of(captured.output)) == files


def test_a_forced_attempt_leaves_the_old_result_until_it_is_whole(
    places: dict[str, str], bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: from the place itself to the folder beside it, and back."""
    job = make_job("capture", places, bucket / tmp_path.name)
    first = rows(run(job))
    roots = []
    for _ in range(2):
        forced = job.model_copy(update={"force": True})
        work = prepare_work(place_of(job.output), fresh=True, identity=job.fingerprint)
        (work / STATES_FOLDER / "shard-000000.parquet").write_text("half")
        assert rows(job.output) == first
        assert rows(run(forced)) == first
        artifact = open_artifact(place_of(job.output))
        assert artifact is not None
        roots.append(artifact.manifest.root)
        assert set(files_below(artifact.place)) == {
            "manifest.json",
            *(f"{roots[-1]}/{file.path}".lstrip("/") for file in artifact.manifest.files),
        }
    assert roots == ["again", ""]


def test_of_two_processes_one_works_and_both_have_the_artifact(
    places: dict[str, str], bucket: Remote, store: Server, tmp_path: Path
) -> None:
    """Red if both work, one fails, or the second starts anew."""
    job = make_job("capture", places, bucket / tmp_path.name)
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    command = [sys.executable, "-m", "stages.capture", "--job", str(file)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert sum("waiting for process" in errors for _, errors in ended) == 1, ended
    assert len(rows(job.output)) == 48
    puts = {path: count for path, count in store.puts(tmp_path.name).items() if "/shard-" in path}
    assert set(puts.values()) == {1}
