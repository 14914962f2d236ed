"""Teach a small Qwen2-VL from nothing: first its vision tower to see, then everything else to answer.

The vision tower is trained on its own, as vision encoders are: a linear probe, thrown away afterwards, has to name
what every image token shows (of the digits task, the digit and its place). From then on it is frozen, and the rest
learns from answers alone. Trained together from random weights, this narrow a model answers from habit and never
learns to look.

Several questions about one picture share one row: each sees the picture and itself, at the positions it would have
alone. The loss is exactly that of single-turn conversations, at half the cost.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stages.data.lessons import Lessons, Picture, Question, messages
from stages.models.scratch import IMAGE_TOKEN, RESPONSE_START, TURN_END, VISION_END

if TYPE_CHECKING:
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    from stages.contract.settings import Pretraining

Record = Callable[..., None]
"""Called with the step (from 1) and its numbers."""

StepLoss = Callable[[int], tuple[Tensor, int]]
"""From a step (from 0) to the loss of its batch and how many samples are in it."""


@dataclass(frozen=True)
class Conversation:
    """One question and its answer as tokens.

    Attributes:
        prefix: the tokens up to the end of the picture, the same for every question about it.
        rest: the tokens after it, through the `<|im_end|>` of the answer.
        num_response_tokens: how many at the end of `rest` are the response.
    """

    prefix: tuple[int, ...]
    rest: tuple[int, ...]
    num_response_tokens: int


@dataclass(frozen=True)
class PackedBatch:
    """Pictures with several questions each.

    Attributes:
        input_ids: [B, T] int64, padded at the end.
        attention_mask: [B, 1, T, T] float32, 0 where a token sees another and the lowest number elsewhere.
        position_ids: [3, B, T] int64, time, height and width.
        response_mask: [B, T] bool, the tokens the loss is taken on.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    response_mask: Tensor


class Encoder:
    """Turns questions into tokens for one processor and one picture size; remembers what it has seen."""

    def __init__(self, processor: Qwen2VLProcessor, image: Image.Image) -> None:
        """All pictures have the size of `image`."""
        self._processor = processor
        grid = processor.image_processor([image], return_tensors="pt")["image_grid_thw"]
        self.image_grid_thw: Tensor = grid
        """[1, 3] int64, of one picture."""
        self._num_image_tokens = int(grid.prod()) // processor.image_processor.merge_size**2
        self.conversation = functools.cache(self._conversation)

    def pixels(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """[patches, patch width] float32 and [B, 3] int64, as the vision tower takes them."""
        features = self._processor.image_processor([picture.image for picture in pictures], return_tensors="pt")
        return features["pixel_values"], features["image_grid_thw"]

    def _conversation(self, question: Question) -> Conversation:
        tokenizer = self._processor.tokenizer
        text = self._processor.apply_chat_template(messages(question))
        text = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * self._num_image_tokens)
        prompt, response = text.split(RESPONSE_START)
        prompt_ids = tokenizer(prompt + RESPONSE_START)["input_ids"]
        response_ids = tokenizer(response[: response.index(TURN_END) + len(TURN_END)])["input_ids"]
        cut = prompt_ids.index(tokenizer.convert_tokens_to_ids(VISION_END)) + 1
        rest = (*prompt_ids[cut:], *response_ids)
        return Conversation(tuple(prompt_ids[:cut]), rest, len(response_ids))


