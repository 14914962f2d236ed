"""The KL of the last layer alone, against the losses of Liger-Kernel and TRL.

Both need the teacher's head and its input in memory and compute its logits in every step; ours reads
(m, H) from the cache. All three compute KL(teacher || student) as a mean over tokens and its gradient
in the input of the student's frozen head. Liger's chunked JSD also computes the gradient of the
student's head, frozen or not. `no-cache` lines give ours the teacher's state and head instead of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from stages.losses.divergence import Head, Target, divergence, moment_target, partition
from tests.bench.heads import QUICK, TEACHER_WIDTHS, Sizes, random_head, random_inputs, random_teacher
from tests.bench.measure import Built, Side, alternate
from tests.bench.results import Check, Result, relative_differences

Step = Callable[[Tensor], Tensor]


def compare(quick: bool) -> Iterator[Result]:
    """Ours from the cache against both; then ours without a cache against Liger's."""
    for width in (QUICK.teacher_width,) if quick else TEACHER_WIDTHS:
        sizes = (QUICK if quick else Sizes(teacher_width=width))._replace(student_layers=1, teacher_layers=1)
        yield _compare("liger", build_liger, build_cached, sizes, "Liger-Kernel's chunked JSD, beta 0, uncompiled")
        yield _compare("trl", build_trl, build_cached, sizes, "TRL's generalized_jsd_loss, beta 0")
        if quick or width == max(TEACHER_WIDTHS):
            what = "Liger-Kernel's; ours without the cache"
            yield _compare("liger-no-cache", build_liger, build_uncached, sizes, what)


def _compare(name: str, baseline: Callable[..., Built], ours: Callable[..., Built], sizes: Sizes, what: str) -> Result:
    arguments = {"sizes": sizes}
    measured = alternate({"ours": Side(ours, arguments), "baseline": Side(baseline, arguments)}, repeats=4, warmups=1)
    result = Result(
        f"last-layer-{name}-{sizes.teacher_width}",
        f"KL of the last layer and its gradient against {what}; teacher width {sizes.teacher_width}",
        **measured,
        details=relative_differences(**measured),
    )
    if ours is build_cached:
        result.checks = [
            Check("speedup", result.ratio, 1),
            Check("memory ratio", result.memory_ratio, 1),
        ]
    return result


def build_cached(sizes: Sizes) -> Built:
    """Ours, as interaction computes it; the teacher is gone before it runs."""
    head = random_head(sizes, "float32")
    teacher_head, states = random_teacher(sizes)
    target = moment_target(states[0], teacher_head, head)
    return _built(sizes, lambda x: _divergence(x, head, target))


def build_uncached(sizes: Sizes) -> Built:
    """Ours, with a pass over the teacher's vocabulary in every step."""
    head = random_head(sizes, "float32")
    teacher_head, states = random_teacher(sizes)
    return _built(sizes, lambda x: _divergence(x, head, moment_target(states[0], teacher_head, head)))


def build_liger(sizes: Sizes) -> Built:
    """Liger-Kernel's, with its default chunk."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
    weight, labels = random_head(sizes, "float32").weight, torch.zeros(sizes.tokens, dtype=torch.long)
    teacher_head, states = random_teacher(sizes)
    return _built(sizes, lambda x: loss(x, weight, states[0], teacher_head.weight, labels))


def build_trl(sizes: Sizes) -> Built:
    """TRL's, from the logits of both heads, as its trainer gets them from the two models."""
    from trl.experimental.gkd import GKDTrainer

    weight, labels = random_head(sizes, "float32").weight, torch.zeros(1, sizes.tokens, dtype=torch.long)
    teacher_head, states = random_teacher(sizes)

    def step(x: Tensor) -> Tensor:
        student_logits = (x @ weight.T)[None]
        with torch.no_grad():
            teacher_logits = (states[0] @ teacher_head.weight.T)[None]
        return GKDTrainer.generalized_jsd_loss(student_logits, teacher_logits, labels, beta=0)

    return _built(sizes, step)


def _divergence(x: Tensor, head: Head, target: Target) -> Tensor:
    return divergence(x, partition(x, head), target).mean()


def _built(sizes: Sizes, step: Step) -> Built:
    x = random_inputs(sizes, "float32").detach()[0].requires_grad_()

    def run() -> dict[str, float]:
        x.grad = None
        loss = step(x)
        loss.backward()
        return {"loss": loss.item(), "gradient": x.grad.norm().item()}

    return Built(run)
