"""All six stages on tiny random checkpoints of two architectures, through the loading path that users take."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages.contract import Job, StageError, read_journal
from stages.contract.files import (
    STUDENT_VERBALIZERS_FILE,
    TARGETS_FOLDER,
    TEACHER_VERBALIZERS_FILE,
)
from stages.contract.job import execute
from stages.data.encoding import collate
from stages.training.optimizer import make_optimizer
from stages.verbalization import VerbalizationObjective
from tests.stages import tiny

FLOAT32 = {"dtype": "float32"}
SCHEDULE = {
    "steps": 4,
    "batch_size": 12,
    "micro_batch_size": 6,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "checkpoint_every_steps": 2,
}
SAME_TRAINING_TOLERANCE = 2e-4
"""Largest difference of weights between two ways of computing the same float32 update, after four Adam steps."""


@dataclass
class Chain:
    """Runs stages in this process and keeps where their artifacts lie."""

    root: Path
    places: dict[str, Path]
    made: dict[str, Path] = field(default_factory=dict)

    def run(self, stage: str, *, name: str = "", leave_out: tuple[str, ...] = (), **settings: object) -> Path:
        names = {
            "capture": ("teacher", "samples"),
            "verbalization": ("capture", "student", "samples"),
            "precompute": ("capture", "verbalization", "teacher", "student", "samples"),
            "interaction": ("student", "samples", "verbalization", "precompute"),
        }[stage]
        inputs = {key: str(self.places[key]) for key in names if key not in leave_out}
        output = self.root / "store" / stage / (name or "main")
        job = Job(stage=stage, settings=settings, inputs=inputs, output=str(output), resources={"workers": 0})
        execute(job, importlib.import_module(f"stages.{stage}").run)
        if not name:
            self.places[stage] = output
        return output

    def apply(self, stage: str, student: Path, name: str, key: str = "student", **settings: object) -> Path:
        """Run a stage that reads the samples and one model."""
        inputs = {key: str(student), "samples": str(self.places["samples"])}
        output = self.root / "store" / stage / name
        job = Job(stage=stage, settings=settings, inputs=inputs, output=str(output), resources={"workers": 0})
        execute(job, importlib.import_module(f"stages.{stage}").run)
        return output


def start_chain(root: Path, family: str) -> Chain:
    save = {"qwen2_vl": tiny.save_qwen2vl, "llava_onevision": tiny.save_llava_onevision}[family]
    places = {
        "teacher": save(root / "teacher", width=32, layers=5, pad_rows=5, seed=0),
        "student": save(root / "student", width=16, layers=4, pad_rows=2, seed=1),
        "samples": tiny.save_samples(root / "data"),
    }
    chain = Chain(root, places)
    chain.run("capture", model=FLOAT32, target_layers=[0, 1, 3], fraction=0.7, dtype="float32", shard_samples=5)
    chain.run("verbalization", model=FLOAT32, target_layers=[0, 2], schedule=SCHEDULE | {"batch_size": 8})
    chain.run("precompute", model=FLOAT32, dtype="float32", shard_samples=5)
    return chain


@pytest.fixture(scope="module", params=["qwen2_vl", "llava_onevision"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return start_chain(tmp_path_factory.mktemp(request.param), request.param)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["summary"]


def largest_difference(one: Path, other: Path, file: str = "model.safetensors") -> float:
    a, b = load_file(one / file), load_file(other / file)
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_capture_takes_its_share_and_precompute_covers_every_sample(chain: Chain) -> None:
    assert manifest(chain.places["capture"])["rows"] == 8
    assert manifest(chain.places["precompute"])["rows"] == 12
    assert manifest(chain.places["precompute"])["quarantined"] == 0


def test_verbalization_learns_every_layer_and_leaves_the_backbones_alone(chain: Chain) -> None:
    lines = read_journal(chain.places["verbalization"])
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for side, layers in (("ce_teacher", 3), ("ce_student", 2)):
        first, last = lines[0][side], lines[-1][side]
        assert len(first) == layers
        assert all(end < start for start, end in zip(first, last, strict=True)), (side, first, last)
    names = {path.name for path in chain.places["verbalization"].iterdir()}
    assert {TEACHER_VERBALIZERS_FILE, STUDENT_VERBALIZERS_FILE} <= names
    assert "model.safetensors" not in names


def test_a_verbalization_step_changes_verbalizers_only(chain: Chain) -> None:
    """Bit for bit: the student with head, embedding and vision tower, and the teacher's norm and head."""
    inputs = {name: str(chain.places[name]) for name in ("capture", "student", "samples")}
    settings = {"model": FLOAT32, "target_layers": [0, 2], "schedule": SCHEDULE}
    job = Job(stage="verbalization", settings=settings, inputs=inputs, output=str(chain.root / "unused"))
    objective = VerbalizationObjective(job)
    parts = {"student": objective._student.model, "norm": objective._readout.norm, "head": objective._readout.head}
    before = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in parts.items()}
    trained = {name: value for name, value in objective.named_parameters() if value.requires_grad}
    verbalizers = {name: value.clone() for name, value in trained.items()}
    optimizer = make_optimizer(objective.parameters(), objective.schedule)
    for sample in objective.samples[:3]:
        batch = collate([objective.encoder.encode(sample)], objective.encoder.pad_id)
        objective(replace(batch, cached=objective.cache.fields(batch.sample_ids, batch.labels))).total.backward()
        optimizer.step()
    assert all(not torch.equal(value, verbalizers[name]) for name, value in trained.items())
    for name, part in parts.items():
        assert all(torch.equal(value, before[name][key]) for key, value in part.state_dict().items()), name
        assert all(parameter.grad is None for parameter in part.parameters()), name


