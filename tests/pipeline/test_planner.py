"""The planner against genuine models: parameters on the meta device, operations as torch counts them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from pipeline.planner import costs, memory
from pipeline.planner.models import ModelSize
from pipeline.planner.work import Machine, Recipe, Workload
from stages.contract.settings import Lora, Schedule, Verbalizer
from stages.losses.divergence import Head, moment_target, partition
from stages.models.backbone import Backbone
from stages.models.student import prepare_for_training, train_decoder
from stages.models.verbalizer import Verbalizers

VISION = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "spatial_patch_size": 14}


def published_qwen2_vl(layers: int, width: int, mlp: int, heads: int, shared: int, rows: int, tied: bool) -> dict:
    """As the hub has it: the decoder's settings at the top."""
    return {
        "model_type": "qwen2_vl",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": VISION | {"hidden_size": width},
    }


def published_llava_onevision(layers: int, width: int, mlp: int, heads: int, shared: int, rows: int) -> dict:
    return {
        "model_type": "llava_onevision",
        "text_config": {
            "model_type": "qwen2",
            "num_hidden_layers": layers,
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_attention_heads": heads,
            "num_key_value_heads": shared,
            "vocab_size": rows,
            "tie_word_embeddings": width < 1000,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }


QWEN2_VL_2B = published_qwen2_vl(28, 1536, 8960, 12, 2, 151936, True)
QWEN2_VL_7B = published_qwen2_vl(28, 3584, 18944, 28, 4, 152064, False)
QWEN2_VL_72B = published_qwen2_vl(80, 8192, 29568, 64, 8, 152064, False)
PUBLISHED = {
    "Qwen2-VL-2B": (QWEN2_VL_2B, 2.21e9),
    "Qwen2-VL-7B": (QWEN2_VL_7B, 8.29e9),
    "Qwen2-VL-72B": (QWEN2_VL_72B, 73.4e9),
    "LLaVA-OV-0.5B": (published_llava_onevision(24, 896, 4864, 14, 2, 152000), 0.894e9),
    "LLaVA-OV-7B": (published_llava_onevision(28, 3584, 18944, 28, 4, 152064), 8.03e9),
}


def empty_model(config: dict) -> PreTrainedModel:
    """The genuine class of a published configuration, without memory for its weights."""
    classes = {
        "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
        "llava_onevision": (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration),
    }
    config_class, model_class = classes[config["model_type"]]
    with torch.device("meta"):
        return model_class(config_class(**{k: v for k, v in config.items() if k != "model_type"}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_models(name: str) -> None:
    config, about = PUBLISHED[name]
    size, model = ModelSize.of_config(config), empty_model(config)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert size.parameters == pytest.approx(about, rel=0.01)
    block = model.get_decoder().layers[0]
    assert size.block_parameters == sum(parameter.numel() for parameter in block.parameters())
    assert ModelSize.of_config(model.config.to_dict()) == size, "as transformers writes it, with `text_config`"


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'blip' cannot be planned; known: qwen2_vl, llava_onevision"):
        ModelSize.of_config({"model_type": "blip"})


def test_adapters_and_verbalizers_are_counted() -> None:
    model = Backbone(tiny_model())
    train_decoder(model, Lora(rank=3))
    assert SIZE.lora_parameters(3) == sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    verbalizers = Verbalizers([0, 1], SIZE.width, Verbalizer())
    assert SIZE.verbalizer_parameters(2) == sum(p.numel() for p in verbalizers.parameters())
    assert ModelSize.of_config(QWEN2_VL_7B).verbalizer_parameters(7) == pytest.approx(269.7e6, rel=1e-3)  # METHOD §1
    assert ModelSize.of_config(QWEN2_VL_2B).lora_parameters(64) == 64 * 28 * (9 * 1536 + 2 * 256 + 3 * 8960)


TINY = published_qwen2_vl(6, 48, 96, 2, 1, 300, False) | {
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 4, 4]},
    "vision_config": {"depth": 3, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 48},
    "image_token_id": 1,
    "vision_start_token_id": 2,
}
WIDE = TINY | {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    "vision_config": TINY["vision_config"] | {"hidden_size": 256},
}
SIZE = ModelSize.of_config(TINY)
WORK = Workload(samples=2, text_tokens=9, image_tokens=6, response_tokens=5, patches=24, patches_per_picture=24)
RECIPE = Recipe(
    teacher_targets=3,
    student_targets=2,
    vocabulary=290,
    state_bytes=192,
    cached_bytes=100,
    micro_batch_samples=2,
    batch_samples=2,
    lora_rank=4,
    number_bytes=4,
)
ONCE_FOR_ALL_BLOCKS = 0.09
"""Share of masks and rotations, which are as many for 4 blocks as for 80, in what is kept of 4 blocks' inputs."""
MACHINE = Machine(1e12, 1e11, 1e10, 1e10)


def tiny_model(published: dict = TINY, attention: str = "eager") -> PreTrainedModel:
    torch.manual_seed(0)
    config = {k: v for k, v in published.items() if k != "model_type"}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config, attn_implementation=attention))


