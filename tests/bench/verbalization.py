"""Verbalization from captured states, against tuned-lens on the same model, samples and steps.

The model is a genuine LLaVA with a Llama decoder; tuned-lens sees the same decoder as the Llama it
is, and runs its own training loop with its own cross-entropy loss: the backbone's forward pass in
every step, one linear translator for the embedding and each block but the last, the loss at every
token. Ours reads captured states of the same blocks and has a loss at response tokens only.

Text only. A sample is a prompt five times as long as its answer, as instruction data has. Its first
token is a key that says which permutation the answer's words follow, so that the answer can be told
from the deeper layers only; one word in ten is random, in prompts every third one. The model is
trained on all tokens first. What is compared is the cross-entropy at response tokens of held-out samples.

Both sides have the best of the learning rates that were tried: 1, 2, 4 and 8e-3 for ours; for
tuned-lens 1 and 4e-3 with Adam and its default with SGD. It computes its lens in bfloat16 autocast:
the `float32` line switches that off, so that both sides have one dtype, the `autocast` line leaves it
on and switches it on for ours too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from stages.cache.codecs import Field
from stages.cache.reader import CacheReader
from stages.cache.shard import Layout
from stages.contract.files import LAST_LAYER, STATES_FOLDER, block_column
from stages.contract.settings import ModelLoading, Schedule
from stages.contract.settings import Verbalizer as VerbalizerSettings
from stages.data.encoding import Batch, Encoded, collate
from stages.data.sample import Sample
from stages.losses.divergence import divergence, label_target, partition, trained_cross_entropy
from stages.models.backbone import Backbone
from stages.models.verbalizer import Verbalizers
from stages.training.optimizer import learning_rate, make_optimizer
from tests.bench.caches import Piece, save_cache
from tests.bench.measure import Built, Side, alternate, apart
from tests.bench.results import Check, Result

SPEEDUP_AT_LEAST = 5
KEYS, WORDS = 8, 64
"""Permutations, and words of an answer; the prompt's words are others."""


class Sizes(NamedTuple):
    """Of the model, the samples and the training."""

    vocabulary: int = 32_000
    width: int = 256
    layers: int = 8
    mlp_width: int = 688
    prompt_tokens: int = 160
    response_tokens: int = 32
    batch: int = 4
    pretraining_steps: int = 200
    rounds: int = 4
    steps_per_round: int = 8
    held_out: int = 32

    @property
    def steps(self) -> int:
        """Of both sides' training."""
        return (self.rounds + 1) * self.steps_per_round

    @property
    def target_layers(self) -> list[int]:
        """All blocks whose output is not the last state: those tuned-lens has a translator for."""
        return list(range(self.layers - 1))


QUICK = Sizes(512, 32, 3, 64, 20, 4, batch=2, pretraining_steps=2, rounds=1, steps_per_round=2, held_out=4)


def compare(quick: bool) -> Iterator[Result]:
    """Time of a step, and cross-entropy after equally many."""
    sizes = QUICK if quick else Sizes()
    with TemporaryDirectory() as folder:
        apart(prepare, sizes=sizes, folder=folder)
        for dtype in ("float32", "autocast"):
            arguments = {"sizes": sizes, "folder": folder, "dtype": dtype}
            sides = {"ours": Side(build_verbalization, arguments), "baseline": Side(build_tuned_lens, arguments)}
            measured = alternate(sides, repeats=sizes.rounds, warmups=1)
            result = Result(
                f"verbalization-{dtype}",
                f"verbalization from captured states against tuned-lens, {sizes.steps} steps each",
                **measured,
                dtype="float32" if dtype == "float32" else "bfloat16 autocast over float32 weights",
                steps_per_run=sizes.steps_per_round,
            )
            excess = measured["ours"].notes["cross_entropy"] - measured["baseline"].notes["cross_entropy"]
            if dtype == "float32":
                result.checks = [
                    Check("speedup", result.ratio, SPEEDUP_AT_LEAST),
                    Check("excess cross-entropy", excess, 0, at_most=True),
                ]
            yield result


