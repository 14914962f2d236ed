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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.cache.reader import CacheReader
from stages.cache.shard import Row
from stages.contract import Job, StageError, read_journal
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


def test_two_actors_capture_what_one_process_captures(places: dict[str, str], tmp_path: Path) -> None:
    settings = {
        "model": FLOAT32,
        "fraction": 1.0,
        "dtype": "float32",
        "shard_samples": 3,
        "target_layers": [0, 2],
    }
    folders = [run("capture", places, tmp_path / str(workers), workers, **settings) for workers in (0, 2)]
    one, other = (CacheReader(folder / STATES_FOLDER) for folder in folders)
    assert one.ids == other.ids
    assert len(one) == 12
    for sample_id in one.ids:
        ids = torch.tensor(one.read(sample_id).key.response_ids)
        for a, b in zip(one.fields([sample_id], ids), other.fields([sample_id], ids), strict=True):
            torch.testing.assert_close(a[0], b[0], rtol=SAME_RESULT_TOLERANCE, atol=SAME_RESULT_TOLERANCE)
    assert [(folder / QUARANTINE_FILE).read_text() for folder in folders] == ["", ""]


ONE_BY_ONE = {"model": FLOAT32, "fraction": 1.0, "dtype": "float32", "shard_samples": 1, "target_layers": [0, 2]}


