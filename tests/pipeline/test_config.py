"""Every shipped experiment is valid, and every mistake is one sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import ConfigError, conf_folder, load
from stages.contract.settings import resolve_target_layers

EXPERIMENTS = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))
EVERY_FOURTH = tuple(range(2, 28, 4))
PAPER_LAYERS = {
    "qwen2vl-2b-from-7b": ((28, EVERY_FOURTH), (28, EVERY_FOURTH)),
    "qwen2vl-2b-from-72b": ((80, tuple(range(2, 80, 4))), (28, EVERY_FOURTH)),
    "qwen2vl-7b-from-72b": ((80, tuple(range(2, 80, 4))), (28, EVERY_FOURTH)),
    "llava-ov-0.5b-from-7b": ((28, (4, 12, 20)), (24, (4, 12, 20))),
    "llava-ov-0.5b-from-72b": ((80, (10, 30, 50, 70)), (24, (4, 12, 20))),
    "llava-ov-7b-from-72b": ((80, (10, 30, 50, 70)), (28, (4, 12, 20))),
}
"""METHOD, section 1: for teacher and student the number of blocks and the target layers."""

pytestmark = pytest.mark.usefixtures("world")


def test_every_experiment_of_the_paper_is_there() -> None:
    assert sorted([*PAPER_LAYERS, "digits", "digits-deep", "digits-strong", "easy-vqa"]) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_shipped_experiment_is_valid_and_introduces_itself(name: str) -> None:
    text = (conf_folder() / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert text[0] == "# @package _global_"
    assert text[1].startswith("# ")
    assert load([f"experiment={name}"]).main.name == name


@pytest.mark.parametrize("name", PAPER_LAYERS)
def test_a_real_experiment_has_the_set_up_of_the_paper(name: str) -> None:
    main = load([f"experiment={name}"]).main
    for model, (blocks, layers) in zip((main.teacher, main.student), PAPER_LAYERS[name], strict=True):
        assert resolve_target_layers(model.target_layers, blocks) == layers
        assert not model.is_folder
    assert main.interaction is not None
    for settings in (main.interaction, main.reinforcement):
        assert settings.lora is not None
        assert (settings.lora.rank, settings.lora.alpha) == (64, 64)
        assert (settings.schedule.learning_rate, settings.schedule.final_learning_rate) == (1e-4, 1e-6)
        assert (settings.schedule.batch_size, settings.schedule.gradient_checkpointing) == (512, True)
        assert settings.model.dtype == "bfloat16"
    schedule, workers = main.interaction.schedule, main.executor.resources_of("interaction").workers
    assert (schedule.batch_size, schedule.micro_batch_size, workers) == (16 * 8 * 4, 4, 8)


def test_stages_share_what_has_one_value() -> None:
    main = load(["seed=7", "data.preprocessing.max_tokens=100", "student.target_layers=[1, 3]"]).main
    assert main.interaction is not None
    assert main.precompute is not None
    assert main.capture.model == main.precompute.model == main.teacher.loading
    assert main.verbalization.target_layers == main.student.target_layers
    assert main.interaction.preprocessing.max_tokens == main.capture.preprocessing.max_tokens == 100
    assert main.interaction.schedule.seed == main.reinforcement.schedule.seed == main.capture.seed == 7


def test_variants_are_relative_to_the_overridden_experiment() -> None:
    configuration = load(["reinforcement.schedule.learning_rate=0.25"])
    assert configuration.variants["sft"].interaction is None
    assert {e.reinforcement.schedule.learning_rate for e in configuration.variants.values()} == {0.25}


def test_an_override_can_add_and_delete_what_a_file_says() -> None:
    configuration = load(["~variants.sft", "+variants.other=['seed=1']", "~interaction.schedule.steps=300"])
    assert set(configuration.variants) == {"last-layer-kd", "other"}
    assert configuration.variants["other"].seed == 1
    assert configuration.main.interaction is not None
    assert configuration.main.interaction.schedule.steps is None


def test_an_override_changes_no_other_experiment() -> None:
    assert load(["interaction.matching.strategy=uniform", "~variants"]).main != load().main
    assert set(load().variants) == {"sft", "last-layer-kd"}


def test_relative_places_are_absolute_and_hub_ids_stay(world: Path) -> None:
    models = ["teacher.path=models/big/teacher", "student.path=Qwen/Some-2B"]
    main = load(["store=here", *models, "data.train=t.jsonl"]).main
    assert main.store == str(world / "here")
    assert main.prepared == str(world / "here" / "prepared" / "digits")
    assert main.teacher.path == str(world / "models" / "big" / "teacher")
    assert main.student.path == "Qwen/Some-2B"
    assert main.data.train == str(world / "t.jsonl")


def test_with_artifacts_in_a_bucket_only_what_is_prepared_needs_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = "store=s3://bucket/vlsi"
    assert load(["experiment=qwen2vl-2b-from-7b", bucket]).main.store == "s3://bucket/vlsi"
    with pytest.raises(ConfigError, match="prepared: .* set prepared or VLSI_PREPARED"):
        load([bucket, "data.train=a.jsonl", "data.test=b.jsonl"])
    monkeypatch.setenv("VLSI_PREPARED", "/data/prepared")
    assert load([bucket]).main.data.train == "/data/prepared/digits/train.jsonl"


def test_an_existing_folder_is_not_taken_for_a_hub_id(world: Path) -> None:
    (world / "models" / "small").mkdir(parents=True)
    assert load(["student.path=models/small"]).main.student.path == str(world / "models" / "small")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("interaction.lr=5e-4", "interaction.lr: unknown key; did you mean interaction.schedule.learning_rate?"),
        (
            "interaction.learning_rate=5e-4",
            "interaction.learning_rate: unknown key; did you mean interaction.schedule.learning_rate?",
        ),
        ("interactoin.schedule.steps=1", "interactoin: unknown key; did you mean interaction?"),
        (
            "executor.resources.capture.worker=1",
            "executor.resources.capture.worker: unknown key; did you mean executor.resources.NAME.workers?",
        ),
        ("experiment=digts", "experiment: 'digts' is unknown; did you mean digits? allowed: digits, "),
        ("sweep=matching", "sweep: a single experiment has none; use `vlsi sweep sweep=matching`"),
        ("interaction.schedule.steps=many", "interaction.schedule.steps: 'many' is not valid: input should be a valid"),
        ("interaction.losses.last=klx", "interaction.losses.last: 'klx' is not valid: input should be 'kl', 'ce' or"),
        ("interaction.schedule.steps", "'interaction.schedule.steps' is not an override; write key=value"),
        ("seed=1,2", "seed: 'seed=1,2' gives several values"),
        ("+seed=1", "seed: is there already, +seed only adds; write seed=value"),
        ("seed@teacher=1", "seed: 'seed@teacher=1' names a package"),
        ("~variants.other", "variants.other: there is nothing to delete"),
        (
            "~interaction.schedule.steps=5",
            "interaction.schedule.steps: is 300 and not 5; ~interaction.schedule.steps del",
        ),
        ("capture.model.dtype=float16", "capture.model.dtype: capture.model is shared; set teacher.loading.dtype inst"),
        ("precompute=null", "precompute: null does not go with interaction.losses.intermediate=kl"),
        ("precompute.layers=last", "precompute.layers: 'last' caches no intermediate layer"),
        ("interaction.losses.intermediate=feature-l2", "precompute.codec: 'moment' keeps no hidden state"),
        ("student.loading.quantization=int4", "interaction.lora: null trains all weights, but"),
        ("variants.teacher=['seed=1']", "variants: 'teacher' cannot name a variant"),
        ("variants.other=['seed=x']", "variants.other: seed: 'x' is not valid"),
        ("executor.resources.captur={workers: 2}", "executor.resources: captur is no stage; allowed: "),
        ("executor=slurm", "executor: 'slurm' is unknown; allowed: kuberay"),
        ("executor.kind=slurm", "executor.kind: 'slurm' is unknown; allowed: 'local', 'ray_jobs', 'kuberay'"),
        ("executor.tag=1.0", "executor.tag: executor=local has no such key; it belongs to another executor"),
        ("executor.adress=head", "executor.adress: unknown key; did you mean executor.address?"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([override])
    assert str(caught.value).startswith(message), caught.value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("executor.namespace=A_b", "executor.namespace: 'A_b' is not valid: string should match"),
        ("executor.pod.memory=lots", "executor.pod.memory: 'lots' is not valid: string should match"),
        ("executor.pods.captur={memory: 1Gi}", "executor.pods: captur is no stage; allowed: "),
        ("executor.pod.memry=1Gi", "executor.pod.memry: unknown key; did you mean executor.pod.memory?"),
    ],
)
def test_a_mistake_in_one_of_several_executors_is_named_as_it_was_written(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(["executor=kuberay", override])
    assert str(caught.value).startswith(message), caught.value


def test_a_mistake_in_a_file_names_the_file(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = world / "conf"
    for path in conf_folder().rglob("*.yaml"):
        target = conf / path.relative_to(conf_folder())
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text().replace("  fraction: 1.0", "  fractoin: 1.0"))
    monkeypatch.setenv("VLSI_CONF", str(conf))
    with pytest.raises(ConfigError, match=r"conf/experiment/digits.yaml: capture.fractoin: .* mean capture.fraction"):
        load()


def test_a_folder_without_configuration_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLSI_CONF", str(world))
    with pytest.raises(ConfigError, match="has no config.yaml; set VLSI_CONF"):
        load()


def test_a_stated_format_stands_behind_the_place_but_not_behind_a_mixture(world: Path) -> None:
    data = load(["data.train=train.json", "data.test=test.yaml", "data.format=llava"]).main.data
    assert (data.place("train"), data.place("test")) == (f"{world}/train.json#llava", f"{world}/test.yaml")
    assert load(["data.train=train.json"]).main.data.place("train") == f"{world}/train.json"
    with pytest.raises(ConfigError, match="data.format: 'csv' is not valid"):
        load(["data.format=csv"])
