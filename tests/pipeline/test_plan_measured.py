"""What is planned against what is measured: tiny genuine models through the real stages."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.experiment import Experiment
from pipeline.planner import shards
from pipeline.planner.catalogue import model_size
from pipeline.planner.facts import TRAINED, Facts, Options, find_facts, measured
from pipeline.planner.measuring import measure
from pipeline.planner.plan import Planner
from pipeline.planner.shards import CODECS, Contents, RowKey
from pipeline.planner.survey import Survey, SurveyError, request_of, survey
from stages.cache.codecs import make_codec
from stages.contract import STAGES, Job, Resources
from tests.stages import tiny
from tests.stages.test_chain import Chain

CACHE_TOLERANCE = 0.03
MEMORY_TOLERANCE = 0.15
SAMPLES, SURVEYED, SHARD_SAMPLES = 256, 128, 64
STEPS = {"steps": 3, "batch_size": 16, "learning_rate": 1e-2}


def overrides_of(places: dict[str, Path]) -> list[str]:
    """The digits experiment on tiny models."""
    training = ("verbalization", "interaction", "reinforcement")
    return [
        f"store={places['samples'].parent / 'store'}",
        f"teacher.path={places['teacher']}",
        f"student.path={places['student']}",
        f"data.train={places['samples']}",
        "teacher.target_layers=[0,1,3]",
        "student.target_layers=[0,2]",
        f"capture.shard_samples={SHARD_SAMPLES}",
        f"precompute.shard_samples={SHARD_SAMPLES}",
        *(f"{stage}.schedule.{key}={value}" for stage in training for key, value in STEPS.items()),
    ]


def experiment_of(places: dict[str, Path], *overrides: str) -> Experiment:
    return load([*overrides_of(places), *overrides]).main


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Captured states and trained verbalizers of a tiny teacher."""
    root = tmp_path_factory.mktemp("chain")
    places = {
        "teacher": tiny.save_qwen2vl(root / "teacher", width=32, layers=5, pad_rows=5, seed=0),
        "student": tiny.save_qwen2vl(root / "student", width=16, layers=4, pad_rows=2, seed=1),
        "samples": tiny.save_samples(root / "data", count=SAMPLES),
    }
    chain, experiment = Chain(root, places), experiment_of(places)
    chain.run("capture", **experiment.capture.model_dump())
    chain.run("verbalization", **experiment.verbalization.model_dump())
    return chain


@pytest.fixture(scope="module")
def facts(chain: Chain) -> Facts:
    """Of a part of the samples."""
    experiment = experiment_of(chain.places)
    teacher = model_size("teacher", experiment.teacher)
    patch = pytest.MonkeyPatch()
    patch.setattr("pipeline.planner.measuring.CHOSEN_SAMPLES", SURVEYED)
    try:
        request = request_of(experiment, teacher, str(chain.places["verbalization"]), rehearse=True)
        return measured(measure(request), teacher, Options())
    finally:
        patch.undo()


def summary(artifact: Path) -> dict:
    return json.loads((artifact / "manifest.json").read_text())["summary"]


def test_a_survey_finds_what_the_samples_are(chain: Chain, facts: Facts) -> None:
    captured = summary(chain.places["capture"])
    assert facts.samples == SAMPLES
    assert facts.workload.response_tokens * SAMPLES == pytest.approx(captured["response_tokens"], rel=0.01)
    assert facts.workload.image_tokens == pytest.approx(5, rel=0.1)
    assert len(facts.keys) == SURVEYED
    assert facts.vectors == TRAINED
    assert set(facts.rehearsed) == {"states", *CODECS}


def test_captured_states_take_what_is_planned(chain: Chain, facts: Facts) -> None:
    planned = Planner(experiment_of(chain.places), facts).stages[0].disk
    captured = summary(chain.places["capture"])
    assert planned is not None
    assert planned.bytes == pytest.approx(captured["bytes"], rel=CACHE_TOLERANCE)
    assert planned.response_tokens == pytest.approx(captured["response_tokens"], rel=0.01)
    assert planned.files == len(list((chain.places["capture"] / "states").glob("*.parquet")))


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_takes_what_is_planned(chain: Chain, facts: Facts, codec: str) -> None:
    experiment = experiment_of(chain.places, f"precompute.codec={codec}")
    assert experiment.precompute is not None
    cached = summary(chain.run("precompute", name=codec, **experiment.precompute.model_dump()))
    (plan,) = [plan for plan in Planner(experiment, facts).codecs if plan.chosen]
    assert plan.codec == codec
    assert plan.disk.bytes == pytest.approx(cached["bytes"], rel=CACHE_TOLERANCE)


@pytest.mark.parametrize("codec", CODECS)
def test_arrays_are_the_codecs_own_fields(codec: str) -> None:
    import torch

    from stages.losses.divergence import Head

    teacher, student = Head(torch.zeros(300, 32)), Head(torch.zeros(300, 16))
    name = "sampled-7" if codec == "sampled" else codec
    fields = make_codec(name, torch.bfloat16, teacher, student).fields
    arrays = shards.codec_arrays(codec, 32, 16, "bfloat16", 300, 7)
    assert [(a.width, a.dtype) for a in arrays] == [(f.width, str(f.dtype).removeprefix("torch.")) for f in fields]