def build_verbalization(sizes: Sizes, folder: str, dtype: str) -> Built:
    """Ours: the teacher's half of the verbalization stage."""
    backbone = _load(folder)
    cache = CacheReader(Path(folder) / STATES_FOLDER)
    head = backbone.readout.head_rows(sizes.vocabulary)
    torch.manual_seed(0)
    verbalizers = Verbalizers(sizes.target_layers, sizes.width, VerbalizerSettings())
    schedule = Schedule(learning_rate=8e-3, warmup_steps=sizes.steps // 10)
    optimizer = make_optimizer(verbalizers.parameters(), schedule)
    batches = enumerate([collate(_samples(sizes, number), 0) for number in range(sizes.steps)])

    def losses(states: list[Tensor], labels: Tensor) -> Tensor:
        said = torch.stack(verbalizers(states, backbone.norm))
        return divergence(said, partition(said, head), label_target(labels, head)).mean(dim=1)

    def step(number: int, batch: Batch) -> None:
        states = [fields[0] for fields in cache.fields(batch.sample_ids, batch.labels)[:-1]]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, sizes.steps, schedule)
        with _autocast(dtype):
            loss = losses(states, batch.labels).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(verbalizers.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def run() -> dict[str, float]:
        for _ in range(sizes.steps_per_round):
            step(*next(batches))
        return {}

    @torch.no_grad()
    def finish() -> dict[str, Any]:
        batch = _held_out(sizes)
        by_layer = losses(list(backbone.states(batch, sizes.target_layers).targets), batch.labels)
        return _notes(by_layer, backbone, batch, sizes)

    return Built(run, finish=finish)


def build_tuned_lens(sizes: Sizes, folder: str, dtype: str) -> Built:
    """tuned-lens: its lens, its optimizer and its loop; only the loading of models and data is ours."""
    from tuned_lens import TunedLens
    from tuned_lens.scripts import ingredients
    from tuned_lens.scripts.train_loop import LossChoice, State, Train

    class Lens(TunedLens):
        def forward(self, h: Tensor, idx: int) -> Tensor:
            with nullcontext() if dtype == "autocast" else torch.autocast("cpu", enabled=False):
                return super().forward(h, idx)

    class Loop(Train):
        def setup(self) -> tuple[State, LlamaForCausalLM, int]:
            return state, llama, 1

    backbone = _load(folder)
    llama = _as_llama(backbone)
    lens = Lens.from_model(llama)
    recipe = ingredients.Optimizer(optimizer=ingredients.OptimizerOption.ADAM, lr_scale=4.0)
    optimizer = recipe.create_optim([parameter for parameter in lens.parameters() if parameter.requires_grad])
    scheduler = recipe.create_scheduler(optimizer, sizes.steps)
    ids = [collate(_samples(sizes, number), 0).inputs["input_ids"] for number in range(sizes.steps)]
    batches = iter([{"input_ids": of_batch} for of_batch in ids])
    state = State(batches, lens, optimizer, scheduler, wandb_id=None, nats_to_bpb=1.0)
    loop = Loop(
        ingredients.Model(name=""),
        ingredients.Data(),
        recipe,
        ingredients.Distributed(),
        output=Path(folder) / "lens",
        num_steps=0,
        loss=LossChoice.CE,
    )

    def run() -> dict[str, float]:
        loop.num_steps += sizes.steps_per_round
        loop.execute()
        return {}

    @torch.no_grad()
    def finish() -> dict[str, Any]:
        batch = _held_out(sizes)
        states = backbone.states(batch, sizes.target_layers).targets
        logits = [lens(block, idx=layer + 1) for layer, block in zip(sizes.target_layers, states, strict=True)]
        by_layer = torch.stack([nn.functional.cross_entropy(of_layer, batch.labels) for of_layer in logits])
        return _notes(by_layer, backbone, batch, sizes)

    return Built(run, finish=finish)


def prepare(sizes: Sizes, folder: str) -> None:
    """Train the backbone, save it, and capture its states at the training samples' responses."""
    backbone = Backbone(_make_model(sizes))
    _pretrain(backbone, sizes)
    backbone.model.save_pretrained(folder)
    columns = (*map(block_column, sizes.target_layers), LAST_LAYER)
    layout = Layout("states", columns, (Field(sizes.width, torch.float32),))
    save_cache(Path(folder) / STATES_FOLDER, layout, _captured(backbone, sizes))


@torch.no_grad()
def _captured(backbone: Backbone, sizes: Sizes) -> Iterator[Piece]:
    """The states of every training step's samples."""
    for number in range(sizes.steps):
        samples = _samples(sizes, number)
        states = backbone.states(collate(samples, 0), sizes.target_layers)
        yield samples, [[state] for state in (*states.targets, states.last)]


def _pretrain(backbone: Backbone, sizes: Sizes) -> None:
    """Next-token prediction at every token."""
    schedule = Schedule(learning_rate=2e-3, warmup_steps=sizes.pretraining_steps // 10)
    optimizer = make_optimizer(backbone.model.parameters(), schedule)
    for number in range(sizes.pretraining_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, sizes.pretraining_steps, schedule)
        inputs = collate(_samples(sizes, -2 - number), 0).inputs
        states = backbone.model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        labels = inputs["input_ids"][:, 1:].flatten()
        head = backbone.readout.trained_head()
        loss, _ = trained_cross_entropy(states, head, labels, vocabulary=sizes.vocabulary)
        (loss / len(labels)).backward()
        nn.utils.clip_grad_norm_(backbone.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _make_model(sizes: Sizes) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.width // 16,
        initializer_range=sizes.width**-0.5,
    )
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_id=0))