@pytest.fixture(scope="module")
def many(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Enough samples that a shard each takes a while."""
    return places | {"samples": str(tiny.save_samples(tmp_path_factory.mktemp("many"), count=200))}


@pytest.fixture(scope="module")
def undisturbed(many: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return rows(run("capture", many, tmp_path_factory.mktemp("undisturbed") / "capture", 0, **ONE_BY_ONE))


def rows(artifact: Path) -> list[Row]:
    reader = CacheReader(artifact / STATES_FOLDER)
    return [reader.read(sample_id) for sample_id in reader.ids]


@pytest.mark.parametrize("operator", ["_Reading", "_Making"])
def test_a_killed_actor_costs_no_row(
    many: dict[str, str], undisturbed: list[Row], tmp_path: Path, operator: str
) -> None:
    """SIGKILL while it works; Ray Data starts another one, which makes what was not written."""
    output = tmp_path / "capture"
    killed: list[int] = []
    watcher = threading.Thread(target=kill_an_actor, args=(operator, work_folder(output), killed))
    watcher.start()
    run("capture", many, output, 1, **ONE_BY_ONE)
    watcher.join()
    assert killed, "no actor was killed"
    assert 0 < killed[0] < len(undisturbed), killed
    assert rows(output) == undisturbed


def kill_an_actor(operator: str, work: Path, killed: list[int]) -> None:
    """Wait for the first shards, then kill the one actor of an operator."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (done := len(list(work.glob("states/shard-*")))):
        time.sleep(0.01)
    for process in processes_below(os.getpid(), f"MapWorker(MapBatches({operator}))"):
        process.kill()
        killed.append(done)


def test_a_killed_driver_leaves_what_the_next_one_completes(
    many: dict[str, str], undisturbed: list[Row], tmp_path: Path
) -> None:
    """SIGKILL of the stage while its actors work on a cluster that lives on; its last shards may still come in."""
    output = tmp_path / "capture"
    file = tmp_path / "job.json"
    file.write_text(make_job("capture", many, output, 1, **ONE_BY_ONE).model_dump_json())
    stage = subprocess.Popen([sys.executable, "-m", "stages.capture", "--job", str(file)])
    while not (done := list(work_folder(output).glob("states/shard-*"))):
        time.sleep(0.01)
        assert stage.poll() is None
    stage.kill()
    stage.wait()
    before = {path.name: path.stat().st_ino for path in done}
    run("capture", many, output, 1, **ONE_BY_ONE)
    assert rows(output) == undisturbed
    after = {path.name: path.stat().st_ino for path in (output / STATES_FOLDER).iterdir()}
    assert {name: after[name] for name in before} == before, "a finished shard was made again"


def test_a_worker_trains_what_the_process_itself_trains(places: dict[str, str], tmp_path: Path) -> None:
    settings = {"model": FLOAT32, "schedule": SCHEDULE}
    folders = [run("reinforcement", places, tmp_path / str(workers), workers, **settings) for workers in (0, 1)]
    assert largest_difference(*folders) < SAME_RESULT_TOLERANCE
    losses = [[line["loss"] for line in read_journal(folder)] for folder in folders]
    assert losses[0] == pytest.approx(losses[1], rel=SAME_RESULT_TOLERANCE)
    assert not (folders[1] / "scratch").exists()


def test_a_workers_own_words_reach_the_caller_and_no_artifact_is_left(places: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "failing"
    settings = {"model": FLOAT32, "schedule": SCHEDULE, "preprocessing": {"max_tokens": 8}}
    with pytest.raises(StageError, match=r"reinforcement: .*more than preprocessing.max_tokens 8"):
        run("reinforcement", places, output, 1, **settings)
    assert not output.exists()
    assert work_folder(output).exists()


@pytest.mark.parametrize("where", ["here", "s3"])
def test_a_failed_training_goes_on_from_its_checkpoint(
    places: dict[str, str], bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The third of four steps fails; the next start keeps the first two, and ends like a run that never failed."""
    monkeypatch.setenv(COPIES_VARIABLE, str(tmp_path / "copies"))
    output = tmp_path / "stopped" if where == "here" else bucket / tmp_path.name
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
    with pytest.raises(StageError, match="cannot be read"):
        run("reinforcement", own, output, 1, **settings)
    before = read_journal(work_folder(output))
    assert [line["step"] for line in before] == [1, 2]
    for image in samples[lost].images:
        shutil.copy(image, victim / "images" / f"only-{image.name}")
    resumed = run("reinforcement", own, output, 1, **settings)
    assert read_journal(resumed)[:2] == before
    assert largest_difference(straight, local_copy(resumed)) < SAME_RESULT_TOLERANCE
    assert not [name for name in files_below(resumed) if name.startswith("scratch/")]


LONG = SCHEDULE | {"steps": 80, "checkpoint_every_steps": 10, "batch_size": 6, "learning_rate": 1e-3}
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.2}


@pytest.fixture(scope="module")
def straight(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 undisturbed steps of two workers, with random numbers in every one of them."""
    output = tmp_path_factory.mktemp("two") / "straight"
    return run("reinforcement", places, output, 2, model=FLOAT32, schedule=LONG, lora=DROPOUT)


def test_a_killed_worker_costs_steps_but_changes_no_bit(places: dict[str, str], straight: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle; Ray Train starts both workers again from the checkpoint, and all weights are the same.

    Red if the data's place, the optimizer, the schedule or a random state of either worker is lost.
    """
    output = tmp_path / "killed"
    killed: list[int] = []
    watcher = threading.Thread(target=kill_a_worker, args=(work_folder(output), 35, killed))
    watcher.start()
    run("reinforcement", places, output, 2, {"max_failures": 1}, model=FLOAT32, schedule=LONG, lora=DROPOUT)
    watcher.join()
    assert killed, "no worker was killed"
    assert 35 <= killed[0] < 80, killed
    assert largest_difference(straight, output) == 0.0
    lines = [read_journal(folder) for folder in (straight, output)]
    assert [line["step"] for line in lines[1]] == list(range(1, 81))
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


def kill_a_worker(work: Path, step: int, killed: list[int]) -> None:
    """Wait until the journal has reached `step`, then kill the worker that has no journal to write."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = read_journal(work)
        if lines and lines[-1]["step"] >= step:
            if workers := processes_below(os.getpid(), "RayTrainWorker"):
                workers[-1].kill()
                killed.append(lines[-1]["step"])
            return
        time.sleep(0.01)


def test_a_training_that_is_asked_to_stop_leaves_a_checkpoint_and_says_where(
    places: dict[str, str], straight: Path, tmp_path: Path
) -> None:
    """SIGTERM to the stage, as Kubernetes sends it: exit code 3 at a step between checkpoints, then no bit is lost."""
    output = tmp_path / "stopped"
    schedule = LONG | {"checkpoint_every_steps": 1000}
    settings = {"model": FLOAT32, "schedule": schedule, "lora": DROPOUT}
    file = tmp_path / "job.json"
    file.write_text(make_job("reinforcement", places, output, 2, **settings).model_dump_json())
    command = [sys.executable, "-m", "stages.reinforcement", "--job", str(file)]
    stage = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(read_journal(work_folder(output))) < 3:
        time.sleep(0.01)
        assert stage.poll() is None
    stage.terminate()
    _, errors = stage.communicate(timeout=120)
    assert stage.returncode == 3, errors
    last = read_journal(work_folder(output))[-1]["step"]
    assert 3 <= last < 80
    assert f"stopped, the next start goes on after step {last}" in errors
    run("reinforcement", places, output, 2, **settings)
    assert largest_difference(straight, output) == 0.0
    assert [line["step"] for line in read_journal(output)] == list(range(1, 81))


def test_sharded_workers_train_and_export_what_whole_copies_do(places: dict[str, str], tmp_path: Path) -> None:
    settings = {"model": FLOAT32, "schedule": SCHEDULE}
    whole = run("reinforcement", places, tmp_path / "whole", 0, **settings)
    shares = run("reinforcement", places, tmp_path / "shares", 2, {"parallelism": "fsdp"}, **settings)
    assert largest_difference(whole, shares) < SAME_RESULT_TOLERANCE
    assert {path.name for path in whole.iterdir()} == {path.name for path in shares.iterdir()}


def test_an_elastic_number_of_workers_trains_what_one_does(places: dict[str, str], tmp_path: Path) -> None:
    settings = {"model": FLOAT32, "schedule": SCHEDULE}
    one = run("reinforcement", places, tmp_path / "one", 0, **settings)
    elastic = run("reinforcement", places, tmp_path / "elastic", (1, 2), **settings)
    assert largest_difference(one, elastic) < SAME_RESULT_TOLERANCE
