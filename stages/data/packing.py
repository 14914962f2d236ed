"""Packing: samples of similar length into forward passes, so that little is padded."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], *, max_tokens: int, max_samples: int | None = None) -> list[list[int]]:
    """Group samples of similar length into micro-batches.

    Args:
        lengths: tokens of each sample.
        max_tokens: of a micro-batch with its padding, samples × longest; a longer sample stands alone.
        max_samples: of a micro-batch.

    Returns:
        Indices into `lengths`, each once, by increasing length.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        size = len(groups[-1]) + 1 if groups else 0
        if groups and size * lengths[index] <= max_tokens and size <= (max_samples or size):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
