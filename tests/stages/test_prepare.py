"""Prepare through its real entry, with two spawned processes, a handful of steps and models of two blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages import prepare
from stages.contract import Job, Manifest, StageError, read_journal
from stages.contract.artifact import SCRATCH_FOLDER
from stages.contract.job import execute
from stages.contract.settings import PrepareSettings
from stages.data import digits as task
from stages.data.sample import read_samples

MODEL = {"layers": 2, "width": 32, "mlp_width": 48, "vision_layers": 1, "vision_width": 32}
TRAINING = {"vision_steps": 2, "reading_steps": 2, "vision_pictures_per_step": 2, "pictures_per_step": 2}
SETTINGS = {
    "teacher": MODEL | {"extra_vocab_rows": 64},
    "teacher_training": TRAINING | {"answering_steps": 2},
    "backbone": MODEL | {"tied": True},
    "backbone_training": TRAINING,
    "train_samples": 14,
    "test_samples": 7,
}


def make_job(output: Path) -> Job:
    return Job(stage="prepare", settings=SETTINGS, inputs={}, output=str(output))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    place = tmp_path_factory.mktemp("store") / "prepared"
    return place, execute(make_job(place), prepare.run)


class TestArtifact:
    """What the other stages find."""

    def test_both_sample_files_can_be_read_whole(self, artifact: tuple[Path, Manifest]) -> None:
        place, manifest = artifact
        for name, count in (("train", 14), ("test", 7)):
            samples, bad = read_samples(place / f"{name}.jsonl")
            assert bad == []
            assert [sample.id for sample in samples] == [f"{name}-{number:06d}" for number in range(count)]
            assert {sample.task for sample in samples} == set(task.KINDS)
            assert manifest.summary[f"{name}_samples"] == count

    def test_the_checkpoints_load_as_downloaded_ones_do_and_generate(self, artifact: tuple[Path, Manifest]) -> None:
        place, _ = artifact
        (sample, *_), _ = read_samples(place / "test.jsonl")
        for role in ("teacher", "backbone"):
            model = AutoModelForImageTextToText.from_pretrained(place / role)
            processor = AutoProcessor.from_pretrained(place / role)
            assert model.dtype == torch.float32
            assert all(parameter.requires_grad for parameter in model.parameters())
            prompt = processor.apply_chat_template(list(sample.messages[:1]), add_generation_prompt=True)
            inputs = processor(text=[prompt], images=sample.load_images(10_000), return_tensors="pt")
            assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]

    def test_teacher_and_backbone_share_tokens_but_not_padded_rows(self, artifact: tuple[Path, Manifest]) -> None:
        place, _ = artifact
        tokenizers = [AutoProcessor.from_pretrained(place / role).tokenizer for role in ("teacher", "backbone")]
        assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
        rows = [
            AutoModelForImageTextToText.from_pretrained(place / role).config.text_config.vocab_size
            for role in ("teacher", "backbone")
        ]
        assert rows[0] == rows[1] + 64

    def test_nothing_that_only_serves_the_training_is_kept(self, artifact: tuple[Path, Manifest]) -> None:
        place, _ = artifact
        assert not (place / SCRATCH_FOLDER).exists()


class TestProgress:
    """A follower of the stage's journal sees both trainings as one."""

    def test_the_journal_counts_the_steps_of_both_models(self, artifact: tuple[Path, Manifest]) -> None:
        place, _ = artifact
        lines = read_journal(place)
        steps = [line["step"] for line in lines]
        assert steps == sorted(steps)
        assert steps[-1] == lines[-1]["total"] == 6 + 4
        assert lines[-1]["unit"] == "steps"
        assert {"loss", "teacher_loss", "backbone_loss", "samples_per_second"} <= set(lines[-1])
        assert lines[-1]["loss"] == lines[-1]["teacher_loss"]


class TestFailure:
    """A training that breaks ends the stage and names the model."""

    def test_a_broken_process_ends_the_stage_with_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A process starts quickly when what it runs imports nothing; `int` raises on three arguments.
        monkeypatch.setattr(prepare, "train_model", int)
        with pytest.raises(StageError, match="trains teacher/ ended with exit code 1"):
            execute(make_job(tmp_path / "prepared"), prepare.run)
        assert not (tmp_path / "prepared").exists()


class TestDeterminism:
    """One seed, one result."""

    def test_a_model_trained_again_has_the_same_weights(self, artifact: tuple[Path, Manifest], tmp_path: Path) -> None:
        place, _ = artifact
        prepare.train_model("backbone", PrepareSettings.model_validate(SETTINGS), tmp_path)
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            assert (tmp_path / "backbone" / name).read_bytes() == (place / "backbone" / name).read_bytes()