def _load(folder: str) -> Backbone:
    backbone = Backbone.load(folder, ModelLoading(dtype="float32"))
    backbone.model.requires_grad_(False)
    return backbone


def _as_llama(backbone: Backbone) -> LlamaForCausalLM:
    """The decoder and head of a LLaVA, nothing copied."""
    with torch.device("meta"):
        llama = LlamaForCausalLM(backbone.model.config.text_config)
    llama.model, llama.lm_head = backbone.model.get_decoder(), backbone.head
    return llama.eval()


def _held_out(sizes: Sizes) -> Batch:
    return collate(_samples(sizes._replace(batch=sizes.held_out), -1), 0)


def _samples(sizes: Sizes, number: int) -> list[Encoded]:
    """The samples of training step `number`; -1 are the held-out ones, below are the model's own."""
    generator = torch.Generator().manual_seed(1_000_000 + number)
    return [_sample(sizes, f"{number}:{index}", generator) for index in range(sizes.batch)]


def _sample(sizes: Sizes, name: str, generator: torch.Generator) -> Encoded:
    """A key, a prompt and an answer; ids: 0 unused, then keys, words of answers, words of prompts."""
    rules = torch.stack([torch.randperm(WORDS, generator=torch.Generator().manual_seed(k)) for k in range(KEYS + 1)])
    key = int(torch.randint(KEYS, (), generator=generator))
    prompt = _chain(rules[KEYS], sizes.prompt_tokens - 1, 1 / 3, generator) + 1 + KEYS + WORDS
    answer = _chain(rules[key], sizes.response_tokens, 1 / 10, generator) + 1 + KEYS
    input_ids = torch.cat([torch.tensor([1 + key]), prompt, answer])
    return Encoded(Sample(name, (), ()), input_ids, torch.arange(len(input_ids)) >= sizes.prompt_tokens, {})


def _chain(rule: Tensor, length: int, noise: float, generator: torch.Generator) -> Tensor:
    """[length] words, each the rule's successor of the one before, or random."""
    words = torch.randint(len(rule), (length,), generator=generator)
    is_random = torch.rand(length, generator=generator) < noise
    for place in range(1, length):
        if not is_random[place]:
            words[place] = rule[words[place - 1]]
    return words


def _autocast(dtype: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if dtype == "autocast" else nullcontext()


@torch.no_grad()
def _notes(by_layer: Tensor, backbone: Backbone, batch: Batch, sizes: Sizes) -> dict[str, Any]:
    """Cross-entropies on held-out response tokens: of each layer, their mean, the model's own."""
    last = backbone.states(batch, ()).last
    head = backbone.readout.head_rows(sizes.vocabulary)
    own = divergence(last, partition(last, head), label_target(batch.labels, head)).mean()
    return {
        "cross_entropy": by_layer.mean().item(),
        "cross_entropy_by_layer": by_layer.tolist(),
        "cross_entropy_of_the_model": own.item(),
    }
