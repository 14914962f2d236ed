"""Every loss against a frozen head, from one pass over the vocabulary.

For an input x of a head with rows W_v, and any target distribution q over the vocabulary,

    KL(q || softmax(W x)) = logsumexp(W x) - x·m - H        m = E_{v~q}[W_v],  H = entropy of q
    gradient in x         = W^T softmax(W x) - m

exactly (DESIGN §2). So `log_partition` is computed once for each student layer, whatever the number
of targets it is compared with, and a target is one vector and one number a token:

    cross-entropy with label y      m = W_y,              H = 0      `label_target`
    a teacher layer's distribution  m = sum_v q_v W_v,    H = H(q)   `moment_target`

Probabilities, entropies and logsumexp are float32 whatever the dtype of the inputs: with a bf16
softmax the gradient of a student near its teacher is about 8 % off, with float32 0.2 %.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Memory for one chunk of logits in float32."""
VOCABULARY_BLOCK = 16384
"""Rows of a bf16 head that are widened to float32 at a time."""


class Head(NamedTuple):
    """The rows of a frozen head at the real token ids.

    Attributes:
        weight: [V, d].
        bias: [V], or None.
    """

    weight: Tensor
    bias: Tensor | None = None


class Target(NamedTuple):
    """Distributions over the student's vocabulary, as its head sees them.

    Attributes:
        moment: [..., N, d], the mean row E_q[W_v] (plus nothing for the bias; see `bias_mean`).
        entropy: [..., N] float32, nats.
        bias_mean: [..., N] float32, E_q[b_v], or None for a head without bias.
    """

    moment: Tensor
    entropy: Tensor
    bias_mean: Tensor | None = None


def divergence(x: Tensor, log_z: Tensor, target: Target) -> Tensor:
    """KL(target || softmax(head(x))) of every token, and of every target in a stack of them.

    Args:
        x: [N, d], the head's input; gradient flows here. Give both functions one float32 copy of a
            bf16 input, so that their gradients are rounded once, after they are added.
        log_z: [N] float32, `log_partition(x, head)`.
        target: [..., N, d] moments with their entropies.

    Returns:
        [..., N] float32, nats.
    """
    with torch.autocast(x.device.type, enabled=False):
        expected_logit = torch.einsum("nd,...nd->...n", x.float(), target.moment.float())
    if target.bias_mean is not None:
        expected_logit = expected_logit + target.bias_mean
    return log_z - expected_logit - target.entropy


def log_partition(x: Tensor, head: Head) -> Tensor:
    """logsumexp of the logits, with a gradient for x and none for the frozen head.

    The gradient W^T softmax is formed in the same pass, chunk by chunk over the tokens, so that
    nothing of size tokens × vocabulary outlives one chunk.

    Args:
        x: [N, d].
        head: of V rows.

    Returns:
        [N] float32.
    """
    return _LogPartition.apply(x, head.weight, head.bias)


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        log_z = torch.empty(len(x), dtype=torch.float32, device=x.device)
        mean_row = torch.empty_like(x, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        with torch.autocast(x.device.type, enabled=False):
            for chunk in _chunks(len(x), len(weight)):
                logits = _logits(x[chunk], weight, bias)
                log_z[chunk] = logits.logsumexp(dim=-1)
                if mean_row is not None:
                    probabilities = logits.sub_(log_z[chunk, None]).exp_()
                    mean_row[chunk] = _mean_row(probabilities, weight)
        if mean_row is not None:
            ctx.save_for_backward(mean_row)
            ctx.dtype = x.dtype
        return log_z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mean_row,) = ctx.saved_tensors
        return (mean_row * grad[:, None]).to(ctx.dtype), None, None


def label_target(labels: Tensor, head: Head) -> Target:
    """The target of cross-entropy: all probability on the label.

    Args:
        labels: [N] int64, ids below V.
        head: the student's.
    """
    bias = None if head.bias is None else head.bias[labels].float()
    return Target(head.weight[labels], torch.zeros(len(labels), device=labels.device), bias)


@torch.no_grad()
def moment_target(x_teacher: Tensor, teacher: Head, student: Head) -> Target:
    """The target of a teacher layer: its distribution seen through the student's head.

    Both heads hold the rows of the same real token ids, so the teacher's padding rows carry no
    probability and its distribution is normalised over real tokens.

    Args:
        x_teacher: [N, d_t], an input of the teacher's head.
        teacher: [V, d_t].
        student: [V, d_s].

    Returns:
        Moments [N, d_s] float32 and entropies [N].

    Raises:
        ValueError: the heads differ in their number of rows.
    """
    if len(teacher.weight) != len(student.weight):
        raise ValueError(
            f"the teacher's head has {len(teacher.weight)} real rows, the student's {len(student.weight)}; "
            "cut both to the common token ids"
        )
    count = len(x_teacher)
    moment = torch.empty(count, student.weight.shape[1], device=x_teacher.device)
    entropy = torch.empty(count, device=x_teacher.device)
    bias_mean = None if student.bias is None else torch.empty(count, device=x_teacher.device)
    with torch.autocast(x_teacher.device.type, enabled=False):
        for chunk in _chunks(count, len(teacher.weight)):
            log_q = _logits(x_teacher[chunk], *teacher).log_softmax(dim=-1)
            q = log_q.exp()
            entropy[chunk] = -(q * log_q).sum(dim=-1)
            moment[chunk] = _mean_row(q, student.weight)
            if bias_mean is not None and student.bias is not None:
                bias_mean[chunk] = q @ student.bias.float()
    return Target(moment, entropy, bias_mean)


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[N, V] float32; products and sums are float32 whatever the inputs are."""
    logits = torch.cat([x.float() @ rows.float().T for rows in weight.split(VOCABULARY_BLOCK)], dim=1)
    return logits if bias is None else logits + bias.float()


def _mean_row(probabilities: Tensor, weight: Tensor) -> Tensor:
    """[N, V] float32 probabilities to the mean row [N, d], float32."""
    blocks = zip(probabilities.split(VOCABULARY_BLOCK, dim=1), weight.split(VOCABULARY_BLOCK), strict=True)
    return torch.stack([p @ rows.float() for p, rows in blocks]).sum(dim=0)


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, start + size) for start in range(0, tokens, size)]
