"""Every loss against a head, from one pass over its vocabulary.

For an input x of a head with rows W_v, and any target distribution q over the vocabulary,

    KL(q || softmax(W x)) = logsumexp(W x) - x·m - H        m = E_{v~q}[W_v],  H = entropy of q
    gradient in x         = W^T softmax(W x) - m

exactly (DESIGN §2). `partition` computes the two terms that do not depend on the target, logsumexp
and W^T softmax, in one pass over a frozen head; a target is one vector and one number a token:

    cross-entropy with label y      m = W_y,              H = 0      `label_target`
    a teacher layer's distribution  m = sum_v q_v W_v,    H = H(q)   `moment_target`

So the cost of a student layer is two matrix products, whatever the number of targets it is compared
with, and its gradient is formed on the way. The pass goes over blocks of the vocabulary with a
running maximum: a head is read once for all tokens of all layers, and the largest thing in memory is
one chunk of logits. A head that is trained itself needs a third product: `trained_cross_entropy`.

Softmax, entropies and sums are float32 whatever the dtype of the inputs: with a bf16 softmax the
gradient of a student near its teacher is about 8 % off, with float32 0.2 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 128 * 2**20
"""Memory for one chunk of float32 logits and what is made of it, unless a caller has its own budget."""
LIVE_IN_PASS = 3
"""Tensors of a chunk's size at one time in a pass: logits, weights and one between."""
LIVE_IN_CROSS_ENTROPY = 2
"""The same of a cross-entropy with a trained head: logits and one between."""
VOCABULARY_BLOCK = 4096
"""Rows of a head that are multiplied, and widened to float32 if they are not, at a time."""


class Head(NamedTuple):
    """The rows of a head at the real token ids.

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


class Partition(NamedTuple):
    """What a divergence needs of x and the head, whatever the target.

    Attributes:
        log_z: [..., N] float32, logsumexp of the logits.
        mean_row: [..., N, d] float32, W^T softmax(W x).
    """

    log_z: Tensor
    mean_row: Tensor


@torch.no_grad()
def partition(x: Tensor, head: Head, *, chunk_bytes: int = CHUNK_BYTES) -> Partition:
    """One pass over the vocabulary of a frozen head.

    Args:
        x: [..., N, d]; give all layers of a model at once, so that the head is read once for them.
        head: of V rows.
        chunk_bytes: memory for one chunk of logits and what is made of it.

    Returns:
        Without gradient; `divergence` connects it with x.
    """
    flat = x.reshape(-1, x.shape[-1])
    means = _pass_over(flat, head, head, chunk_bytes)
    return Partition(means.log_z.reshape(x.shape[:-1]), means.row.reshape(x.shape))


def divergence(x: Tensor, partition: Partition, target: Target) -> Tensor:
    """KL(target || softmax(head(x))) of every token.

    Args:
        x: [..., N, d], the head's input. Its gradient, W^T softmax - m, is formed in float32 and
            rounded to the dtype of x once.
        partition: of the same x.
        target: of the same shape, or of one that broadcasts to it.

    Returns:
        [..., N] float32, nats.
    """
    return _Divergence.apply(x, *partition, *target)


@torch.no_grad()
def prices(x: Tensor, partition: Partition, target: Target) -> Tensor:
    """KL of every student layer against every target of a stack, without gradient.

    Args:
        x: [S, N, d], with its `partition`.
        partition: of x.
        target: of [T, N, d] moments.

    Returns:
        [S, T, N] float32, nats.
    """
    with torch.autocast(x.device.type, enabled=False):
        expected_logit = torch.einsum("snd,tnd->stn", x.float(), target.moment.float())
    if target.bias_mean is not None:
        expected_logit += target.bias_mean
    return partition.log_z[:, None] - expected_logit - target.entropy


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, log_z: Tensor, mean_row: Tensor, moment: Tensor, entropy: Tensor, bias_mean: Tensor | None
    ) -> Tensor:
        moment = moment.float()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(mean_row - moment)
            ctx.dtype = x.dtype
        expected_logit = (x.float() * moment).sum(dim=-1)
        if bias_mean is not None:
            expected_logit += bias_mean
        return log_z - expected_logit - entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grad[..., None]).to(ctx.dtype), None, None, None, None, None


def label_target(labels: Tensor, head: Head) -> Target:
    """The target of cross-entropy: all probability on the label.

    Args:
        labels: [N] int64, ids below V.
        head: the student's.
    """
    bias = None if head.bias is None else head.bias[labels].float()
    return Target(head.weight[labels], torch.zeros(len(labels), device=labels.device), bias)


@torch.no_grad()
def moment_target(x_teacher: Tensor, teacher: Head, student: Head, *, chunk_bytes: int = CHUNK_BYTES) -> Target:
    """The target of a teacher layer: its distribution seen through the student's head.

    Both heads hold the rows of the same real token ids, so the teacher's padding rows carry no
    probability and its distribution is normalised over real tokens.

    Args:
        x_teacher: [N, d_t], an input of the teacher's head.
        teacher: [V, d_t].
        student: [V, d_s].
        chunk_bytes: memory for one chunk of logits and what is made of it.

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
    means = _pass_over(x_teacher, teacher, student, chunk_bytes)
    return Target(means.row, means.entropy, means.bias)


