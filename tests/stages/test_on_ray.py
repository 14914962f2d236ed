"""The same stages on a real Ray: actors of Ray Data and workers of Ray Train do what one process does."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.cache.reader import CacheReader
from stages.cache.shard import Row
from stages.contract import Job, StageError, open_artifact, read_journal
from stages.contract.artifact import work_folder
from stages.contract.files import QUARANTINE_FILE, STATES_FOLDER
from stages.contract.job import execute
from stages.contract.place import COPIES_VARIABLE, Remote, files_below, local_copy
from stages.contract.settings import Schedule
from stages.data.sample import read_samples
from stages.training.order import Order
from tests.object_store import Server
from tests.processes import processes_below
from tests.stages import tiny
from tests.stages.test_chain import FLOAT32, SCHEDULE, largest_difference

SAME_RESULT_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("places")
    return {
        "teacher": str(tiny.save_qwen2vl(root / "teacher", width=32, layers=4, pad_rows=5, seed=0)),
        "student": str(tiny.save_qwen2vl(root / "student", width=16, layers=3, pad_rows=2, seed=1)),
        "samples": str(tiny.save_samples(root / "data")),
    }


@pytest.fixture(scope="module", autouse=True)
def ray_session(store: Server) -> Iterator[None]:
    """Started after the object store, whose address its workers inherit."""
    import ray

    context = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ADDRESS", context.address_info["gcs_address"])
        yield
    ray.shutdown()


def run(
    stage: str, places: dict[str, str], output: Any, workers: object, resources: dict | None = None, **settings: object
) -> Any:
    job = make_job(stage, places, output, workers, resources, **settings)
    execute(job, importlib.import_module(f"stages.{stage}").run)
    return output


def make_job(
    stage: str, places: dict[str, str], output: Any, workers: object, resources: dict | None = None, **settings: object
) -> Job:
    names = {"capture": ("teacher", "samples"), "reinforcement": ("student", "samples")}[stage]
    return Job(
        stage=stage,
        settings=settings,
        inputs={name: places[name] for name in names},
        output=str(output),
        resources={"workers": workers, "cpus_per_worker": 0.5} | (resources or {}),
    )


SHARDS_OF_TWO = {"model": FLOAT32, "fraction": 1.0, "dtype": "float32", "shard_samples": 2, "target_layers": [0, 2]}


@pytest.fixture(scope="module")
def many(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Enough samples that their shards take a while."""
    return places | {"samples": str(tiny.save_samples(tmp_path_factory.mktemp("many"), count=300))}


@pytest.fixture(scope="module")
def undisturbed(many: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """What one process captures."""
    return rows(run("capture", many, tmp_path_factory.mktemp("undisturbed") / "capture", 0, **SHARDS_OF_TWO))


def rows(artifact: Path) -> list[Row]:
    reader = CacheReader(artifact / STATES_FOLDER)
    return [reader.read(sample_id) for sample_id in reader.ids]


def test_killed_actors_cost_no_row(many: dict[str, str], undisturbed: list[Row], tmp_path: Path) -> None:
    """SIGKILL of the one that reads and of one of the two that work; others come, and make what was not written."""
    output = tmp_path / "capture"
    killed: dict[str, int] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=kill_actors, args=(work_folder(output), killed, ended))
    watcher.start()
    try:
        run("capture", many, output, 2, **SHARDS_OF_TWO)
    finally:
        ended.set()
        watcher.join()
    assert killed.keys() == {"_Reading", "_Making"}
    assert all(0 < shards < len(undisturbed) / 2 for shards in killed.values()), killed
    assert rows(output) == undisturbed
    assert (output / QUARANTINE_FILE).read_text() == ""


def kill_actors(work: Path, killed: dict[str, int], ended: threading.Event) -> None:
    """Wait for the first shards, then kill an actor of each operator; notes how many shards there were."""
    while not (done := len(list(work.glob("states/shard-*")))) and not ended.wait(0.01):
        pass
    for operator in ("_Reading", "_Making"):
        for process in processes_below(os.getpid(), f"MapWorker(MapBatches({operator}))")[:1]:
            process.kill()
            killed[operator] = done


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Job], subprocess.Popen[str]]]:
    """Start a stage as a process of its own, which does not outlive the test."""
    stages: list[subprocess.Popen[str]] = []

    def start(job: Job) -> subprocess.Popen[str]:
        file = tmp_path / "job.json"
        file.write_text(job.model_dump_json())
        command = [sys.executable, "-m", f"stages.{job.stage}", "--job", str(file)]
        stages.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return stages[-1]

    yield start
    for stage in stages:
        stage.kill()
        stage.wait()