def test_interaction_trains_the_decoder_blocks_and_nothing_else(chain: Chain) -> None:
    student = chain.run("interaction", name="frozen", model=FLOAT32, schedule=SCHEDULE)
    before, after = weights(chain.places["student"]), weights(student)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed, "nothing was trained"
    assert all(".layers." in name and "vision" not in name and "visual" not in name for name in changed), changed
    frozen = ("embed_tokens", "lm_head", "visual", "vision_tower", "projector", "language_model.norm")
    assert not [name for name in changed for part in frozen if part in name]


def test_hidden_and_moment_give_the_same_losses_and_the_same_student(chain: Chain) -> None:
    hidden = chain.run("precompute", name="hidden", model=FLOAT32, codec="hidden", dtype="float32", shard_samples=5)
    moment = chain.run("interaction", name="moment", model=FLOAT32, schedule=SCHEDULE)
    chain.places["precompute"], kept = hidden, chain.places["precompute"]
    try:
        other = chain.run("interaction", name="hidden", model=FLOAT32, schedule=SCHEDULE)
    finally:
        chain.places["precompute"] = kept
    losses = [[line["loss"] for line in read_journal(folder)] for folder in (moment, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert largest_difference(moment, other) < SAME_TRAINING_TOLERANCE


CODEC_TOLERANCES = {"moment-int8": 2e-3, "hidden-int8": 2e-2, "sampled": 0.1}
"""Relative difference allowed between the losses of a step and those with the exact moments in float32."""


@pytest.mark.parametrize("codec", CODEC_TOLERANCES)
def test_every_codec_trains_with_nearly_the_same_losses(chain: Chain, codec: str) -> None:
    exact = read_journal(chain.run("interaction", name="exact", model=FLOAT32, schedule=SCHEDULE))
    cache = chain.run("precompute", name=codec, model=FLOAT32, codec=codec, shard_samples=5)
    chain.places["precompute"], kept = cache, chain.places["precompute"]
    try:
        student = chain.run("interaction", name=codec, model=FLOAT32, schedule=SCHEDULE)
    finally:
        chain.places["precompute"] = kept
    losses, expected = ([line["loss"] for line in lines] for lines in (read_journal(student), exact))
    assert losses == pytest.approx(expected, rel=CODEC_TOLERANCES[codec])


def test_moment_needs_neither_the_teacher_nor_its_head(chain: Chain, tmp_path: Path) -> None:
    assert not (chain.places["precompute"] / "teacher_head.safetensors").exists()
    moved = chain.places["teacher"].rename(tmp_path / "away")
    try:
        chain.run("interaction", name="alone", model=FLOAT32, schedule=SCHEDULE)
    finally:
        moved.rename(chain.places["teacher"])


@pytest.mark.parametrize(
    ("losses", "leave_out"),
    [
        ({"intermediate": "none", "last": "kl"}, ("verbalization",)),
        ({"intermediate": "none", "last": "ce"}, ("verbalization", "precompute")),
        ({"intermediate": "ce", "last": "none"}, ("precompute",)),
        ({"intermediate": "ce", "last": "ce"}, ("precompute",)),
        ({"intermediate": "ce", "last": "kl"}, ()),
        ({"intermediate": "kl", "last": "none"}, ()),
        ({"intermediate": "kl", "last": "ce"}, ()),
    ],
)
def test_every_row_of_the_loss_ablation_is_a_configuration(
    chain: Chain, losses: dict[str, str], leave_out: tuple[str, ...]
) -> None:
    name = "-".join(losses.values())
    student = chain.run("interaction", name=name, leave_out=leave_out, model=FLOAT32, losses=losses, schedule=SCHEDULE)
    journal = [line["loss"] for line in read_journal(student)]
    assert journal[-1] < journal[0]


def test_annealing_leads_from_any_path_to_the_cheapest(chain: Chain) -> None:
    """The first step's draw is even over the three paths of two through three layers, the last step's is certain."""
    matching = {"strategy": "joint", "annealing": {"first": 1e-12, "last": 1e12}}
    student = chain.run("interaction", name="annealed", model=FLOAT32, matching=matching, schedule=SCHEDULE)
    first, *_, last = read_journal(student)
    assert [first["match_entropy"], last["match_entropy"]] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert first["match_expected"] == pytest.approx([1 / 3, 5 / 3], abs=1e-6)
    assert last["match_expected"] == pytest.approx(last["match_mean"], abs=1e-6)


def test_features_are_compared_only_where_the_cache_keeps_them(chain: Chain) -> None:
    losses = {"intermediate": "feature-l2", "last": "kl"}
    with pytest.raises(StageError, match="precompute.codec `hidden`"):
        chain.run("interaction", name="features-refused", model=FLOAT32, losses=losses, schedule=SCHEDULE)
    hidden = chain.run("precompute", name="hidden", model=FLOAT32, codec="hidden", dtype="float32", shard_samples=5)
    chain.places["precompute"], kept = hidden, chain.places["precompute"]
    try:
        student = chain.run("interaction", name="features", model=FLOAT32, losses=losses, schedule=SCHEDULE)
    finally:
        chain.places["precompute"] = kept
    assert "matches" in read_journal(student)[0]


def test_a_missing_input_is_named(chain: Chain) -> None:
    with pytest.raises(StageError, match="need the input `precompute`"):
        chain.run("interaction", name="no-cache", leave_out=("precompute",), model=FLOAT32, schedule=SCHEDULE)


def test_captured_and_freshly_computed_states_give_the_same_cache(chain: Chain) -> None:
    everything = chain.run(
        "capture", name="everything", model=FLOAT32, target_layers=[0, 1, 3], fraction=1.0, dtype="float32"
    )
    chain.places["capture"], kept = everything, chain.places["capture"]
    try:
        captured = chain.run("precompute", name="captured", model=FLOAT32, dtype="float32", shard_samples=5)
    finally:
        chain.places["capture"] = kept
    from stages.cache.reader import CacheReader

    one, other = (CacheReader(folder / TARGETS_FOLDER) for folder in (captured, chain.places["precompute"]))
    assert sorted(one.ids) == sorted(other.ids)
    for sample_id in one.ids:
        ids = torch.tensor(one.read(sample_id).key.response_ids)
        for a, b in zip(one.fields([sample_id], ids), other.fields([sample_id], ids), strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_the_export_has_the_base_models_names_shapes_and_config(chain: Chain, lora: dict | None) -> None:
    name = "lora" if lora else "full"
    distilled = chain.run("interaction", name=f"export-{name}", model=FLOAT32, schedule=SCHEDULE, lora=lora)
    exported = chain.apply("reinforcement", distilled, name, model=FLOAT32, schedule=SCHEDULE, lora=lora)
    base, student = weights(chain.places["student"]), weights(exported)
    assert {k: v.shape for k, v in base.items()} == {k: v.shape for k, v in student.items()}
    changed = {key for key in base if not torch.equal(base[key], student[key])}
    assert any("embed_tokens" in key for key in changed)
    assert not [key for key in changed if "visual" in key or "vision_tower" in key or "projector" in key]
    configs = [
        AutoModelForImageTextToText.from_pretrained(place).config.to_dict()
        for place in (chain.places["student"], exported)
    ]
    for config in configs:
        config.pop("_name_or_path", None)
    assert configs[0] == configs[1]


def test_the_export_has_a_card_that_tells_where_it_comes_from(chain: Chain) -> None:
    distilled = chain.run("interaction", name="export-full", model=FLOAT32, schedule=SCHEDULE, lora=None)
    exported = chain.apply("reinforcement", distilled, "full", model=FLOAT32, schedule=SCHEDULE, lora=None)
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for stage in ("capture", "verbalization", "precompute", "interaction", "reinforcement"):
        assert f"\n{stage}: " in card
    for name in ("teacher", "student", "samples"):
        assert f"`{chain.places[name].name}`" in card
        assert str(chain.places[name].parent) not in card


def test_the_exported_student_answers_through_the_transformers_pipeline(chain: Chain) -> None:
    from transformers import pipeline

    exported = chain.apply("reinforcement", chain.places["student"], "pipeline", model=FLOAT32, schedule=SCHEDULE)
    answer = pipeline(
        "image-text-to-text",
        model=AutoModelForImageTextToText.from_pretrained(exported),
        processor=AutoProcessor.from_pretrained(exported),
    )
    picture = str(chain.places["samples"].parent / "images" / "0.png")
    messages = [{"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": "Add them."}]}]
    generated = answer(text=messages, max_new_tokens=4, return_full_text=False)
    assert isinstance(generated[0]["generated_text"], str)


def test_evaluation_scores_its_own_predictions(chain: Chain) -> None:
    import pyarrow.parquet as pq

    scored = chain.apply(
        "evaluation", chain.places["student"], "student", key="model", model=FLOAT32, max_new_tokens=4, shard_samples=5
    )
    rows = [
        row for path in sorted((scored / "predictions").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    assert [row["id"] for row in rows] == [f"sample-{index}" for index in range(12)]
    assert all(row["correct"] == (row["prediction"] == row["reference"]) for row in rows)
    summary = manifest(scored)
    assert summary["overall"] == sum(row["correct"] for row in rows) / 12
    assert {task: values["samples"] for task, values in summary["by_task"].items()} == dict.fromkeys(
        ("compare", "count", "text", "turns"), 3
    )