@torch.no_grad()
def spread_ids(
    x_teacher: Tensor, teacher: Head, count: int, uniform: Tensor, *, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Token ids spread evenly over a teacher layer's distribution.

    The k-th id of a token is where its cumulative probability passes (uniform + k) / count. Over a
    uniform random number every id occurs `count` times its probability on average, so that the mean
    of any vector over the ids is unbiased, with less variance than independent draws have.

    Args:
        x_teacher: [N, d_t], an input of the teacher's head.
        teacher: [V, d_t].
        count: K, ids a token.
        uniform: [N] float64 in [0, 1).
        chunk_bytes: memory for one chunk of logits and what is made of it.

    Returns:
        [N, K] int64, increasing, and the exact entropies [N] float32.
    """
    ids, entropies = [], []
    steps = torch.arange(count, dtype=torch.float64, device=x_teacher.device)
    with torch.autocast(x_teacher.device.type, enabled=False):
        for chunk in _chunks(len(x_teacher), len(teacher.weight), chunk_bytes):
            logits = float32_product(x_teacher[chunk].float(), teacher.weight.T)
            if teacher.bias is not None:
                logits += teacher.bias
            log_q = logits.log_softmax(dim=1)
            q = log_q.exp()
            entropies.append(-(q * log_q).sum(dim=1))
            reached = q.cumsum(dim=1, dtype=torch.float64)
            wanted = (uniform.to(steps.device)[chunk, None] + steps) / count * reached[:, -1:]
            ids.append(torch.searchsorted(reached, wanted, right=True).clamp_max_(len(teacher.weight) - 1))
    return torch.cat(ids), torch.cat(entropies)


@torch.no_grad()
def most_probable(x: Tensor, head: Head, *, chunk_bytes: int = CHUNK_BYTES) -> tuple[Tensor, Tensor]:
    """The most probable word of every token, and its probability.

    Args:
        x: [N, d], an input of the head.
        head: of V rows.
        chunk_bytes: memory for one chunk of logits and what is made of it.

    Returns:
        [N] int64 and [N] float32.
    """
    ids, probabilities = [], []
    with torch.autocast(x.device.type, enabled=False):
        for chunk in _chunks(len(x), LIVE_IN_CROSS_ENTROPY * len(head.weight), chunk_bytes):
            logits = float32_product(x[chunk].float(), head.weight.T)
            if head.bias is not None:
                logits += head.bias
            highest, best = logits.max(dim=1)
            ids.append(best)
            probabilities.append((highest - logits.logsumexp(dim=1)).exp())
    return torch.cat(ids), torch.cat(probabilities)


def trained_cross_entropy(
    x: Tensor, head: Head, labels: Tensor, *, vocabulary: int, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Cross-entropy against the labels, with gradients for x and for the head itself.

    Both gradients of the sum over tokens are formed in the forward pass, chunk by chunk over the
    tokens: three matrix products in all, and nothing of size tokens × vocabulary outlives one chunk.

    Args:
        x: [N, d]; the head's weights are rounded to its dtype for the products.
        head: all its rows; those from `vocabulary` on are padding and get no gradient.
        labels: [N] int64, below `vocabulary`.
        vocabulary: number of real token ids.
        chunk_bytes: memory for one chunk of logits and what is made of it.

    Returns:
        The sum over tokens, float32, nats, with gradient; and [N] without.
    """
    return _TrainedCrossEntropy.apply(x, head.weight, head.bias, labels, vocabulary, chunk_bytes)


class _TrainedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, vocabulary: int, chunk_bytes: int
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(x), device=x.device)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        rows = weight.detach()[:vocabulary].to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for chunk in _chunks(len(x), LIVE_IN_CROSS_ENTROPY * vocabulary, chunk_bytes):
                inputs, label = x.detach()[chunk], labels[chunk, None]
                logits = float32_product(inputs.float(), rows.T)
                if bias is not None:
                    logits += bias.detach()[:vocabulary]
                log_z = logits.logsumexp(dim=1, keepdim=True)
                losses[chunk] = (log_z - logits.gather(1, label))[:, 0]
                error = logits.sub_(log_z).exp_().scatter_add_(1, label, torch.full_like(log_z, -1.0))
                grad_x[chunk] = float32_product(error, rows).to(x.dtype)
                for block in _slices(vocabulary, VOCABULARY_BLOCK):
                    grad_weight[block] += float32_product(error[:, block].T, inputs)
                if grad_bias is not None:
                    grad_bias[:vocabulary] += error.sum(dim=0)
        ctx.grads = (grad_x, grad_weight.to(weight.dtype), grad_bias)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        return *(None if tensor is None else tensor.mul_(grad) for tensor in grads), None, None, None