def pack(rows: Sequence[Sequence[Conversation]], prefix_positions: Tensor) -> PackedBatch:
    """Put the conversations about each picture into one row.

    Args:
        rows: per picture its conversations, all with the same prefix.
        prefix_positions: [3, prefix length] int64, from the model's own rule.
    """
    length = max(len(row[0].prefix) + sum(len(c.rest) for c in row) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    segments = torch.full((len(rows), length), -1)
    positions = torch.zeros(3, len(rows), length, dtype=torch.int64)
    response_mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        end = len(row[0].prefix)
        input_ids[index, :end] = torch.tensor(row[0].prefix)
        segments[index, :end] = 0
        positions[:, index, :end] = prefix_positions
        for segment, conversation in enumerate(row, start=1):
            start, end = end, end + len(conversation.rest)
            input_ids[index, start:end] = torch.tensor(conversation.rest)
            segments[index, start:end] = segment
            positions[:, index, start:end] = prefix_positions.max() + 1 + torch.arange(end - start)
            response_mask[index, end - conversation.num_response_tokens : end] = True
    return PackedBatch(input_ids, _attention_mask(segments), positions, response_mask)


def prefix_positions(model: Qwen2VLForConditionalGeneration, encoder: Encoder, prefix: Sequence[int]) -> Tensor:
    """[3, prefix length] int64: where the model itself would place the tokens up to the end of the picture."""
    input_ids = torch.tensor([prefix])
    mm_token_type_ids = (input_ids == model.config.image_token_id).int()
    positions, _ = model.model.get_rope_index(input_ids, mm_token_type_ids, image_grid_thw=encoder.image_grid_thw)
    return positions[:, 0]


def response_loss(model: Qwen2VLForConditionalGeneration, hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Mean cross-entropy of the response tokens, in nats; the head sees no other position.

    Args:
        hidden: [B, T, D] float32, the inputs of the head.
    """
    predicts = hidden[:, :-1][batch.response_mask[:, 1:]]
    return F.cross_entropy(model.lm_head(predicts), batch.input_ids[batch.response_mask])


def train_vision(
    model: Qwen2VLForConditionalGeneration,
    encoder: Encoder,
    lessons: Lessons,
    settings: Pretraining,
    *,
    generator: np.random.Generator,
    record: Record,
) -> None:
    """Train the vision tower to tell what every image token shows, then freeze it."""
    tower = model.model.visual
    probe = nn.Linear(model.lm_head.in_features, sum(lessons.shown))
    parameters = [*tower.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.vision_learning_rate, weight_decay=settings.weight_decay)
    pictures = settings.vision_pictures_per_step

    def step_loss(step: int) -> tuple[Tensor, int]:
        batch = [lessons.draw(generator) for _ in range(pictures)]
        pixel_values, grid = encoder.pixels(batch)
        seen = probe(tower(pixel_values, grid_thw=grid).pooler_output)
        truth = map(torch.from_numpy, lessons.seen(batch))
        parts = seen.split(list(lessons.shown), dim=1)
        losses = [F.cross_entropy(part, label) for part, label in zip(parts, truth, strict=True)]
        return torch.stack(losses).sum(), pictures

    _optimize([optimizer], step_loss, settings.vision_steps, settings, record)
    tower.requires_grad_(False)


def train_answers(
    model: Qwen2VLForConditionalGeneration,
    encoder: Encoder,
    lessons: Lessons,
    settings: Pretraining,
    *,
    generator: np.random.Generator,
    record: Record,
) -> None:
    """Train everything but the (frozen) vision tower: on questions to read, then on all kinds."""
    blank = encoder.conversation(Question("", ""))
    positions = prefix_positions(model, encoder, blank.prefix)

    def step_loss(step: int) -> tuple[Tensor, int]:
        reading = step < settings.reading_steps
        pictures = [lessons.draw(generator) for _ in range(settings.pictures_per_step)]
        asked = [lessons.ask(picture, generator, reading=reading) for picture in pictures]
        batch = pack([[encoder.conversation(question) for question in questions] for questions in asked], positions)
        loss = response_loss(model, hidden_states(model, encoder, pictures, batch), batch)
        return loss, sum(map(len, asked))

    steps = settings.reading_steps + settings.answering_steps
    _optimize(_decoder_optimizers(model, settings), step_loss, steps, settings, record)


def hidden_states(
    model: Qwen2VLForConditionalGeneration, encoder: Encoder, pictures: Sequence[Picture], batch: PackedBatch
) -> Tensor:
    """[B, T, D] float32: the inputs of the head for a packed batch."""
    pixel_values, image_grid_thw = encoder.pixels(pictures)
    outputs = model.model(
        input_ids=batch.input_ids,
        mm_token_type_ids=(batch.input_ids == model.config.image_token_id).int(),
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        use_cache=False,
    )
    return outputs.last_hidden_state


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at a step counted from 0: a linear rise, then half a cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def _decoder_optimizers(model: Qwen2VLForConditionalGeneration, settings: Pretraining) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder blocks, AdamW for everything else that is trained.

    Looking up a place is learned all at once, after a long plateau that AdamW alone needs several times the steps for.
    """
    matrices = [parameter for parameter in model.model.language_model.layers.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    decay = settings.weight_decay
    return [
        torch.optim.Muon(
            matrices, lr=settings.matrix_learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=settings.learning_rate, weight_decay=decay),
    ]


def _optimize(
    optimizers: Sequence[torch.optim.Optimizer],
    step_loss: StepLoss,
    steps: int,
    settings: Pretraining,
    record: Record,
) -> None:
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    for step in range(steps):
        started = time.perf_counter()
        factor = learning_rate_factor(step, steps=steps, warmup_steps=min(settings.warmup_steps, steps))
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * factor
        loss, samples = step_loss(step)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
        for optimizer in optimizers:
            optimizer.step()
        record(step + 1, loss=loss.item(), samples_per_second=samples / (time.perf_counter() - started))


def _attention_mask(segments: Tensor) -> Tensor:
    """[B, T] segment numbers (0 the shared prefix, -1 padding) to an additive [B, 1, T, T] mask."""
    order = torch.arange(segments.shape[1])
    shared = segments[:, None, :] == 0
    same = segments[:, None, :] == segments[:, :, None]
    sees = (order[:, None] >= order[None, :]) & (shared | same)
    return torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)[:, None]
