"""What capture and precompute do, as loops over transformers that one would write from the paper.

Neither loop writes anything: rows stay in memory. `plain` takes samples in the order of the file, a
fixed number at a time, padded to the longest, and asks the model for everything: all hidden states,
and logits at all positions. `grouped` is the same loop with the stage's own grouping by length, and
with the head at response positions only. Both verbalize and meet the heads layer by layer, at response
positions, in float32, with the teacher's distributions as a whole in memory. Preparing the samples is
part of both: pictures decoded, texts rendered and tokenized, by the same processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages.contract.files import TEACHER_VERBALIZERS_FILE
from stages.contract.settings import ModelLoading, Preprocessing
from stages.data.encoding import Encoder, collate
from stages.data.packing import pack
from stages.data.sample import Sample, read_samples
from stages.models.readout import Readout
from stages.models.scratch import RESPONSE_START, TURN_END
from stages.models.structure import BY_STRUCTURE, find_parts
from stages.models.verbalizer import Verbalizers
from tests.bench.measure import Built


class Recipe(NamedTuple):
    """What a loop is told.

    Attributes:
        teacher, student, samples, verbalizers: places.
        blocks: the target layers, without the last block: transformers gives its output normed.
        batch_samples: of the plain loop.
        batch_tokens: padded, of the grouped one.
        group_samples: that are grouped by length at a time: those of a shard.
    """

    teacher: str
    student: str
    samples: str
    verbalizers: str
    blocks: tuple[int, ...]
    batch_samples: int
    batch_tokens: int
    group_samples: int


class Step(NamedTuple):
    """One forward pass: the model's inputs, and where it predicts a response token, [B, T] bool."""

    inputs: dict[str, Tensor]
    predicts: Tensor


def build_loop(recipe: Recipe, *, grouped: bool, verbalized: bool) -> Built:
    """A loop over all samples but the first group, which it warms up with: capture's, or precompute's."""
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(recipe.teacher, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(recipe.teacher)
    samples, _ = read_samples(Path(recipe.samples))
    keep = Verbalized(model, processor, recipe) if verbalized else _keep
    steps = _grouped_steps if grouped else _plain_steps
    padding = {"tokens": 0, "padded": 0}

    @torch.no_grad()
    def process(some: Sequence[Sample]) -> list[list[Tensor]]:
        rows = []
        for step in steps(some, processor, recipe):
            rows.append(keep(*_states(model, step, recipe.blocks, logits=not grouped)))
            padding["padded"] += step.inputs["input_ids"].numel()
            padding["tokens"] += int(step.inputs["attention_mask"].sum())
        return rows

    def run() -> dict[str, float]:
        rows = process(samples[recipe.group_samples :])
        return {"sizes": sum(size_of(kept).item() for row in rows for kept in row)}

    process(samples[: recipe.group_samples])
    return Built(run, {"samples": len(samples) - recipe.group_samples}, lambda: dict(padding))


def size_of(kept: Tensor) -> Tensor:
    """One number that says whether two ways to make what is kept have made the same."""
    return kept.float().abs().sum()


class Verbalized:
    """Precompute's half of the loop: every layer's moment and entropy."""

    def __init__(self, model: Any, processor: Any, recipe: Recipe) -> None:
        self._verbalizers = Verbalizers.load(Path(recipe.verbalizers) / TEACHER_VERBALIZERS_FILE)
        parts, vocabulary = find_parts(model, BY_STRUCTURE), len(processor.tokenizer)
        self._norm, self._head = parts.norm, parts.head.weight[:vocabulary]
        student = Readout.of_checkpoint(recipe.student, ModelLoading(dtype="float32"))
        self._student = student.head_rows(vocabulary).weight

    def __call__(self, targets: list[Tensor], last: Tensor, logits: Tensor | None) -> list[Tensor]:
        """[N, d] states to (m, H) of each layer, kept in bfloat16 and float32."""
        kept: list[Tensor] = []
        for x in self._verbalizers(targets, self._norm):
            kept += self._target(x @ self._head.T)
        return kept + self._target(last @ self._head.T if logits is None else logits[:, : len(self._head)])

    def _target(self, logits: Tensor) -> list[Tensor]:
        log_q = logits.log_softmax(dim=-1)
        q = log_q.exp()
        return [(q @ self._student).bfloat16(), -(q * log_q).sum(dim=-1)]


def _keep(targets: list[Tensor], last: Tensor, _logits: Tensor | None) -> list[Tensor]:
    """Capture's half of the loop."""
    return [state.bfloat16() for state in (*targets, last)]


def _states(
    model: nn.Module, step: Step, blocks: Sequence[int], *, logits: bool
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """States of the target layers, the head's input, and the logits if they were asked for, [N, ...] each."""
    output = (model if logits else model.base_model)(**step.inputs, output_hidden_states=True, use_cache=False)
    targets = [output.hidden_states[block + 1][step.predicts] for block in blocks]
    return targets, output.hidden_states[-1][step.predicts], output.logits[step.predicts] if logits else None


def _plain_steps(samples: Sequence[Sample], processor: Any, recipe: Recipe) -> Iterator[Step]:
    """The processor does the padding; a response is what follows the last turn's header."""
    header = processor.tokenizer(RESPONSE_START)["input_ids"]
    turn_end = processor.tokenizer.convert_tokens_to_ids(TURN_END)
    for start in range(0, len(samples), recipe.batch_samples):
        some = samples[start : start + recipe.batch_samples]
        texts = [processor.apply_chat_template(list(sample.messages), tokenize=False) for sample in some]
        images = [image for sample in some for image in sample.load_images(10**8)]
        inputs = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
        places = torch.arange(inputs["input_ids"].shape[1])
        first = places.mul(inputs["input_ids"] == header[0]).amax(dim=1, keepdim=True) + len(header)
        last = places.mul(inputs["input_ids"] == turn_end).amax(dim=1, keepdim=True)
        yield Step(dict(inputs), (places >= first - 1) & (places < last))


def _grouped_steps(samples: Sequence[Sample], processor: Any, recipe: Recipe) -> Iterator[Step]:
    """The stage's own functions, one after the other."""
    encoder = Encoder(processor, Preprocessing(), memory_bytes=0)
    for start in range(0, len(samples), recipe.group_samples):
        encoded = [encoder.encode(sample) for sample in samples[start : start + recipe.group_samples]]
        for indices in pack([len(one.input_ids) for one in encoded], max_tokens=recipe.batch_tokens):
            batch = collate([encoded[index] for index in indices], encoder.pad_id)
            predicts = torch.zeros(batch.inputs["input_ids"].shape, dtype=torch.bool)
            predicts[batch.rows, batch.positions] = True
            yield Step(batch.inputs, predicts)
