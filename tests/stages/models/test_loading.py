"""What a checkpoint's settings pass on: devices, quantization, attention."""

from __future__ import annotations

import pytest
import torch

from stages.contract.settings import ModelLoading
from stages.models import backbone as module
from stages.models.backbone import Backbone
from tests.stages import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_qwen2vl(tmp_path_factory.mktemp("teacher"), width=16, layers=3, pad_rows=2, seed=0))


def test_a_model_that_accelerate_spreads_says_what_the_whole_one_says(checkpoint: str) -> None:
    """On this machine there is the CPU alone, which shows that the setting is taken, not that states move."""
    whole = Backbone.load(checkpoint, ModelLoading(dtype="float32"))
    spread = Backbone.load(checkpoint, ModelLoading(dtype="float32", device_map="auto"))
    ids = torch.arange(7)[None]
    torch.testing.assert_close(spread.model(input_ids=ids).logits, whole.model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("quantization", "expected"), [(None, None), ("int8", "load_in_8bit"), ("int4", "load_in_4bit")]
)
def test_everything_reaches_from_pretrained(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, quantization: str | None, expected: str | None
) -> None:
    """Quantized weights stay where the loader put them: moving them to a device is an error of bitsandbytes."""
    given: dict = {}
    model = Backbone.load(checkpoint, ModelLoading(dtype="float32")).model
    monkeypatch.setattr(model, "to", lambda device: given.setdefault("moved", device))
    monkeypatch.setattr(
        module.AutoModelForImageTextToText, "from_pretrained", lambda name, **rest: given.update(rest) or model
    )
    loading = ModelLoading(quantization=quantization, attn_implementation="sdpa", dtype="bfloat16")
    Backbone.load(checkpoint, loading)
    assert (given["dtype"], given["attn_implementation"]) == (torch.bfloat16, "sdpa")
    assert given["trust_remote_code"] is False
    assert ("moved" in given) == (quantization is None)
    if expected is None:
        assert given["quantization_config"] is None
    else:
        assert getattr(given["quantization_config"], expected) is True
    if quantization == "int4":
        assert given["quantization_config"].bnb_4bit_compute_dtype == torch.bfloat16


def test_many_accelerators_for_one_teacher_are_asked_for_by_the_real_experiments() -> None:
    from pipeline.config import load

    teacher = load(["experiment=qwen2vl-2b-from-72b"]).main
    resources = teacher.executor.resources_of("capture")
    assert teacher.capture.model.device_map == "auto"
    assert (resources.workers, resources.gpus_per_worker) == (2, 4)
