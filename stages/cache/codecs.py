"""Codecs: what is kept of a teacher layer's distribution, and how it becomes a `Target` again.

| codec | kept of every token and layer | exact | needed at training |
|---|---|---|---|
| `hidden` | the input of the teacher's head, [d_t] | for any student | the teacher's head |
| `moment` | (m, H) for this student's head, [d_s] and a number | for this student | nothing |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from stages.losses.divergence import Head, Target, moment_target

CODEC_VERSION = 1


class Field(NamedTuple):
    """One array of a blob: `width` numbers of `dtype` a token."""

    width: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's numbers."""
        return self.width * self.dtype.itemsize


class Codec(Protocol):
    """Turns head inputs of the teacher into fields of a blob, and those into targets."""

    name: str

    @property
    def fields(self) -> tuple[Field, ...]:
        """The arrays of a blob, in order."""

    def encode(self, x_teacher: Tensor) -> list[Tensor]:
        """[N, d_t] to one [N, width] tensor per field."""

    def decode(self, fields: Sequence[Tensor], student: Head) -> Target:
        """One [N, width] tensor per field to a target for the student's head."""


class Hidden:
    """Keeps the verbalized hidden state itself."""

    name = "hidden"

    def __init__(self, dtype: torch.dtype, teacher: Head) -> None:
        self._dtype = dtype
        self._teacher = teacher

    @property
    def fields(self) -> tuple[Field, ...]:
        """The state, [d_t]."""
        return (Field(self._teacher.weight.shape[1], self._dtype),)

    def encode(self, x_teacher: Tensor) -> list[Tensor]:
        """The states as they are."""
        return [x_teacher]

    def decode(self, fields: Sequence[Tensor], student: Head) -> Target:
        """Apply the teacher's head now."""
        return moment_target(fields[0].to(self._teacher.weight.dtype), self._teacher, student)


class Moment:
    """Keeps the mean row of the student's head and the entropy, all that a KL needs (DESIGN §2)."""

    name = "moment"

    def __init__(self, dtype: torch.dtype, teacher: Head | None, student: Head) -> None:
        """`teacher` is needed to encode, not to decode."""
        self._dtype = dtype
        self._teacher = teacher
        self._student = student

    @property
    def fields(self) -> tuple[Field, ...]:
        """The moment [d_s], the entropy, and the mean bias of a head that has one."""
        scalar = Field(1, torch.float32)
        bias = (scalar,) if self._student.bias is not None else ()
        return (Field(self._student.weight.shape[1], self._dtype), scalar, *bias)

    def encode(self, x_teacher: Tensor) -> list[Tensor]:
        """One pass over the teacher's vocabulary."""
        if self._teacher is None:
            raise ValueError("the moment codec encodes with the teacher's head, and none was given")
        target = moment_target(x_teacher, self._teacher, self._student)
        scalars = [value[:, None] for value in (target.entropy, target.bias_mean) if value is not None]
        return [target.moment, *scalars]

    def decode(self, fields: Sequence[Tensor], student: Head) -> Target:
        """As it was kept, for the same student."""
        moment, entropy, *bias = fields
        return Target(moment.float(), entropy[:, 0], bias[0][:, 0] if bias else None)


def to_blobs(tensors: Sequence[Tensor], fields: Sequence[Field], counts: Sequence[int]) -> list[bytes]:
    """Cut [N, width] tensors at the samples' token counts; a blob holds a sample's fields one after the other."""
    stored = [tensor.detach().to("cpu", field.dtype) for tensor, field in zip(tensors, fields, strict=True)]
    parts = [tensor.split(list(counts)) for tensor in stored]
    return [b"".join(_raw(piece) for piece in pieces) for pieces in zip(*parts, strict=True)]


def from_blob(blob: bytes, fields: Sequence[Field], count: int) -> list[Tensor]:
    """The [count, width] tensors of one blob.

    Raises:
        ValueError: the blob has another length than its fields and count say.
    """
    expected = count * sum(field.bytes_per_token for field in fields)
    if len(blob) != expected:
        raise ValueError(f"a blob of {count} tokens has {len(blob)} bytes, expected {expected}")
    tensors, start = [], 0
    for field in fields:
        size = count * field.bytes_per_token
        piece = torch.frombuffer(bytearray(blob[start : start + size]), dtype=field.dtype)
        tensors.append(piece.reshape(count, field.width))
        start += size
    return tensors


def _raw(tensor: Tensor) -> bytes:
    return np.ascontiguousarray(tensor.contiguous().view(torch.uint8).numpy()).tobytes()