def test_made_up_shards_have_the_columns_of_real_ones(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    kept = []
    monkeypatch.setattr(shards, "write_shard", lambda path, table, metadata: kept.append(table.schema) or 0)
    key = RowKey("a", "b", "c", (1, 2))
    shards.shard_bytes(Contents(4, shards.codec_arrays("hidden", 31, 16, "float32", 300, 7), (key,)), 1)
    real = pq.read_schema(next((chain.places["capture"] / "states").glob("*.parquet")))
    assert [field.type for field in kept[0]] == [field.type for field in real]
    assert kept[0].names[:5] == real.names[:5]


@pytest.mark.parametrize("tokens", [40, 150])
def test_a_large_shard_is_extrapolated_to_what_it_would_take(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tuple(RowKey(f"sample-{n}", f"{n * 7919:032x}", f"{n}", tuple(range(n, n + tokens))) for n in range(8))
    contents = Contents(6, shards.codec_arrays("moment", 8192, 1536, "bfloat16", 151_657, 32), keys)
    extrapolated = shards.shard_bytes(contents, 32)
    shards.shard_bytes.cache_clear()
    monkeypatch.setattr(shards, "WRITTEN_BYTES", 2**30)
    assert extrapolated == pytest.approx(shards.shard_bytes(contents, 32), rel=0.01)


def test_without_data_or_processor_everything_is_assumed(chain: Chain, tmp_path: Path) -> None:
    nowhere = experiment_of(chain.places, f"data.train={tmp_path}/none.jsonl")
    assert find_facts(nowhere, Options(), None).basis == f"assumed (there is no {os.path.relpath(tmp_path)}/none.jsonl)"
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text((chain.places["teacher"] / "config.json").read_text())
    without_processor = experiment_of(chain.places, f"teacher.path={teacher}")
    size = model_size("teacher", without_processor.teacher)
    request = request_of(without_processor, size, None, rehearse=False)
    with pytest.raises(SurveyError):
        survey(request, tmp_path / "surveys")
    assert not (tmp_path / "surveys").exists()


def test_a_survey_is_made_once_for_the_same_files(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of(chain.places)
    request = request_of(experiment, model_size("teacher", experiment.teacher), None, rehearse=False)
    asked = []
    found = Survey(
        samples=1,
        vocabulary=9,
        process_bytes=1,
        text_tokens=1,
        image_tokens=0,
        response_tokens=1,
        longest_tokens=2,
        patches=0,
        patches_per_picture=0,
        keys=(RowKey("a", "b", "c", (1,)),),
    )
    monkeypatch.setattr("pipeline.planner.survey._measured_apart", lambda request: asked.append(request) or found)
    assert survey(request, tmp_path) == survey(request, tmp_path) == found
    assert len(asked) == 1
    chain.places["samples"].touch()
    survey(request, tmp_path)
    survey(request.model_copy(update={"rehearse": True}), tmp_path)
    assert len(asked) == 3


def run_apart(*arguments: str) -> str:
    """Run a Python module; a shell between keeps it from inheriting the largest memory of this process."""
    command = shlex.join([sys.executable, "-m", *arguments])
    done = subprocess.run(["sh", "-c", f"{command}; exit $?"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_memory_of_every_stage_is_what_is_planned(tmp_path: Path) -> None:
    """With models that weigh something against the process that holds them."""
    places = {
        "teacher": tiny.save_qwen2vl(tmp_path / "teacher", width=768, layers=5, pad_rows=5, seed=0),
        "student": tiny.save_qwen2vl(tmp_path / "student", width=512, layers=5, pad_rows=2, seed=1),
        "samples": tiny.save_samples(tmp_path / "data", count=48),
    }
    overrides = overrides_of(places)
    experiment = load(overrides).main
    inputs = {name: str(place) for name, place in places.items()} | {stage: str(tmp_path / stage) for stage in STAGES}

    def run(stage: str) -> float:
        own = {name: inputs[name] for name in STAGES[stage].inputs}
        settings, resources = getattr(experiment, stage), Resources(workers=0)
        job = Job(stage=stage, settings=settings, inputs=own, output=inputs[stage], resources=resources)
        file = tmp_path / f"{stage}.json"
        file.write_text(job.model_dump_json())
        run_apart(f"stages.{stage}", "--job", str(file))
        return summary(tmp_path / stage)["peak_memory_bytes"]

    with ThreadPoolExecutor(2) as pool:
        plan = pool.submit(run_apart, "pipeline.cli", "plan", "--json", "--no-rehearse", *overrides)
        last = pool.submit(run, "reinforcement")
        peaks = {stage: run(stage) for stage in ("capture", "verbalization", "precompute", "interaction")}
        peaks["reinforcement"] = last.result()
        planned = {name: stage["peak_bytes"] for name, stage in json.loads(plan.result())["stages"].items()}
    assert max(planned.values()) > 1.2 * min(planned.values())
    assert planned == pytest.approx(peaks, rel=MEMORY_TOLERANCE)