def test_a_killed_driver_leaves_what_the_next_one_completes(
    many: dict[str, str], undisturbed: list[Row], tmp_path: Path, start: Callable[[Job], subprocess.Popen[str]]
) -> None:
    """SIGKILL of the stage while its actors work on a cluster that lives on; its last shards may still come in."""
    output = tmp_path / "capture"
    stage = start(make_job("capture", many, output, 1, **SHARDS_OF_TWO))
    while not (done := list(work_folder(output).glob("states/shard-*"))):
        time.sleep(0.01)
        assert stage.poll() is None
    stage.kill()
    stage.wait()
    before = {path.name: path.stat().st_ino for path in done}
    run("capture", many, output, 0, **SHARDS_OF_TWO)
    assert rows(output) == undisturbed
    after = {path.name: path.stat().st_ino for path in (output / STATES_FOLDER).iterdir()}
    assert {name: after[name] for name in before} == before, "a finished shard was made again"


def test_a_failed_training_goes_on_from_its_checkpoint_on_as_many_workers_as_there_are(
    places: dict[str, str], bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker fails in the third of four steps; the next start keeps the first two, and ends like one process."""
    monkeypatch.setenv(COPIES_VARIABLE, str(tmp_path / "copies"))
    output = bucket / tmp_path.name
    schedule = SCHEDULE | {"batch_size": 3}
    settings = {"model": FLOAT32, "schedule": schedule, "preprocessing": {"max_bad_fraction": 0.0}}
    straight = run("reinforcement", places, tmp_path / "straight", 0, **settings)
    samples, _ = read_samples(Path(places["samples"]))
    order = Order(len(samples), Schedule(**schedule))
    victim = tmp_path / "alone"
    shutil.copytree(Path(places["samples"]).parent, victim)
    lines = [json.loads(line) for line in (victim / "samples.jsonl").read_text().splitlines()]
    lost = next(i for i in order.samples_of(2) if samples[i].images)
    lines[lost]["images"] = [f"images/only-{name.partition('/')[2]}" for name in lines[lost]["images"]]
    (victim / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = places | {"samples": str(victim / "samples.jsonl")}
    with pytest.raises(StageError, match=r"^reinforcement: step 3: .* cannot be read"):
        run("reinforcement", own, output, 1, **settings)
    assert open_artifact(output) is None
    before = read_journal(work_folder(output))
    assert [line["step"] for line in before] == [1, 2]
    for image in samples[lost].images:
        shutil.copy(image, victim / "images" / f"only-{image.name}")
    resumed = run("reinforcement", own, output, (1, 2), **settings)
    assert read_journal(resumed)[:2] == before
    assert largest_difference(straight, local_copy(resumed)) < SAME_RESULT_TOLERANCE
    losses = [[line["loss"] for line in read_journal(place)] for place in (straight, resumed)]
    assert losses[1] == pytest.approx(losses[0], rel=SAME_RESULT_TOLERANCE)
    assert not [name for name in files_below(resumed) if name.startswith("scratch/")]


LONG = SCHEDULE | {"steps": 60, "checkpoint_every_steps": 10, "batch_size": 6, "learning_rate": 1e-3}
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.2}


def test_a_training_that_loses_a_worker_and_is_asked_to_stop_changes_no_bit(
    places: dict[str, str], tmp_path: Path, start: Callable[[Job], subprocess.Popen[str]]
) -> None:
    """SIGKILL of one of two workers, then SIGTERM to the stage, as Kubernetes sends it.

    Ray Train starts both workers again from the checkpoint; they stop at a step between checkpoints, and the exit
    code is 3. Red if the data's place, the optimizer, the schedule or a random state of either worker is lost.
    """
    output, settings = tmp_path / "disturbed", {"model": FLOAT32, "schedule": LONG, "lora": DROPOUT}
    straight = run("reinforcement", places, tmp_path / "straight", 2, **settings)
    stage = start(make_job("reinforcement", places, output, 2, {"max_failures": 1}, **settings))
    while last_step(output) < 15:
        time.sleep(0.01)
        assert stage.poll() is None
    # The last of them has no journal to write.
    processes_below(os.getpid(), "RayTrainWorker")[-1].kill()
    stage.terminate()
    _, errors = stage.communicate(timeout=180)
    assert stage.returncode == 3, errors
    stopped = last_step(output)
    assert 0 < stopped < 60
    assert f"stopped, the next start goes on after step {stopped}" in errors
    assert f"{stopped:08d}.pt" in {path.name for path in work_folder(output).rglob("*.pt")}
    run("reinforcement", places, output, 2, **settings)
    assert largest_difference(straight, output) == 0.0
    lines = [read_journal(folder) for folder in (straight, output)]
    assert [line["step"] for line in lines[1]] == list(range(1, 61))
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


def last_step(output: Path) -> int:
    lines = read_journal(work_folder(output))
    return lines[-1]["step"] if lines else 0


def test_sharded_workers_train_and_export_what_whole_copies_do(places: dict[str, str], tmp_path: Path) -> None:
    settings = {"model": FLOAT32, "schedule": SCHEDULE}
    whole = run("reinforcement", places, tmp_path / "whole", 0, **settings)
    shares = run("reinforcement", places, tmp_path / "shares", 2, {"parallelism": "fsdp"}, **settings)
    assert largest_difference(whole, shares) < SAME_RESULT_TOLERANCE
    assert {path.name for path in whole.iterdir()} == {path.name for path in shares.iterdir()}
