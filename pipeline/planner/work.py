"""What a stage's cost is made of: what is processed, how, on what; and what that takes.

Sizes are in bytes, tokens of a sample include those of its pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.planner.models import ModelSize


@dataclass(frozen=True)
class Workload:
    """What is processed: samples that are all alike.

    Attributes:
        samples: how many.
        text_tokens, image_tokens, response_tokens: of one sample; responses are not part of the text.
        patches: positions of the vision tower, of one sample.
        patches_per_picture: that attend to each other.
    """

    samples: float
    text_tokens: float
    image_tokens: float
    response_tokens: float
    patches: float
    patches_per_picture: float

    @property
    def tokens(self) -> float:
        """Of one sample."""
        return self.text_tokens + self.image_tokens + self.response_tokens

    @property
    def responses(self) -> float:
        """Response tokens of all samples."""
        return self.samples * self.response_tokens

    def some(self, samples: float) -> Workload:
        """As many of the same samples."""
        return replace(self, samples=samples)

    def forward_flops(self, model: ModelSize) -> float:
        """Of all samples through vision tower and decoder; no head."""
        vision = model.vision.forward_flops(self.patches, self.patches_per_picture, self.image_tokens)
        return self.samples * (vision + model.decoder_flops(self.tokens, self.tokens))


@dataclass(frozen=True)
class Recipe:
    """The settings that decide what a stage costs.

    Attributes:
        teacher_targets, student_targets: how many target layers.
        vocabulary: real token ids; padding rows of a head are never multiplied.
        micro_batch_samples: of one forward pass.
        batch_samples: of one optimizer step of one worker.
        shard_samples: of one file of a cache.
        distinct_samples: of the training set; the workload of several epochs has more.
        state_bytes: what a token has among the captured states for one layer.
        cached_bytes: what a token has in the cache for one layer, uncompressed.
        codec: of the cache: `hidden`, `moment` or `sampled`, however its numbers are packed.
        captured_share: of the samples, whose teacher states precompute finds.
        lora_rank: None trains the decoder in full.
        checkpointing: whether blocks are computed again in the backward pass.
        number_bytes: of a number that the model is loaded and computes in: 2, or 4 for float32.
    """

    teacher_targets: int
    student_targets: int
    vocabulary: int
    state_bytes: float
    cached_bytes: float
    codec: str = "moment"
    micro_batch_samples: float = 8
    batch_samples: float = 512
    shard_samples: float = 256
    distinct_samples: float = math.inf
    captured_share: float = 1.0
    lora_rank: int | None = None
    checkpointing: bool = True
    number_bytes: int = 2


@dataclass(frozen=True)
class Machine:
    """What one worker computes on.

    Attributes:
        half_flops_per_second: sustained, products of 16-bit numbers.
        float_flops_per_second: sustained, products in float32. On a GPU a head's float32 product is two
            of 16-bit numbers: half the rate of those.
        moved_bytes_per_second: sustained, of memory that an optimizer reads and writes in place.
        copied_bytes_per_second: sustained, of memory that is read and written to a new place.
        process_bytes: of the interpreter with its libraries, before any model.
        is_cpu: frozen weights are then pages of the checkpoint's mapped files, of which only those are in memory
            that were read, and a float32 product with a 16-bit matrix needs a float32 copy of it.
    """

    half_flops_per_second: float
    float_flops_per_second: float
    moved_bytes_per_second: float
    copied_bytes_per_second: float
    process_bytes: float = 0.0
    is_cpu: bool = False


@dataclass(frozen=True)
class Work:
    """What a stage computes, over all its samples.

    Attributes:
        half_flops: in the model's dtype.
        float_flops: in float32: heads, and verb-FFNs outside training.
        moved_bytes: by the optimizer and the adding up of gradients.
        copied_bytes: by the widening of heads.
    """

    half_flops: float = 0.0
    float_flops: float = 0.0
    moved_bytes: float = 0.0
    copied_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.half_flops + other.half_flops,
            self.float_flops + other.float_flops,
            self.moved_bytes + other.moved_bytes,
            self.copied_bytes + other.copied_bytes,
        )

    @property
    def flops(self) -> float:
        """All operations."""
        return self.half_flops + self.float_flops

    def seconds(self, machine: Machine) -> float:
        """On one worker that does one after the other."""
        return (
            self.half_flops / machine.half_flops_per_second
            + self.float_flops / machine.float_flops_per_second
            + self.moved_bytes / machine.moved_bytes_per_second
            + self.copied_bytes / machine.copied_bytes_per_second
        )


IN_HOST_MEMORY = ("process", "shard", "data", "remembered samples")
"""Terms of a cost that never lie on a GPU."""
SHARDED = ("frozen", "trained", "16-bit copies of the trained")
"""Terms of a cost that workers share under `fsdp`."""


@dataclass(frozen=True)
class Cost:
    """What a stage costs.

    Attributes:
        work: over all samples.
        memory: of one worker at the worst moment, by what lies in it.
        teacher_flops: operations of the work with the teacher's weights; the others are with the student's.
    """

    work: Work
    memory: Mapping[str, float]
    teacher_flops: float = 0.0

    @property
    def peak_bytes(self) -> float:
        """Of one worker."""
        return sum(self.memory.values())

    def on_gpu(self) -> Cost:
        """Without what lies in the host's memory."""
        return replace(self, memory={n: size for n, size in self.memory.items() if n not in IN_HOST_MEMORY})

    def sharded(self, workers: int) -> Cost:
        """With an even share of what workers share."""
        shares = {name: workers if name in SHARDED else 1 for name in self.memory}
        return replace(self, memory={name: size / shares[name] for name, size in self.memory.items()})
