"""The loss of interaction at the size of real heads: against its physical floor, and against the dense loop.

`ours` is what the interaction stage runs: `KLCosts` (one pass over the student's vocabulary for all
student layers), `match_and_learn`, backward into the inputs of the head; targets come from the
cache. `bare` is two matrix products a student layer and nothing else. `dense` is the paper's loop
(METHOD §3) as one would write it: log-probabilities of every teacher layer once, of each student
layer, every candidate's KL, the draw, backward layer by layer, so that one layer's logits live at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from stages.contract.settings import Matching
from stages.losses.divergence import Head, Target, moment_target
from stages.losses.layerwise import KLCosts, match_and_learn
from stages.losses.matching import adaptive_temperature, draw_match, expected_matches, match_entropy, match_layers
from tests.bench.measure import Built, Measured, Side, alternate, once
from tests.bench.results import Check, Result, relative_differences


class Sizes(NamedTuple):
    """Of the heads and of what enters them."""

    teacher_width: int = 8_192
    vocabulary: int = 151_936
    student_width: int = 1_536
    tokens: int = 256
    student_layers: int = 7
    teacher_layers: int = 20


TEACHER_WIDTHS = (8_192, 3_584)
QUICK = Sizes(teacher_width=96, vocabulary=6_000, student_width=48, tokens=64, student_layers=3, teacher_layers=5)
SLOWDOWN_AT_MOST = 1.25
SPEEDUP_AT_LEAST = 8
MEMORY_RATIO_AT_LEAST = 10
CHOICE_AT_MOST = 0.01


def compare_with_floor(quick: bool) -> Iterator[Result]:
    """Matching, loss and gradient against two bare matrix products per student layer."""
    for dtype in ("float32", "bfloat16"):
        arguments = {"sizes": QUICK if quick else Sizes(), "dtype": dtype}
        sides = {"ours": Side(build_matching, arguments), "baseline": Side(build_bare_products, arguments)}
        measured = alternate(sides, repeats=2 if quick else 3, warmups=1)
        result = Result(
            f"matching-floor-{dtype}",
            "matching + loss + gradient against the bare products x W^T and P W of each student layer",
            **measured,
            slowdown=True,
            dtype=dtype,
        )
        if dtype == "float32":
            result.checks = [Check("slowdown", result.ratio, SLOWDOWN_AT_MOST, at_most=True)]
        yield result


def compare_with_dense(quick: bool) -> Iterator[Result]:
    """Matching, loss and gradient from the cache against the dense loop; and what making the cache costs."""
    for width in (QUICK.teacher_width,) if quick else TEACHER_WIDTHS:
        sizes = QUICK if quick else Sizes(teacher_width=width)
        arguments = {"sizes": sizes}
        sides = {"ours": Side(build_cached_matching, arguments), "baseline": Side(build_dense_loop, arguments)}
        measured = alternate(sides, repeats=3 if width == max(TEACHER_WIDTHS) else 2)
        result = Result(
            f"matching-dense-{width}",
            f"matching + loss + gradient from the cache against the dense loop, teacher width {width}",
            **measured,
            details=relative_differences(**measured),
        )
        if width == max(TEACHER_WIDTHS):
            result.checks = [
                Check("speedup", result.ratio, SPEEDUP_AT_LEAST),
                Check("memory ratio", result.memory_ratio, MEMORY_RATIO_AT_LEAST),
            ]
        yield result
        yield _cost_of_cache(width, **measured)


def compare_choice(quick: bool) -> Iterator[Result]:
    """Drawing a whole path, with exact marginals and entropy, as a share of matching, loss and gradient together."""
    sizes = QUICK if quick else Sizes()
    sides = {
        "ours": Side(build_choice, {"sizes": sizes}),
        "baseline": Side(build_matching, {"sizes": sizes, "dtype": "float32"}),
    }
    measured = alternate(sides, repeats=2 if quick else 3, warmups=1)
    result = Result("matching-choice", "choosing a whole path against the rest", **measured, slowdown=True)
    result.checks = [Check("share", result.ratio, CHOICE_AT_MOST, at_most=True)]
    yield result


def _cost_of_cache(width: int, ours: Measured, baseline: Measured) -> Result:
    making = Measured(ours.resident_bytes, {}, [ours.notes["cache_seconds"]], [ours.notes["cache_peak_bytes"]])
    what = f"making the cache, once, against one dense step on the same tokens, teacher width {width}"
    return Result(f"cache-{width}", what, making, baseline)


def build_matching(sizes: Sizes, dtype: str) -> Built:
    """Ours, on random targets."""
    head, x = random_head(sizes, dtype), random_inputs(sizes, dtype)
    generator = torch.Generator().manual_seed(2)
    moment = torch.randn(sizes.teacher_layers, sizes.tokens, sizes.student_width, generator=generator)
    entropy = torch.rand(sizes.teacher_layers, sizes.tokens, generator=generator)
    return Built(lambda: _match(x, head, Target(0.01 * moment, entropy)))


def build_choice(sizes: Sizes) -> Built:
    """What `joint` does between the prices and the losses."""
    settings, generator = Matching(strategy="joint"), torch.Generator().manual_seed(0)
    kl = torch.rand(1, sizes.student_layers, sizes.teacher_layers, generator=generator)

    def run() -> dict[str, float]:
        matches = match_layers(kl, settings, generator)
        expected, entropy = expected_matches(kl, matches, settings), match_entropy(kl, settings)
        return {"expected": expected.sum().item(), "entropy": entropy.item()}

    return Built(run)


def build_cached_matching(sizes: Sizes) -> Built:
    """Ours, on what the teacher of `build_dense_loop` says; the teacher is gone before it runs."""
    head, x = random_head(sizes, "float32"), random_inputs(sizes, "float32")
    teacher_head, states = random_teacher(sizes)
    seconds, peak_bytes, made = once(lambda: [moment_target(layer, teacher_head, head) for layer in states])
    target = Target(torch.stack([one.moment for one in made]), torch.stack([one.entropy for one in made]))
    return Built(lambda: _match(x, head, target), {"cache_seconds": seconds, "cache_peak_bytes": peak_bytes})


def build_bare_products(sizes: Sizes, dtype: str) -> Built:
    """The floor: every student layer's logits, and a product of their size with the head."""
    weight, x = random_head(sizes, dtype).weight, random_inputs(sizes, dtype).detach()

    def run() -> dict[str, float]:
        logits = x.new_empty(sizes.tokens, sizes.vocabulary)
        gradient = torch.empty_like(x)
        for layer, of_layer in zip(x, gradient, strict=True):
            torch.mm(layer, weight.T, out=logits)
            torch.mm(logits, weight, out=of_layer)
        return {}

    return Built(run)


