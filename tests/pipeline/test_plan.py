"""What `vlsi plan` says of the experiments without data, where it reads models, and how it prints."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, Qwen2VLImageProcessor

from pipeline.config import ConfigError, load
from pipeline.experiment import Model
from pipeline.planner import tables
from pipeline.planner.catalogue import model_size
from pipeline.planner.facts import Facts, Options, assumed
from pipeline.planner.plan import Planner
from stages.contract.settings import EveryNth
from tests.pipeline.conftest import Command

REAL = (
    "qwen2vl-2b-from-7b",
    "qwen2vl-2b-from-72b",
    "qwen2vl-7b-from-72b",
    "llava-ov-0.5b-from-7b",
    "llava-ov-0.5b-from-72b",
    "llava-ov-7b-from-72b",
)
PARAMETERS = {
    "Qwen/Qwen2-VL-2B-Instruct": 2.21e9,
    "Qwen/Qwen2-VL-7B-Instruct": 8.29e9,
    "Qwen/Qwen2-VL-72B-Instruct": 73.4e9,
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": 0.894e9,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": 8.03e9,
    "llava-hf/llava-onevision-qwen2-72b-ov-hf": 73.2e9,
}
"""As the hub shows them."""


@pytest.fixture
def vlsi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_vlsi: Command) -> Command:
    """Call `vlsi` in this process where there is neither data nor a Hugging Face cache; 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLSI_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("pipeline.planner.catalogue._cached", lambda model: None)
    return partial(call_vlsi, width=80)


def planner_of(*overrides: str, options: Options | None = None, tflops: float | None = None) -> Planner:
    experiment = load(overrides).main
    teacher = model_size("teacher", experiment.teacher)
    facts = assumed(teacher, experiment.data.preprocessing.max_tokens, options or Options(), "a test")
    return Planner(experiment, facts, tflops)


@pytest.mark.parametrize("name", PARAMETERS)
def test_kept_configurations_are_the_published_models(name: str) -> None:
    size = model_size("teacher", Model(path=name, target_layers=EveryNth()))
    assert size.parameters == pytest.approx(PARAMETERS[name], rel=0.01)
    assert size.tokens < size.rows
    assert size.tokens == (151_657 if "Qwen2-VL" in name else 151_648)


def test_a_picture_has_as_many_tokens_as_the_genuine_processors_make_of_it() -> None:
    picture = Image.new("RGB", (640, 480))
    qwen = model_size("teacher", Model(path="Qwen/Qwen2-VL-2B-Instruct", target_layers=EveryNth())).vision
    made = Qwen2VLImageProcessor()(images=[picture], return_tensors="pt")
    assert qwen.picture_patches == len(made["pixel_values"])
    assert qwen.picture_tokens == len(made["pixel_values"]) // 4
    path = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    llava = model_size("teacher", Model(path=path, target_layers=EveryNth())).vision
    made = LlavaOnevisionImageProcessor(size={"height": 384, "width": 384})(images=[picture], return_tensors="pt")
    assert llava.picture_patches == made["pixel_values"].shape[1] * 27**2
    processor = object.__new__(LlavaOnevisionProcessor)
    processor.image_processor = LlavaOnevisionImageProcessor(size={"height": 384, "width": 384})
    processor.num_image_tokens, processor.vision_aspect_ratio = 27**2, "anyres_max_9"
    assert llava.picture_tokens == processor._get_number_of_features(480, 640, 384, 384)


def test_a_model_that_is_nowhere_is_an_error_that_says_what_to_do(vlsi: Command, tmp_path: Path) -> None:
    code, text = vlsi("plan", "experiment=qwen2vl-2b-from-7b", "teacher.path=somebody/unknown")
    assert code == 2
    assert "teacher.path: the configuration of somebody/unknown is not on this machine" in text.replace("\n", " ")
    assert "hf download somebody/unknown config.json" in text.replace("\n", " ")
    with pytest.raises(ConfigError, match="config.json does not exist"):
        model_size("student", Model(path=str(tmp_path / "nothing"), target_layers=EveryNth()))
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ConfigError, match="student.path: .*'blip' cannot be planned"):
        model_size("student", Model(path=str(tmp_path), target_layers=EveryNth()))


@pytest.mark.parametrize("name", REAL)
def test_every_real_experiment_is_planned_at_80_columns(vlsi: Command, name: str) -> None:
    code, text = vlsi("plan", f"experiment={name}", "--memory")
    assert code == 0, text
    stages = ("capture", "verbalization", "precompute", "interaction", "reinforcement")
    for expected in (*stages, "hidden-int8", "moment *", "sampled", "assumed"):
        assert expected in text
    tables_of = [line for line in text.splitlines() if "executor.resources" not in line]
    assert max(map(len, tables_of)) <= 80
    assert "…" not in text


