"""How fast a committed cache becomes training batches.

Shuffled micro-batches of samples are read from a cache on disk (its pages cached, no sample twice), as a
training loop does: `CacheReader.fields`. The baseline has the same numbers in one flat file and no format
at all, neither compression nor checksums: numpy maps it, and the layers' tensors are joined from it. Both
give one tensor per layer and field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.cache.codecs import INT8_LEVELS, Field, make_codec
from stages.cache.reader import CacheReader
from stages.cache.shard import Layout
from stages.contract.files import TARGETS_FOLDER, block_column
from stages.data.encoding import Encoded
from stages.data.sample import Sample
from stages.losses.divergence import Head
from tests.bench.cache_codecs import CODECS
from tests.bench.caches import Piece, save_cache
from tests.bench.measure import Built, Side, alternate, apart
from tests.bench.results import Check, Result, relative_differences

SPEED_AT_LEAST = 0.5
MEGABYTE = 1e6
FLAT_FILE = "flat.bin"


class Sizes(NamedTuple):
    """Of the heads, the cache and the batches; each repeat reads its own part of the samples."""

    teacher_width: int = 3_584
    student_width: int = 1_536
    vocabulary: int = 151_936
    layers: int = 21
    samples: int = 96
    response_tokens: int = 64
    batch: int = 4
    repeats: int = 3


QUICK = Sizes(96, 48, 500, layers=3, samples=16, response_tokens=8, batch=2)


def compare(quick: bool) -> Iterator[Result]:
    """Each codec's cache."""
    sizes = QUICK if quick else Sizes()
    for name in CODECS[:1] if quick else CODECS:
        yield compare_reading(name, sizes)


def compare_reading(name: str, sizes: Sizes) -> Result:
    """Shuffled batches from a cache, and the same from flat memory."""
    with TemporaryDirectory() as folder:
        apart(write_both, name=name, sizes=sizes, folder=folder)
        arguments = {"name": name, "sizes": sizes, "folder": folder}
        sides = {"ours": Side(build_reader, arguments), "baseline": Side(build_flat_reader, arguments)}
        measured = alternate(sides, repeats=sizes.repeats - 1, warmups=1)
        file_bytes = sum(file.stat().st_size for file in (Path(folder) / TARGETS_FOLDER).iterdir())
        megabytes = (Path(folder) / FLAT_FILE).stat().st_size / MEGABYTE
    result = Result(
        f"reading-{name}",
        f"shuffled batches of {sizes.batch} samples from a committed cache against numpy's memory map of its numbers",
        **measured,
        dtype="bfloat16",
    )
    speeds = {f"{side}, MB/s": megabytes / sizes.repeats / one.median_seconds for side, one in measured.items()}
    sizes_on_disk = {"file / flat bytes": file_bytes / MEGABYTE / megabytes}
    result.details = relative_differences(**measured) | speeds | sizes_on_disk
    result.checks = [Check("speed", result.ratio, SPEED_AT_LEAST)]
    return result


def build_reader(name: str, sizes: Sizes, folder: str) -> Built:
    """Ours."""
    reader = CacheReader(Path(folder) / TARGETS_FOLDER)
    ids = torch.arange(sizes.batch * sizes.response_tokens) % sizes.response_tokens

    def read(batch: list[int]) -> list[list[Tensor]]:
        return reader.fields([str(number) for number in batch], ids)

    return _built(read, sizes, next((Path(folder) / TARGETS_FOLDER).iterdir()))


def build_flat_reader(name: str, sizes: Sizes, folder: str) -> Built:
    """The same numbers without a format."""
    fields, flat = fields_of(name, sizes), np.memmap(Path(folder) / FLAT_FILE, np.uint8, "c")
    of_field = [sizes.response_tokens * field.bytes_per_token for field in fields]
    flat = flat.reshape(sizes.samples, sizes.layers, sum(of_field))
    ends = np.cumsum(of_field)

    def read(batch: list[int]) -> list[list[Tensor]]:
        return [
            [
                torch.cat([_view(flat[number, layer, end - size : end], field) for number in batch])
                for field, size, end in zip(fields, of_field, ends, strict=True)
            ]
            for layer in range(sizes.layers)
        ]

    return _built(read, sizes, Path(folder) / FLAT_FILE)


def _built(read: Callable[[list[int]], list[list[Tensor]]], sizes: Sizes, file: Path) -> Built:
    """Each run reads its own part of one shuffled epoch; the file's pages are cached."""
    order = torch.randperm(sizes.samples, generator=torch.Generator().manual_seed(0))
    parts = iter(order.chunk(sizes.repeats))

    def run() -> dict[str, float]:
        seen = 0.0
        for batch in next(parts).split(sizes.batch):
            layers = read(batch.tolist())
            seen += sum(fields[-1][-1, 0].double().abs().item() for fields in layers)
        return {"numbers": seen}

    return Built(run, warm=file.read_bytes)


def write_both(name: str, sizes: Sizes, folder: str) -> None:
    """A cache with random numbers, and the same numbers in a flat file, sample by sample and layer by layer."""
    fields, generator = fields_of(name, sizes), torch.Generator().manual_seed(0)
    layout = Layout(name, tuple(map(block_column, range(sizes.layers))), fields)
    mask = torch.ones(sizes.response_tokens, dtype=torch.bool)
    pieces: list[Piece] = []
    with (Path(folder) / FLAT_FILE).open("wb") as file:
        for number in range(sizes.samples):
            sample = Encoded(Sample(str(number), (), ()), torch.arange(sizes.response_tokens), mask, {})
            layers = [
                [_random_numbers(field, sizes.response_tokens, generator) for field in fields]
                for _ in range(sizes.layers)
            ]
            for numbers in (numbers for layer in layers for numbers in layer):
                file.write(numbers.view(torch.uint8).numpy().tobytes())
            pieces.append(([sample], layers))
    save_cache(Path(folder) / TARGETS_FOLDER, layout, pieces)


def fields_of(name: str, sizes: Sizes) -> tuple[Field, ...]:
    """What a codec keeps of every token, for heads of these sizes."""
    teacher, student = (Head(torch.empty(1, 1).expand(sizes.vocabulary, width)) for width in sizes[:2])
    return make_codec(name, torch.bfloat16, teacher, student).fields


def _random_numbers(field: Field, tokens: int, generator: torch.Generator) -> Tensor:
    """[tokens, width]: normal ones as states and moments are, rounded as `Int8` does; or any bytes, as packed ids."""
    if field.dtype == torch.uint8:
        return torch.randint(256, (tokens, field.width), generator=generator, dtype=torch.uint8)
    normal = torch.randn(tokens, field.width, generator=generator)
    if field.dtype == torch.int8:
        return (normal * INT8_LEVELS / normal.abs().amax()).round().to(torch.int8)
    return normal.to(field.dtype)


def _view(numbers: np.ndarray, field: Field) -> Tensor:
    return torch.from_numpy(numbers).view(field.dtype).view(-1, field.width)
