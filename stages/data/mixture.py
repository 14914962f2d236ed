"""A mixture: a YAML file that names several sources, and how much of each is taken.

    seed: 0
    sources:
      - {name: docowl, path: docowl/train.jsonl, images: docowl/images, weight: 0.5}
      - {name: mathvision, path: mathvision, format: messages, cap: 3000}

Paths are relative to the file. What is taken depends on the file alone.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stages.contract import StageError
from stages.data.formats import STATED, Format

MIXTURE_SUFFIXES = (".yaml", ".yml")


class Source(BaseModel):
    """One file or folder of samples, and how it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="", pattern=r"^[^/#]*$")
    """In front of the ids, and the task of samples that name none."""
    path: Path
    format: Format = "auto"
    images: Path | None = None
    """The folder that pictures lie below; None is the folder of the file."""
    weight: float = Field(default=1.0, ge=0)
    """How often each sample is taken: 0.5 takes half of them, 2 takes every one twice."""
    cap: int | None = Field(default=None, ge=0)
    """At most so many samples are taken."""

    @property
    def root(self) -> Path:
        """The folder that pictures lie below, absolute."""
        return (self.images or (self.path if self.path.is_dir() else self.path.parent)).resolve()

    def below(self, folder: Path) -> Source:
        """The same source with its paths relative to `folder`."""
        return self.model_copy(update={"path": folder / self.path, "images": self.images and folder / self.images})

    def take(self, count: int, seed: int) -> list[int]:
        """Which of `count` samples are taken, in order; one that is taken twice stands there twice."""
        total = round(self.weight * count)
        total = total if self.cap is None else min(total, self.cap)
        rounds, rest = divmod(total, count) if count else (0, 0)
        drawn = random.Random(f"{seed} {self.name}").sample(range(count), rest)
        return sorted([*range(count)] * rounds + drawn)


class Mixture(BaseModel):
    """Several sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    """Of the draws; each source has its own."""
    sources: tuple[Source, ...] = Field(min_length=1)

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        repeated = [repr(name) for name, times in Counter(source.name for source in sources).items() if times > 1]
        if repeated:
            raise ValueError(f"several sources need names that differ; repeated: {', '.join(repeated)}")
        return sources


_FIELDS = f"seed, and sources with {', '.join(Source.model_fields)}"


def open_sources(place: Path) -> Mixture:
    """The sources behind a data place: those of a mixture file, or the one file or folder itself.

    Args:
        place: a format can be stated behind it, `train.json#llava`.

    Raises:
        StageError: a mixture file cannot be read.
    """
    path, _, stated = str(place).rpartition("#")
    if path and stated in STATED:
        return Mixture(sources=(Source.model_validate({"path": path, "format": stated}),))
    if place.suffix in MIXTURE_SUFFIXES:
        return _load(place)
    return Mixture(sources=(Source(path=place),))


def data_files(place: Path) -> list[Path]:
    """The files that hold the records of `place`: itself, or the Parquet files of a folder by name.

    Raises:
        StageError: there is nothing, or a folder without Parquet files.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise StageError(f"data: {place} does not exist")
    files = sorted(place.glob("*.parquet"))
    if not files:
        raise StageError(f"data: the folder {place} holds no *.parquet; name a .json or .jsonl file by its own path")
    return files


def _load(file: Path) -> Mixture:
    try:
        mixture = Mixture.model_validate(yaml.safe_load(file.read_text()))
    except OSError as error:
        raise StageError(f"data: {file} does not exist") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StageError(f"data: {file} is no YAML: {error}") from error
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
        raise StageError(f"data: {file} is no mixture: {mistakes}; allowed: {_FIELDS}") from error
    return mixture.model_copy(update={"sources": tuple(source.below(file.parent) for source in mixture.sources)})