def test_the_cache_of_the_papers_training_set_is_as_large_as_its_fields_say() -> None:
    """DESIGN §3: 2.9 million samples of 150 response tokens, 21 layers of 8,192 and 1,536 numbers."""
    codecs = {plan.codec: plan for plan in planner_of("experiment=qwen2vl-2b-from-72b").codecs}
    assert {name: plan.token_bytes for name, plan in codecs.items()} == {
        "hidden": 16_384,
        "hidden-int8": 8_196,
        "moment": 3_076,
        "moment-int8": 1_544,
        "sampled": 76,
    }
    assert {plan.layers for plan in codecs.values()} == {21}
    assert codecs["hidden"].stored_bytes == pytest.approx(16_384 / 1.446, rel=0.03), "FACTS: bf16 byte planes"
    assert codecs["sampled"].stored_bytes == pytest.approx(76, rel=0.02), "ids without order do not compress"
    assert codecs["moment"].disk.files == -(-2_900_000 // 256)


def test_what_is_stated_changes_what_is_planned() -> None:
    one, other = (
        planner_of("experiment=qwen2vl-2b-from-7b", options=Options(samples=n, response_tokens=r), tflops=t)
        for n, r, t in ((1000, 100, 100), (2000, 50, 200))
    )
    assert other.facts.workload.responses == one.facts.workload.responses
    sampled = [planner.codecs[-1].disk.bytes for planner in (one, other)]
    assert sampled[1] == pytest.approx(sampled[0], rel=0.02)
    assert one.stages[2].cost.work.flops < other.stages[2].cost.work.flops
    same = planner_of("experiment=qwen2vl-2b-from-7b", options=Options(samples=1000, response_tokens=100), tflops=200)
    assert one.stages[0].seconds is not None
    assert same.stages[0].seconds == pytest.approx(one.stages[0].seconds / 2)


def test_on_cpus_hours_need_a_stated_throughput() -> None:
    cpu = ("experiment=qwen2vl-2b-from-7b", "executor.resources.interaction.gpus_per_worker=0")
    unknown, stated = (planner_of(*cpu, tflops=tflops).stages[3] for tflops in (None, 0.1))
    assert unknown.seconds is None
    assert stated.seconds is not None
    assert stated.cost.memory["process"] > 0, "on a CPU the process counts"


def test_a_model_spread_over_gpus_computes_on_one_at_a_time() -> None:
    """accelerate's `device_map` passes through the GPUs one after the other."""
    stages = {plan.stage: plan for plan in planner_of("experiment=qwen2vl-2b-from-72b").stages}
    assert (stages["precompute"].accelerators, stages["precompute"].busy) == (4, 1)
    assert (stages["interaction"].accelerators, stages["interaction"].busy) == (1, 1)
    seconds = stages["capture"].cost.work.half_flops / (2 * 400e12)
    assert stages["capture"].seconds == pytest.approx(seconds, rel=1e-6)


def test_stages_follow_the_settings() -> None:
    base = {plan.stage: plan for plan in planner_of("experiment=qwen2vl-2b-from-7b").stages}
    last = planner_of("experiment=qwen2vl-2b-from-7b", "precompute.layers=last", "interaction.losses.intermediate=none")
    assert {plan.layers for plan in last.codecs} == {1}
    assert "process" not in base["capture"].cost.memory, "a GPU's memory holds no process"
    hidden = {
        plan.stage: plan for plan in planner_of("experiment=qwen2vl-2b-from-7b", "precompute.codec=hidden").stages
    }
    assert hidden["precompute"].cost.work.flops < base["precompute"].cost.work.flops
    assert hidden["interaction"].cost.teacher_flops > base["interaction"].cost.teacher_flops == 0
    assert hidden["interaction"].cost.memory["teacher's head"] == 152_064 * 3584 * 2
    plain = planner_of("experiment=qwen2vl-2b-from-7b", "interaction=null").stages
    assert [plan.stage for plan in plain] == ["reinforcement"]
    sharded = planner_of("experiment=qwen2vl-2b-from-7b", "executor.resources.verbalization.parallelism=fsdp").stages[1]
    assert sharded.cost.memory["trained"] == base["verbalization"].cost.memory["trained"] / 8


def test_a_worker_that_does_not_fit_is_pointed_out(vlsi: Command) -> None:
    _, text = vlsi("plan", "experiment=qwen2vl-2b-from-7b", "--gpu-memory", "8")
    assert "interaction: a worker needs" in text
    assert "executor.resources.interaction.parallelism=fsdp" in text
    _, text = vlsi("plan", "experiment=qwen2vl-2b-from-7b", "--gpu-memory", "80")
    assert "a worker needs" not in text


def test_json_has_the_same_numbers(vlsi: Command) -> None:
    code, text = vlsi("plan", "experiment=qwen2vl-2b-from-7b", "--json", "--samples", "5000", "--response-tokens", "20")
    plan = json.loads(text)
    assert (code, plan["samples"]["samples"], plan["samples"]["response_tokens"]) == (0, 5000, 20)
    assert plan["stages"]["precompute"]["bytes"] == plan["codecs"]["moment"]["bytes"]
    assert plan["stages"]["capture"]["response_tokens"] == round(0.03 * 5000) * 20
    assert sum(plan["stages"]["interaction"]["memory"].values()) == plan["stages"]["interaction"]["peak_bytes"]


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (76, "76.0"), (999.6, "1.00k"), (19.79e12, "19.8T")])
def test_numbers_have_three_figures(number: float, text: str) -> None:
    assert tables._short(number) == text


def test_facts_say_where_they_come_from() -> None:
    facts: Facts = planner_of("experiment=qwen2vl-2b-from-7b").facts
    assert facts.basis == "assumed (a test)"
    assert facts.workload.tokens == 391 + 60 + 150
