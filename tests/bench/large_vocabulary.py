"""A teacher and a student with Qwen2-VL's 151,936 rows in the head, trained for minutes.

The codecs keep distributions over the vocabulary, so their benchmarks need ones as a trained model has
them: a long tail over all words, entropies of many sizes, neighbouring layers that are much alike. Both
models are genuine Qwen2-VL models; their inputs are text alone, of a language of 64 meanings with 2,373
words each, whose frequencies fall as a power of their rank. The first token of a text is a key that says
which permutation the meanings follow, so that the next one can be told from the deeper layers only; one
in ten is any.

The rows of embedding and head are one and are set, not trained: those of one meaning lie near each other,
and one direction is a word's frequency, which is how trained ones look. Everything between learns. The
verbalizers are trained in the same steps as their backbone, from its detached states. The losses run over
the batch's own words and as many drawn ones, with the usual correction for how often they are drawn.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.nn.functional import cross_entropy

from stages.contract.settings import Schedule
from stages.contract.settings import Verbalizer as VerbalizerSettings
from stages.data.encoding import Batch, Encoded, collate
from stages.data.sample import Sample
from stages.models.verbalizer import Verbalizers
from stages.training.optimizer import learning_rate, make_optimizer
from tests.bench import steps
from tests.bench.steps import ModelSizes

KEYS, MEANINGS = 8, 64
NOISE = 0.1
"""How often a meaning follows no rule."""
ZIPF = 1.7
"""Words of a meaning are as frequent as their rank to the minus this."""
OWN = 0.3
"""How far a word's row lies from its meaning's, which has length one."""
ROLES = ("teacher", "student")


class Sizes(NamedTuple):
    """Of the models and of their training."""

    teacher: ModelSizes = ModelSizes(256, 10, 704, 8, 4, tied=True, stride=1)
    student: ModelSizes = ModelSizes(192, 6, 512, 6, 2, tied=True, stride=1)
    vocabulary: int = 151_936
    steps: int = 200
    sequences: int = 8
    tokens: int = 128
    negatives: int = 8_192

    @property
    def first_key(self) -> int:
        """The ids: words by falling frequency, then the keys, then a picture's four."""
        return self.vocabulary - 4 - KEYS

    @property
    def models(self) -> steps.Sizes:
        """The same as the benchmark of steps has it; the vision tower sees nothing."""
        return steps.Sizes(self.student, self.teacher, self.vocabulary, vision_width=32, vision_layers=1)


QUICK = Sizes(
    ModelSizes(32, 4, 64, 2, 1, tied=True, stride=1),
    ModelSizes(16, 3, 32, 2, 1, tied=True, stride=1),
    vocabulary=2_000,
    steps=4,
    tokens=32,
    negatives=200,
)