def build_dense_loop(sizes: Sizes) -> Built:
    """The paper's loop."""
    head, x = random_head(sizes, "float32"), random_inputs(sizes, "float32")
    teacher_head, states = random_teacher(sizes)

    def run() -> dict[str, float]:
        x.grad = None
        with torch.no_grad():
            log_p = [log_softmax(layer @ teacher_head.weight.T, dim=-1) for layer in states]
        loss = _dense_loop(log_p, x, head)
        return {"loss": loss, "gradient": x.grad.norm().item()}

    return Built(run)


def _match(x: Tensor, head: Head, target: Target) -> dict[str, float]:
    """One step of ours on [S, N, d_s] inputs, with the same draws every time."""
    x.grad = None
    rows = torch.zeros(x.shape[1], dtype=torch.long)
    costs = KLCosts(list(x), head, target)
    losses = match_and_learn(costs, costs.all_pairs(), rows, Matching(), torch.Generator().manual_seed(0)).losses
    losses.sum().backward()
    return {"loss": losses.sum().item(), "gradient": x.grad.norm().item()}


def _dense_loop(log_p: list[Tensor], x: Tensor, head: Head) -> float:
    """The summed loss of [S, N, d_s] student inputs against [N, V] teacher log-probabilities; fills `x.grad`."""
    settings, generator = Matching(), torch.Generator().manual_seed(0)
    start, total = 0, 0.0
    for i, layer in enumerate(x):
        log_q = log_softmax(layer @ head.weight.T, dim=-1)
        window = torch.zeros(1, len(log_p), dtype=torch.bool)
        window[0, start : len(log_p) - len(x) + i + 1] = True
        costs = torch.zeros(1, len(log_p))
        for j in window[0].nonzero().flatten().tolist():
            costs[0, j] = _kl(log_p[j], log_q.detach()) / len(log_q)
        temperature = adaptive_temperature(costs, window, scale=settings.scale, eps=settings.eps)
        match = int(draw_match(costs, window, temperature, generator))
        loss = _kl(log_p[match], log_q)
        loss.backward()
        total += loss.item()
        start = match + 1
    return total


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of [N, V] log-probabilities, summed over tokens."""
    return kl_div(log_q, log_p, reduction="sum", log_target=True)


def random_head(sizes: Sizes, dtype: str) -> Head:
    """The student's, [V, d_s]."""
    return Head(_random((sizes.vocabulary, sizes.student_width), 0).to(getattr(torch, dtype)))


def random_inputs(sizes: Sizes, dtype: str) -> Tensor:
    """What the student's layers give its head, [S, N, d_s]; deeper layers are more certain."""
    x = _random((sizes.student_layers, sizes.tokens, sizes.student_width), 1, scale=1.0)
    x *= torch.linspace(1, 3, sizes.student_layers)[:, None, None]
    return x.to(getattr(torch, dtype)).requires_grad_()


def random_teacher(sizes: Sizes) -> tuple[Head, Tensor]:
    """The teacher's head, [V, d_t], and what its layers give it, [T, N, d_t]."""
    head = Head(_random((sizes.vocabulary, sizes.teacher_width), 3))
    states = _random((sizes.teacher_layers, sizes.tokens, sizes.teacher_width), 4, scale=1.0)
    return head, states * torch.linspace(1, 3, sizes.teacher_layers)[:, None, None]


def _random(shape: tuple[int, ...], seed: int, scale: float | None = None) -> Tensor:
    """Normal numbers; rows of a head have length one, so that logits are as large as their inputs."""
    values = torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))
    return values.mul_(shape[-1] ** -0.5 if scale is None else scale)