def inputs() -> dict[str, torch.Tensor]:
    """Two samples of `WORK`: a picture of 4 x 6 patches, then text."""
    image = int(WORK.image_tokens)
    ids = torch.full((2, int(WORK.tokens)), 7)
    ids[:, 1 : 1 + image] = 1
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 1).int(),
        "pixel_values": torch.randn(2 * int(WORK.patches), 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 4, 6]] * 2),
    }


def counted(action: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def test_forward_operations_are_those_that_torch_counts() -> None:
    model, batch = tiny_model(), inputs()
    with torch.no_grad():
        assert WORK.forward_flops(SIZE) == counted(lambda: model.base_model(**batch, use_cache=False))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rank", [None, 4])
def test_training_operations_are_those_that_torch_counts(rank: int | None, checkpointing: bool) -> None:
    """But for two things: eager attention, which torch can count, keeps what a fused one computes again
    (one product in five), and with adapters nobody asks for the gradient of the first block's input.
    """
    backbone, batch = Backbone(tiny_model()), inputs()
    recipe = replace(RECIPE, lora_rank=rank, checkpointing=checkpointing)
    train_decoder(backbone, Lora(rank=rank) if rank else None)
    prepare_for_training(backbone, Schedule(gradient_checkpointing=checkpointing))
    backbone.model.disable_input_require_grads()
    tokens = WORK.samples * WORK.tokens
    computed_again = SIZE.layers * 2 * tokens * WORK.tokens * SIZE.width
    first_input = 2 * tokens * SIZE.width * (SIZE.width + 2 * SIZE.key_value_width + 3 * rank) if rank else 0

    measured = counted(lambda: backbone.model.base_model(**batch, use_cache=False).last_hidden_state.sum().backward())
    assert costs.decoder_training(SIZE, WORK, recipe).half_flops == measured + computed_again + first_input


def test_operations_of_the_heads_are_those_that_torch_counts() -> None:
    """Two products a token and layer for any number of targets, three where the head is trained."""
    student, teacher = (Head(torch.randn(RECIPE.vocabulary, width)) for width in (SIZE.width, 2 * SIZE.width))
    layers, tokens = 3, int(WORK.responses)
    x = torch.randn(layers, tokens, SIZE.width, requires_grad=True)
    work = costs._frozen_head_work(SIZE, layers, WORK, RECIPE, MACHINE)
    assert work.float_flops == counted(lambda: partition(x, student))
    wide = replace(SIZE, width=2 * SIZE.width)
    precompute = costs.precompute(wide, SIZE, WORK, replace(RECIPE, teacher_targets=0), MACHINE)
    states = torch.randn(tokens, wide.width)
    assert precompute.work.float_flops == counted(lambda: moment_target(states, teacher, student))


def test_operations_of_the_verbalizers_are_those_that_torch_counts() -> None:
    verbalizers = Verbalizers([0, 1], SIZE.width, Verbalizer())
    states = [torch.randn(int(WORK.responses), SIZE.width) for _ in range(2)]
    measured = counted(lambda: torch.stack(verbalizers(states, torch.nn.Identity())).sum().backward())
    assert costs._verbalizer_training(SIZE, 2, WORK).half_flops == measured


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [None, 8])
def test_what_a_training_pass_keeps_is_what_autograd_saves(
    rank: int | None, dtype: torch.dtype, checkpointing: bool
) -> None:
    """But for the final norm's float32 input, masks and rotations; without parameters and their 16-bit copies."""
    size, batch = ModelSize.of_config(WIDE), inputs()
    backbone = Backbone(tiny_model(WIDE, attention="sdpa").to(dtype))
    train_decoder(backbone, Lora(rank=rank) if rank else None)
    prepare_for_training(backbone, Schedule(gradient_checkpointing=checkpointing))
    backbone.model.disable_input_require_grads()
    parameters = list(backbone.model.parameters())
    theirs = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    shapes = {shape for parameter in parameters for shape in (parameter.shape, parameter.shape[::-1])}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        return saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    half = dtype == torch.bfloat16
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=half):
        backbone.model.base_model(**batch, use_cache=False)
    activations = [t for place, t in saved.items() if place not in theirs and t.shape not in shapes]
    measured = sum(tensor.untyped_storage().nbytes() for tensor in activations)
    recipe = replace(RECIPE, lora_rank=rank, checkpointing=checkpointing, number_bytes=dtype.itemsize)
    expected = memory.kept_states(size, WORK, recipe, dtype.itemsize)
    expected += WORK.samples * WORK.tokens * size.width * memory.FLOAT32
    assert expected == pytest.approx(measured, rel=ONCE_FOR_ALL_BLOCKS if checkpointing else 0.02)


def test_importing_the_planner_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.planner.plan, pipeline.planner.tables\n"
        "print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