class Speaker(torch.nn.Module):
    """A backbone and its verbalizers, on all its blocks but the last."""

    def __init__(self, sizes: Sizes, role: str) -> None:
        super().__init__()
        model: ModelSizes = getattr(sizes, role)
        self.backbone = steps.make_backbone(model, sizes.models, seed=ROLES.index(role))
        self.model = self.backbone.model
        self.verbalizers = Verbalizers(range(model.layers - 1), model.width, VerbalizerSettings())
        set_rows(self.backbone.head.weight, sizes)

    def states(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """What each target layer gives the head, its backbone detached, and what the last one gives it, [N, d]."""
        states = self.backbone.states(batch, self.verbalizers.target_layers)
        said = self.verbalizers([state.detach() for state in states.targets], self.backbone.norm)
        return said, states.last


@torch.no_grad()
def set_rows(weight: Tensor, sizes: Sizes) -> None:
    """A word lies in its meaning's direction, a little beside it, and as far along one axis as its frequency is low."""
    words = torch.arange(len(weight))
    axis, *directions = torch.nn.functional.normalize(weight[: 1 + MEANINGS].clone())
    weight.mul_(OWN).add_(torch.stack(directions)[words % MEANINGS])
    weight.sub_(weight @ axis[:, None] * axis).sub_(ZIPF * (words // MEANINGS + 1.0).log()[:, None] * axis)
    weight.requires_grad_(False)


def train(sizes: Sizes, role: str, folder: str) -> None:
    """Train one of the two on one thread, and save it."""
    torch.set_num_threads(1)
    torch.manual_seed(ROLES.index(role))
    speaker = Speaker(sizes, role)
    trained = [parameter for parameter in speaker.parameters() if parameter.requires_grad]
    schedule = Schedule(learning_rate=3e-3, warmup_steps=sizes.steps // 10)
    optimizer = make_optimizer(trained, schedule)
    for number in range(sizes.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, sizes.steps, schedule)
        _losses(speaker, collate(_sequences(sizes, number), pad_id=0), sizes).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    save_model(speaker, str(Path(folder) / f"{role}.safetensors"))


def load(sizes: Sizes, role: str, folder: str) -> Speaker:
    """What `train` saved."""
    speaker = Speaker(sizes, role)
    load_model(speaker, str(Path(folder) / f"{role}.safetensors"))
    return speaker.eval().requires_grad_(False)


def held_out(sizes: Sizes, samples: int, response_tokens: int) -> list[Encoded]:
    """Sequences from the part of the text that nothing was trained on; only their last tokens are a response."""
    encoded = _sequences(sizes._replace(sequences=samples), -1)
    is_response = torch.arange(sizes.tokens) >= sizes.tokens - response_tokens
    return [Encoded(one.sample, one.input_ids, is_response, {}) for one in encoded]


def _losses(speaker: Speaker, batch: Batch, sizes: Sizes) -> Tensor:
    """Cross-entropy of the model at every token, and of each verbalizer at one in four, [T + 1]."""
    said, last = speaker.states(batch)
    ids = _drawn_words(batch.labels, sizes)
    expected = -torch.expm1(sizes.negatives * torch.log1p(-_word_rate(ids, sizes.vocabulary)))
    rows, correction = speaker.backbone.head.weight[ids], expected.log()
    labels = torch.searchsorted(ids, batch.labels)
    some = slice(None, None, 4)
    of_layers = [cross_entropy(x[some] @ rows.detach().T - correction, labels[some]) for x in said]
    return torch.stack([cross_entropy(last @ rows.T - correction, labels), *of_layers])


def _drawn_words(labels: Tensor, sizes: Sizes) -> Tensor:
    """The labels and other words, frequent ones more often, increasing and each once."""
    drawn = (torch.rand(sizes.negatives) * math.log(sizes.vocabulary + 1)).exp().long() - 1
    return torch.cat([labels, drawn.clamp_(0, sizes.vocabulary - 1)]).unique()


def _word_rate(ids: Tensor, vocabulary: int) -> Tensor:
    """How likely one draw is to give each id: as in a text, the n-th most frequent word about 1 / n."""
    return torch.log1p(1 / (ids + 1.0)) / math.log(vocabulary + 1)


def _sequences(sizes: Sizes, number: int) -> list[Encoded]:
    """Of training step `number`; those of -1 are held out."""
    generator = torch.Generator().manual_seed(1_000 + number)
    text = _write(sizes, generator)
    everywhere_but_first = torch.arange(sizes.tokens) > 0
    return [
        Encoded(Sample(f"{number}-{index}", (), ()), ids, everywhere_but_first, {}) for index, ids in enumerate(text)
    ]


def _write(sizes: Sizes, generator: torch.Generator) -> Tensor:
    """[sequences, tokens] ids: the key, then a word for the key's successor of each meaning before, or for any."""
    rules = torch.stack([torch.randperm(MEANINGS, generator=torch.Generator().manual_seed(k)) for k in range(KEYS)])
    key = torch.randint(KEYS, (sizes.sequences,), generator=generator)
    shape = (sizes.sequences, sizes.tokens)
    meanings = torch.randint(MEANINGS, shape, generator=generator)
    follows = torch.rand(shape, generator=generator) >= NOISE
    for place in range(2, sizes.tokens):
        successor = rules[key, meanings[:, place - 1]]
        meanings[:, place] = torch.where(follows[:, place], successor, meanings[:, place])
    words = meanings + MEANINGS * _ranks(shape, sizes, generator)
    words[:, 0] = sizes.first_key + key
    return words


def _ranks(shape: tuple[int, int], sizes: Sizes, generator: torch.Generator) -> Tensor:
    """Which of its words stands for a meaning: the n-th with a probability that falls as a power of n."""
    rates = torch.arange(1.0, sizes.first_key // MEANINGS + 1).pow(-ZIPF)
    return torch.multinomial(rates, shape[0] * shape[1], replacement=True, generator=generator).view(shape)
