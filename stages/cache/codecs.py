"""Codecs: what is kept of a teacher layer's distribution, and how it becomes a `Target` again.

| codec | kept of every token and layer | exact | needed at training |
|---|---|---|---|
| `hidden` | the input of the teacher's head, [d_t] | for any student | the teacher's head |
| `hidden-int8` | the same, one byte a number and one scale | to 1/254 of the largest number | the teacher's head |
| `moment` | (m, H) for this student's head, [d_s] and a number | for this student | nothing |
| `moment-int8` | the same, m in one byte a number and one scale | to 1/254 of the largest number | nothing |
| `sampled` | K token ids and H | m on average, H exactly | nothing |

What a token costs on disk before compression is known from the fields alone. Numbers of several bytes
are kept as byte planes (all first bytes, then all second bytes, …), because exponents compress and
mantissas do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from stages.losses.divergence import CHUNK_BYTES, Head, Target, moment_target, spread_ids

CODEC_VERSION = 3
INT8_LEVELS = 127


class Field(NamedTuple):
    """One array of a blob: `width` numbers of `dtype` a token."""

    width: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's numbers."""
        return self.width * self.dtype.itemsize


SCALAR = Field(1, torch.float32)


class Codec(Protocol):
    """Turns head inputs of the teacher into fields of a blob, and those into targets."""

    name: str

    @property
    def fields(self) -> tuple[Field, ...]:
        """The arrays of a blob, in order."""

    def encode(self, x_teacher: Tensor, uniform: Tensor) -> list[Tensor]:
        """[N, d_t] to one [N, width] tensor per field; `uniform` [N] in [0, 1) are the tokens' random numbers."""

    def decode(self, fields: Sequence[Tensor], student: Head) -> Target:
        """One [N, width] tensor per field to a target for the student's head."""


class Plain(NamedTuple):
    """Vectors kept in a floating-point dtype."""

    dtype: torch.dtype
    suffix: str = ""

    def fields(self, width: int) -> tuple[Field, ...]:
        """The vector."""
        return (Field(width, self.dtype),)

    def pack(self, vectors: Tensor) -> list[Tensor]:
        """As they are."""
        return [vectors]

    def unpack(self, fields: Sequence[Tensor]) -> Tensor:
        """[N, width] float32."""
        return fields[0].float()


class Int8(NamedTuple):
    """Vectors kept as one signed byte a number and one scale a vector."""

    suffix: str = "-int8"

    def fields(self, width: int) -> tuple[Field, ...]:
        """The bytes and the scale."""
        return (Field(width, torch.int8), SCALAR)

    def pack(self, vectors: Tensor) -> list[Tensor]:
        """The largest number of a vector becomes ±127."""
        vectors = vectors.float()
        scale = vectors.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / INT8_LEVELS
        return [(vectors / scale).round_().to(torch.int8), scale]

    def unpack(self, fields: Sequence[Tensor]) -> Tensor:
        """[N, width] float32."""
        return fields[0].float() * fields[1]


class Hidden:
    """Keeps the verbalized hidden state itself."""

    def __init__(self, packing: Plain | Int8, teacher: Head) -> None:
        self.name = "hidden" + packing.suffix
        self._packing = packing
        self._teacher = teacher

    @property
    def fields(self) -> tuple[Field, ...]:
        """The state, [d_t]."""
        return self._packing.fields(self._teacher.weight.shape[1])

    def encode(self, x_teacher: Tensor, uniform: Tensor) -> list[Tensor]:
        """The states as they are."""
        return self._packing.pack(x_teacher)

    def states(self, fields: Sequence[Tensor]) -> Tensor:
        """[N, d_t] float32."""
        return self._packing.unpack(fields)

    def decode(self, fields: Sequence[Tensor], student: Head) -> Target:
        """Apply the teacher's head now."""
        return moment_target(self.states(fields), self._teacher, student)


class Moment:
    """Keeps the mean row of the student's head and the entropy, all that a KL needs (DESIGN §2)."""

    def __init__(self, packing: Plain | Int8, teacher: Head | None, student: Head) -> None:
        """`teacher` is needed to encode, not to decode."""
        self.name = "moment" + packing.suffix
        self._packing = packing
        self._teacher = teacher
        self._student = student

    @property
    def fields(self) -> tuple[Field, ...]:
        """The entropy, the mean bias of a head that has one, and the moment [d_s]."""
        bias = (SCALAR,) if self._student.bias is not None else ()
        return (SCALAR, *bias, *self._packing.fields(self._student.weight.shape[1]))

    def encode(self, x_teacher: Tensor, uniform: Tensor) -> list[Tensor]:
        """One pass over the teacher's vocabulary."""
        target = moment_target(x_teacher, _needed(self._teacher, self.name), self._student)
        scalars = [value[:, None] for value in (target.entropy, target.bias_mean) if value is not None]
        return [*scalars, *self._packing.pack(target.moment)]

    def decode(self, fields: Sequence[Tensor], student: Head) -> Target:
        """As it was kept, for the same student."""
        entropy, *rest = fields
        bias = rest.pop(0)[:, 0] if student.bias is not None else None
        return Target(self._packing.unpack(rest), entropy[:, 0], bias)


