"""Which parts of a student are trained, with or without LoRA, and how it is saved.

What is trained is kept in float32 whatever the checkpoint's dtype: an update of 1e-4 of a weight is
lost in bfloat16. A saved student has the checkpoint's dtype again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from stages.contract.job import StageError
from stages.contract.settings import Lora, Schedule
from stages.models.backbone import Backbone


def train_decoder(backbone: Backbone, lora: Lora | None) -> None:
    """Train the decoder blocks; head, embeddings, final norm, vision tower and projector stay frozen."""
    backbone.model.requires_grad_(False)
    if lora:
        add_lora(backbone.blocks, lora)
    else:
        _train(backbone.blocks)


def train_language_model(backbone: Backbone, lora: Lora | None) -> None:
    """Train decoder, embeddings and head; vision tower and projector stay frozen.

    With LoRA the blocks are adapted, and embeddings and head are trained in full.
    """
    train_decoder(backbone, lora)
    if not lora:
        _train(backbone.norm)
    _train(backbone.model.get_input_embeddings())
    _train(backbone.head)


def prepare_for_training(backbone: Backbone, schedule: Schedule) -> None:
    """Training mode, with gradient checkpointing where the schedule asks for it."""
    backbone.model.train()
    if schedule.gradient_checkpointing:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})


def add_lora(blocks: nn.Module, lora: Lora) -> None:
    """Put LoRA adapters on the linear layers of the decoder blocks; only the adapters require gradient.

    Raises:
        StageError: a target module is in none of the blocks; the message names those that are.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if missing := missing_targets(blocks, lora):
        raise StageError(
            f"lora.target_modules: the decoder blocks have no linear module {', '.join(missing)}; they have "
            f"{', '.join(dict.fromkeys(name.rpartition('.')[2] for name in _linear_modules(blocks)))}. Experts that "
            "are kept in one tensor are not among them: those are trained in full only"
        )
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.target_modules)
    )
    inject_adapter_in_model(config, blocks)
    for parameter in blocks.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def missing_targets(blocks: nn.Module, lora: Lora) -> list[str]:
    """The target modules that no decoder block has."""
    there = [f".{name}" for name in _linear_modules(blocks)]
    return [target for target in lora.target_modules if not any(name.endswith(f".{target}") for name in there)]


def merge_lora(blocks: nn.Module) -> None:
    """Fold the adapters into the weights and take them out: the modules are the base model's again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, module) for name, module in blocks.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(blocks.get_submodule(parent), child, module.get_base_layer())


def save_student(backbone: Backbone, processor: Any, folder: Path) -> None:
    """Export in plain Hugging Face form, with exactly the base model's parameters, dtype and configuration."""
    merge_lora(backbone.blocks)
    backbone.model.eval()
    dtype = backbone.dtype
    for parameter in backbone.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    backbone.model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _linear_modules(blocks: nn.Module) -> list[str]:
    return [name for name, module in blocks.named_modules() if isinstance(module, nn.Linear)]


def _train(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
