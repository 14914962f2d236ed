"""What the codecs cost on disk, and what they keep of a teacher's layers.

Bytes are those of whole Parquet files as the stages write them, per token and layer, for the widths of
Qwen2-VL: teachers of 8,192 and 3,584, a student of 1,536. The distributions are those of a trained teacher
with 151,936 words; its states are widened (`said.widened`), and the student's head is random: a moment's
bytes depend on neither. Lists of ids compress better than those of real text would, because the trained
language has few frequent words; their bytes before compression stand beside. The baseline is what one
would keep otherwise, the raw states in bfloat16; beside it stand the 128 likeliest ids with their
probabilities.

Fidelity is measured on two trained pairs, the digits demo's and one with 151,936 words. A micro-batch is
some samples drawn at random, a quarter of them or fewer, so that most draws share little: 576 response
tokens of the large vocabulary, a whole batch of the demo. In it every student layer has a nearest teacher
layer by the mean KL, as the matching sees it; how often that is the layer which exact targets name is a
codec's agreement. The baseline is a cache of the 128 likeliest ids, renormalised. Errors are relative: of a
KL to the mean KL, of the gradient in the head's input to its exact length, both over all tokens and pairs
of layers. Where two teacher layers are equally near, the choice matters little: what other choices lose stands beside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from stages.cache.codecs import Codec, Field, from_blobs, make_codec, pack_ids, to_blobs
from stages.cache.shard import Layout
from stages.contract.files import block_column
from stages.data.encoding import Encoded
from stages.losses.divergence import Head, Target, moment_target, partition, prices
from tests.bench import large_vocabulary
from tests.bench.caches import save_cache
from tests.bench.results import Check, Finding
from tests.bench.said import QUICK_DEMO, DemoSizes, Said, of_demo, of_large_vocabulary, train_large_vocabulary, widened

CODECS = ("hidden", "hidden-int8", "moment", "moment-int8", "sampled-32")
DEMO_VARIABLE = "VLSI_BENCH_DEMO"
"""Names a folder that `vlsi prepare experiment=digits` made; without it smaller models are trained."""
TOP = 128
ROWS_AT_ONCE = 128
TEACHER_WIDTHS, STUDENT_WIDTH = (8_192, 3_584), 1_536
HIDDEN_SHARE_AT_MOST = 0.72
BYTES_AT_MOST = {"moment-int8": (1_600,), "sampled-32": (80,)}
AGREEMENT_AT_LEAST = {"moment-int8": (0.99,), "sampled-32": (0.95,)}


class Sizes(NamedTuple):
    """Of what is looked at."""

    demo: DemoSizes = DemoSizes()
    large: large_vocabulary.Sizes = large_vocabulary.Sizes()
    samples: int = 24
    response_tokens: int = 96
    samples_on_disk: int = 2
    teacher_widths: tuple[int, ...] = TEACHER_WIDTHS
    student_width: int = STUDENT_WIDTH
    batches: int = 200
    batch_samples: int = 6
    demo_batch_samples: int = 32


QUICK = Sizes(
    QUICK_DEMO,
    large_vocabulary.QUICK,
    samples=8,
    response_tokens=4,
    teacher_widths=(96, 64),
    student_width=48,
    batches=4,
    batch_samples=4,
    demo_batch_samples=4,
)


def compare(quick: bool) -> Iterator[Finding]:
    """Bytes, then fidelity."""
    sizes = QUICK if quick else Sizes()
    with TemporaryDirectory() as name:
        train_large_vocabulary(sizes.large, Path(name))
        large = of_large_vocabulary(sizes.large, Path(name), sizes.samples, sizes.response_tokens)
        yield from find_bytes(large, sizes, Path(name))
        yield from find_fidelity("151936-words", large, sizes.batches, sizes.batch_samples)
        place = os.environ.get(DEMO_VARIABLE)
        demo = of_demo(sizes.demo, Path(name), Path(place) if place else None)
        yield from find_fidelity("demo", demo, sizes.batches, sizes.demo_batch_samples)


def find_bytes(said: Said, sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Every codec's file against the raw states."""
    samples = said.samples[: sizes.samples_on_disk]
    states = said.teacher[:, : sum(said.counts[: sizes.samples_on_disk])]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(said.student_head.weight), sizes.student_width, generator=generator)
    student = Head(rows * sizes.student_width**-0.5)

    def find(name: str, codec: Codec, x: Tensor, width: int) -> Finding:
        uniform = torch.rand(x.shape[:2], dtype=torch.float64, generator=generator)
        layers = [codec.encode(layer, numbers) for layer, numbers in zip(x, uniform, strict=True)]
        size = bytes_on_disk(folder / f"{name}-{width}", codec.fields, samples, layers)
        plain = sum(field.bytes_per_token for field in codec.fields)
        return _bytes_finding(name, size, width, {"before compression": plain} | tops)

    tops = {
        name: bytes_on_disk(folder / name, fields, samples, layers)
        for name, (fields, layers) in top_layouts(states, said.teacher_head).items()
    }
    for width in sizes.teacher_widths:
        head = Head(student.weight.new_empty(1, width))
        for name in ("hidden", "hidden-int8"):
            yield find(name, make_codec(name, torch.bfloat16, head, student), widened(states, width), width)
    for name in ("moment", "moment-int8", "sampled-32"):
        codec = make_codec(name, torch.bfloat16, said.teacher_head, student)
        yield find(name, codec, states, sizes.teacher_widths[0])


