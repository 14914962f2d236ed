"""The mathematics of METHOD.md in float64 NumPy: dense, slow, and written from the formulas alone.

Nothing is imported from `stages/`, so that a mistake there cannot repeat itself here. Letters per
axis: N response tokens, V vocabulary, D width, L teacher layers, W candidates of one window.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def log_softmax(logits: ArrayLike) -> Array:
    """Over the last axis."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_probabilities(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, real: int | None = None) -> Array:
    """What a head says: [N, D] inputs and [rows, D] weights to [N, real].

    Rows from `real` on are padding (METHOD §6): the softmax is taken over all rows, cut to the real
    ids and renormalised, which is what "common prefix and renormalise" says.
    """
    logits = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    if bias is not None:
        logits = logits + np.asarray(bias, np.float64)
    return log_softmax(log_softmax(logits)[..., :real])


def entropy(log_p: Array) -> Array:
    """-sum p log p, nats; [..., V] to [...]."""
    return -(np.exp(log_p) * log_p).sum(axis=-1)


def kl_divergence(log_p: Array, log_q: Array) -> Array:
    """Forward KL(p || q), nats; [..., V] to [...] (METHOD §3: teacher first)."""
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def kl_gradient(log_p: Array, log_q: Array, weight: ArrayLike) -> Array:
    """Gradient of KL(p || q) in the input of q's head: (q - p) W, with W the real rows; [N, D]."""
    return (np.exp(log_q) - np.exp(log_p)) @ np.asarray(weight, np.float64)[: log_p.shape[-1]]


def cross_entropy(log_q: Array, labels: ArrayLike) -> Array:
    """-log q(label), nats; [N]."""
    return -log_q[np.arange(len(log_q)), np.asarray(labels)]


def cross_entropy_gradient(log_q: Array, labels: ArrayLike, weight: ArrayLike) -> Array:
    """Gradient in the head's input: (q - onehot) W; [N, D]."""
    return _without_label(log_q, labels) @ np.asarray(weight, np.float64)[: log_q.shape[-1]]


def cross_entropy_weight_gradient(log_q: Array, labels: ArrayLike, x: ArrayLike) -> Array:
    """Gradient of the sum over tokens in the head's real rows: (q - onehot)^T x; [V, D]."""
    return _without_label(log_q, labels).T @ np.asarray(x, np.float64)


def cross_entropy_bias_gradient(log_q: Array, labels: ArrayLike) -> Array:
    """Gradient of the sum over tokens in the head's real biases: the sum of q - onehot; [V]."""
    return _without_label(log_q, labels).sum(axis=0)


def _without_label(log_q: Array, labels: ArrayLike) -> Array:
    """q - onehot, the gradient of cross-entropy in the logits; [N, V]."""
    difference = np.exp(log_q)
    difference[np.arange(len(log_q)), np.asarray(labels)] -= 1.0
    return difference


def rms_norm(x: ArrayLike, weight: ArrayLike, eps: float) -> Array:
    """x / sqrt(mean(x²) + eps) * weight."""
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * np.asarray(weight, np.float64)


def verb_ffn(h: ArrayLike, gate: ArrayLike, up: ArrayLike, down: ArrayLike) -> Array:
    """`literal` (METHOD §1): W_down( SiLU(W_gate h) * (W_up h) ); matrices are [out, in]."""
    h, gate, up, down = (np.asarray(value, np.float64) for value in (h, gate, up, down))
    inner = h @ gate.T
    return (inner / (1.0 + np.exp(-inner)) * (h @ up.T)) @ down.T


def stable_verb_ffn(
    h: ArrayLike, norm: ArrayLike, eps: float, gate: ArrayLike, up: ArrayLike, down: ArrayLike
) -> Array:
    """`stable`: the same on the normalised state, added to the state."""
    return np.asarray(h, np.float64) + verb_ffn(rms_norm(h, norm, eps), gate, up, down)


def window(layer: int, start: int, student_layers: int, teacher_layers: int) -> range:
    """Candidates of one student layer in Algorithm 1: [start .. t_l - t_s + i], inclusive."""
    return range(start, teacher_layers - student_layers + layer + 1)


def temperature(k: ArrayLike, scale: float = 2.0, eps: float = 1e-6) -> float:
    """Adaptive temperature of one window: scale / (max - min + eps)."""
    k = np.asarray(k, np.float64)
    return scale / (k.max() - k.min() + eps)


def draw_probabilities(k: ArrayLike, temperature: float) -> Array:
    """softmax(-k / T) over one window; [W]."""
    return np.exp(log_softmax(-np.asarray(k, np.float64) / temperature))


def paths(kl: ArrayLike, scale: float = 2.0, eps: float = 1e-6) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every outcome of Algorithm 1 on [t_s, t_l] KLs, with its probability."""
    kl = np.asarray(kl, np.float64)
    student_layers, teacher_layers = kl.shape

    def walk(layer: int, start: int) -> Iterator[tuple[tuple[int, ...], float]]:
        if layer == student_layers:
            yield (), 1.0
            return
        candidates = window(layer, start, student_layers, teacher_layers)
        k = kl[layer, candidates.start : candidates.stop]
        for teacher, probability in zip(candidates, draw_probabilities(k, temperature(k, scale, eps)), strict=True):
            for rest, rest_probability in walk(layer + 1, teacher + 1):
                yield (teacher, *rest), float(probability) * rest_probability

    yield from walk(0, 0)


def greedy_matches(kl: ArrayLike) -> list[int]:
    """Algorithm 1 in the limit of a cold draw: the smallest KL of each window."""
    kl = np.asarray(kl, np.float64)
    student_layers, teacher_layers = kl.shape
    matches: list[int] = []
    for layer in range(student_layers):
        candidates = window(layer, matches[-1] + 1 if matches else 0, student_layers, teacher_layers)
        matches.append(min(candidates, key=lambda teacher: kl[layer, teacher]))
    return matches


def error_of_worst_token(actual: ArrayLike, expected: ArrayLike) -> float:
    """Largest |actual - expected| / |expected|: of numbers for [N], of vectors for [N, D]."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} against {expected.shape}"
    if actual.ndim == 1:
        actual, expected = actual[:, None], expected[:, None]
    return float((np.linalg.norm(actual - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max())