class Sampled:
    """Keeps K token ids spread evenly over the distribution, as few bits each as it takes, and the entropy."""

    def __init__(self, count: int, vocabulary: int, teacher: Head | None) -> None:
        """`teacher` is needed to encode, not to decode; `vocabulary` is the number of real token ids."""
        self.name = f"sampled-{count}"
        self._count = count
        self._bits = max(1, (vocabulary - 1).bit_length())
        self._teacher = teacher

    @property
    def fields(self) -> tuple[Field, ...]:
        """The packed ids and the entropy."""
        return (Field(-(-self._count * self._bits // 8), torch.uint8), SCALAR)

    def encode(self, x_teacher: Tensor, uniform: Tensor) -> list[Tensor]:
        """Ids whose mean row is the moment on average over `uniform`."""
        ids, entropy = spread_ids(x_teacher, _needed(self._teacher, self.name), self._count, uniform)
        return [pack_ids(ids.cpu(), self._bits), entropy[:, None]]

    def decode(self, fields: Sequence[Tensor], student: Head) -> Target:
        """The mean row of the kept ids."""
        packed, entropy = fields
        ids = unpack_ids(packed.cpu(), self._bits, self._count).to(student.weight.device)
        size = max(1, CHUNK_BYTES // (4 * self._count * student.weight.shape[1]))
        moment = torch.cat([student.weight[some].float().mean(dim=1) for some in ids.split(size)])
        bias = None if student.bias is None else student.bias[ids].float().mean(dim=1)
        return Target(moment, entropy[:, 0], bias)


def make_codec(name: str, dtype: torch.dtype, teacher: Head | None, student: Head) -> Codec:
    """The codec of a layout's name, for a pair of heads; `dtype` is that of plain vectors.

    Raises:
        ValueError: there is no such codec, or it needs the teacher's head.
    """
    kind, _, variant = name.partition("-")
    packing = Int8() if variant == "int8" else Plain(dtype)
    if kind == "sampled" and variant.isdecimal():
        return Sampled(int(variant), len(student.weight), teacher)
    if kind == "moment" and variant in ("", "int8"):
        return Moment(packing, teacher, student)
    if kind == "hidden" and variant in ("", "int8"):
        return Hidden(packing, _needed(teacher, name))
    raise ValueError(f"codec {name!r} is unknown; there are hidden, hidden-int8, moment, moment-int8 and sampled-K")


def pack_ids(ids: Tensor, bits: int) -> Tensor:
    """[N, K] ids below 2**bits to [N, ⌈K · bits / 8⌉] uint8."""
    places = np.arange(bits, dtype=np.int64)
    flags = ((ids.numpy()[:, :, None] >> places) & 1).astype(np.uint8)
    return torch.from_numpy(np.packbits(flags.reshape(len(ids), -1), axis=1))


def unpack_ids(packed: Tensor, bits: int, count: int) -> Tensor:
    """What `pack_ids` was given: [N, count] int64."""
    flags = np.unpackbits(packed.numpy(), axis=1, count=count * bits).reshape(len(packed), count, bits)
    return torch.from_numpy(flags.astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64)))


def to_blobs(tensors: Sequence[Tensor], fields: Sequence[Field], counts: Sequence[int]) -> list[bytes]:
    """Cut [N, width] tensors at the samples' token counts; a blob holds a sample's fields one after the other."""
    stored = [tensor.detach().to("cpu", field.dtype) for tensor, field in zip(tensors, fields, strict=True)]
    parts = [tensor.split(list(counts)) for tensor in stored]
    return [b"".join(_planes(piece) for piece in pieces) for pieces in zip(*parts, strict=True)]


def from_blobs(blobs: Sequence[bytes | memoryview], fields: Sequence[Field], counts: Sequence[int]) -> list[Tensor]:
    """The [N, width] tensors of several samples' blobs, one after the other.

    Raises:
        ValueError: a blob has another length than its fields and count say.
    """
    for blob, count in zip(blobs, counts, strict=True):
        if len(blob) != (expected := count * sum(field.bytes_per_token for field in fields)):
            raise ValueError(f"a blob of {count} tokens has {len(blob)} bytes, expected {expected}")
    tensors, starts = [], [0] * len(blobs)
    for field in fields:
        sizes = [count * field.bytes_per_token for count in counts]
        pieces = [np.frombuffer(blob, np.uint8, *at) for blob, *at in zip(blobs, sizes, starts, strict=True)]
        joined = torch.from_numpy(_joined([piece.reshape(field.dtype.itemsize, -1) for piece in pieces]))
        tensors.append(joined.view(field.dtype).reshape(sum(counts), field.width))
        starts = [start + size for start, size in zip(starts, sizes, strict=True)]
    return tensors


def _joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """[itemsize, n] planes of several pieces to [N, itemsize]: plane by plane, which is faster than to transpose."""
    numbers = np.empty((sum(planes.shape[1] for planes in pieces), len(pieces[0])), np.uint8)
    start = 0
    for planes in pieces:
        end = start + planes.shape[1]
        for place, plane in enumerate(planes):
            numbers[start:end, place] = plane
        start = end
    return numbers


def _planes(tensor: Tensor) -> bytes:
    numbers = tensor.contiguous().view(torch.uint8).numpy().reshape(-1, tensor.dtype.itemsize)
    return np.ascontiguousarray(numbers.T).tobytes()


def _needed(teacher: Head | None, name: str) -> Head:
    if teacher is None:
        raise ValueError(f"the {name} codec needs the teacher's head here, and none was given")
    return teacher