class _Means(NamedTuple):
    """Of softmax(head(x)): log-partition, entropy, and the mean row [N, d] and bias of the values."""

    log_z: Tensor
    entropy: Tensor
    row: Tensor
    bias: Tensor | None


def _pass_over(x: Tensor, head: Head, values: Head, chunk_bytes: int) -> _Means:
    """Read the vocabulary once, block by block, with a running maximum of the logits.

    Args:
        x: [N, d], inputs of `head`.
        head: gives the probabilities.
        values: whose rows and biases are averaged with them; may be `head` itself.
        chunk_bytes: memory for one chunk of logits and what is made of it.
    """
    count, device = len(x), x.device
    log_z, entropy = torch.empty(count, device=device), torch.empty(count, device=device)
    row = torch.empty(count, values.weight.shape[1], device=device)
    bias = None if values.bias is None else torch.empty(count, device=device)
    means = _Means(log_z, entropy, row, bias)
    for chunk in _chunks(count, LIVE_IN_PASS * VOCABULARY_BLOCK, chunk_bytes):
        for whole, part in zip(means, _pass_of_chunk(x[chunk], head, values), strict=True):
            if whole is not None and part is not None:
                whole[chunk] = part
    return means


def _pass_of_chunk(x: Tensor, head: Head, values: Head) -> _Means:
    """Sums of weights exp(logit - highest) so far; what came before shrinks when the highest logit rises."""
    count, x = len(x), x.float()
    highest = x.new_full((count, 1), torch.finfo(torch.float32).min)
    mass, centre = x.new_zeros(count, 1), x.new_zeros(count, 1)
    row = x.new_zeros(count, values.weight.shape[1])
    bias = None if values.bias is None else x.new_zeros(count, 1)
    with torch.autocast(x.device.type, enabled=False):
        for block, rows in _blocks(head, values):
            logits = float32_product(x, block.weight.T)
            if block.bias is not None:
                logits += block.bias
            higher = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
            drop, highest = highest - higher, higher
            shrink = drop.exp()
            weights = logits.sub_(highest).exp()
            centre = (centre + drop * mass) * shrink + (logits * weights).sum(dim=1, keepdim=True)
            mass = mass * shrink + weights.sum(dim=1, keepdim=True)
            row = row.mul_(shrink).add_(float32_product(weights, rows.weight))
            if bias is not None and rows.bias is not None:
                bias = bias * shrink + weights @ rows.bias[:, None]
    entropy = mass.log() - centre / mass
    mean_bias = None if bias is None else (bias / mass)[:, 0]
    return _Means((highest + mass.log())[:, 0], entropy[:, 0], row.div_(mass), mean_bias)


def float32_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32 to 16 bits or more, whatever the dtype of `right`.

    On a GPU a half-precision `right` stays as it is: `left` is cut into two addends of its dtype,
    so that both products run on tensor cores and are summed in float32.

    Args:
        left: [N, K] float32.
        right: [K, M] float32, bfloat16 or float16.
    """
    if not left.is_cuda or right.dtype == torch.float32:
        return left @ right.float()
    return sum_of_halves(left, right, lambda a, b: torch.mm(a, b, out_dtype=torch.float32))


def sum_of_halves(left: Tensor, right: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """left @ right from two products whose operands both have the dtype of `right`."""
    high = left.to(right.dtype)
    low = (left - high.float()).to(right.dtype)
    return multiply(high, right).add_(multiply(low, right))


def _blocks(head: Head, values: Head) -> Iterator[tuple[Head, Head]]:
    """Both heads, some rows at a time."""
    for block in _slices(len(head.weight), VOCABULARY_BLOCK):
        yield _rows(head, block), _rows(values, block)


def _rows(head: Head, rows: slice) -> Head:
    return Head(head.weight[rows], None if head.bias is None else head.bias[rows].float())


def _chunks(tokens: int, width: int, chunk_bytes: int) -> list[slice]:
    return _slices(tokens, max(1, chunk_bytes // (4 * width)))


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