def bytes_on_disk(folder: Path, fields: tuple[Field, ...], samples: list[Encoded], layers: list[list[Tensor]]) -> float:
    """Per token and layer, of a cache of these layers."""
    layout = Layout(folder.name, tuple(map(block_column, range(len(layers)))), fields)
    return save_cache(folder, layout, [(samples, layers)]).stat().st_size / (len(layers) * len(layers[0][0]))


def _bytes_finding(name: str, size: float, width: int, details: dict[str, float]) -> Finding:
    raw = 2 * width
    what = f"bytes per token and layer on disk against raw bfloat16 states of width {width}"
    checks = [Check("bytes", size, most, at_most=True) for most in BYTES_AT_MOST.get(name, ())]
    if name == "hidden":
        checks = [Check("share of raw", size / raw, HIDDEN_SHARE_AT_MOST, at_most=True)]
    return Finding(
        f"bytes-{name}-{width}", what, size, raw, "bytes", True, checks=checks, dtype="bfloat16", details=details
    )


def top_layouts(states: Tensor, head: Head) -> dict[str, tuple[tuple[Field, ...], list[list[Tensor]]]]:
    """Fields and layers of two layouts that keep the likeliest ids of [T, N, d_t] states and their probabilities."""
    tops = [top_of(layer, head) for layer in states]
    bits = (len(head.weight) - 1).bit_length()
    values = Field(TOP, torch.bfloat16)
    return {
        f"top-{TOP}": ((Field(TOP, torch.int32), values), [list(top) for top in tops]),
        f"top-{TOP}-packed": (
            (Field(-(-TOP * bits // 8), torch.uint8), values),
            [[pack_ids(ids, bits), q] for ids, q in tops],
        ),
    }


def find_fidelity(pair: str, said: Said, batches: int, batch_samples: int) -> Iterator[Finding]:
    """Every codec's agreement with exact targets, against that of the likeliest ids."""
    judge = Judge(said, batches, batch_samples)
    top = judge.of(top_target(said))
    details = {f"top-{TOP}": top, "cross-entropy": said.cross_entropies(), **judge.notes()}
    for name in CODECS:
        found = judge.of(kept_by(make_codec(name, torch.bfloat16, said.teacher_head, said.student_head), said))
        yield Finding(
            f"fidelity-{name}-{pair}",
            f"micro-batches and student layers whose nearest teacher layer is the exact one, against top-{TOP}: {pair}",
            found["agreement"],
            top["agreement"],
            "share",
            checks=[Check("agreement", found["agreement"], least) for least in AGREEMENT_AT_LEAST.get(name, ())],
            details={"ours": found} | details,
        )


class Judge:
    """Compares what a cache gives back with exact targets."""

    def __init__(self, said: Said, batches: int, batch_samples: int) -> None:
        self._said = said
        self._of_student = partition(said.student, said.student_head)
        self._exact = _by_layer(moment_target(said.teacher.flatten(0, 1), said.teacher_head, said.student_head), said)
        self._kl = self._prices(self._exact)
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randperm(len(said.samples), generator=generator) for _ in range(batches)]
        self._batches = torch.stack(drawn)[:, :batch_samples]

    def of(self, kept: Target) -> dict[str, float]:
        """How near [T, N, d_s] targets are to the exact ones."""
        kl = self._prices(kept)
        means = self._means(self._kl)
        chosen, exact = self._means(kl).argmin(dim=2), means.argmin(dim=2)
        wrong = (kept.moment - self._exact.moment).square().sum() * len(self._said.student)
        slopes = sum((row - self._exact.moment).square().sum() for row in self._of_student.mean_row)
        error = kl - self._kl
        least = means.amin(dim=2)
        lost = means.gather(2, chosen[..., None])[..., 0] - least
        return {
            "agreement": (chosen == exact).double().mean().item(),
            "agreement within 1 %": (lost <= 0.01 * least).double().mean().item(),
            "agreement of single tokens": (kl.argmin(dim=1) == self._kl.argmin(dim=1)).double().mean().item(),
            "KL error": (error.abs().mean() / self._kl.mean()).item(),
            "KL bias": (error.mean() / self._kl.mean()).item(),
            "KL lost by other choices": (lost.mean() / self._kl.mean()).item(),
            "gradient error": (wrong / slopes).sqrt().item(),
        }

    def notes(self) -> dict[str, object]:
        """What the question is: KLs, entropies, and how often which teacher layer is nearest to which student layer."""
        counts = torch.nn.functional.one_hot(self._means(self._kl).argmin(dim=2), len(self._said.teacher)).sum(dim=0)
        means = {"entropy": self._exact.entropy.mean(dim=1), "KL": self._kl.mean(dim=2), "times nearest": counts}
        return {name: mean.tolist() for name, mean in means.items()}

    def _prices(self, target: Target) -> Tensor:
        """[S, T, N]."""
        return prices(self._said.student, self._of_student, target)

    def _means(self, kl: Tensor) -> Tensor:
        """[S, T, N] as the mean over each micro-batch, [batches, S, T]."""
        counts = self._said.counts
        sums = torch.stack([piece.sum(dim=2) for piece in kl.split(counts, dim=2)])
        return sums[self._batches].sum(dim=1) / torch.tensor(counts)[self._batches].sum(dim=1)[:, None, None]


def kept_by(codec: Codec, said: Said) -> Target:
    """What a codec's blobs give back of all teacher layers."""
    x = said.teacher.flatten(0, 1)
    uniform = torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    [blob] = to_blobs(codec.encode(x, uniform), codec.fields, [len(x)])
    return _by_layer(codec.decode(from_blobs([blob], codec.fields, [len(x)]), said.student_head), said)


def top_target(said: Said) -> Target:
    """What the likeliest ids give back, as if there were no others."""
    ids, q = top_of(said.teacher.flatten(0, 1), said.teacher_head)
    q = q.bfloat16().float()
    q /= q.sum(dim=1, keepdim=True)
    rows = zip(ids.split(ROWS_AT_ONCE), q.split(ROWS_AT_ONCE), strict=True)
    moment = torch.cat([torch.einsum("nk,nkd->nd", some, said.student_head.weight[which]) for which, some in rows])
    return _by_layer(Target(moment, torch.special.entr(q).sum(dim=1)), said)


def top_of(x: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """The `TOP` likeliest ids of [N, d_t] head inputs, and their probabilities."""
    best = [(some @ head.weight.T).softmax(dim=1).topk(TOP) for some in x.split(ROWS_AT_ONCE)]
    return torch.cat([one.indices for one in best]), torch.cat([one.values for one in best])


def _by_layer(target: Target, said: Said) -> Target:
    """[T * N, d_s] to [T, N, d_s]."""
    layers = len(said.teacher)
    return Target(target.moment.unflatten(0, (layers, -1)), target.entropy.unflatten(0, (layers, -1)))
