"""A checkpoint that a command asks something: how it is read, and how a mistake becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import ConfigError
from pipeline.experiment import Experiment, is_hub_id
from stages.contract import STAGES, Artifact, StageError
from stages.contract.place import absolute
from stages.contract.settings import ModelLoading, Preprocessing
from stages.data import BadSample


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk or on a hub.

    Attributes:
        place: a folder or a hub id.
        loading: how it is loaded.
        preprocessing: how samples become its tensors.
    """

    place: str
    loading: ModelLoading
    preprocessing: Preprocessing


def checkpoint_of(artifact: Artifact, place: str) -> Checkpoint:
    """The model at `place`, read as the stage that made `artifact` read its own.

    Raises:
        ConfigError: another version of `vlsi` made it, whose settings are not these.
    """
    manifest = artifact.manifest
    try:
        settings: Any = STAGES[manifest.stage].settings.model_validate(manifest.identity["settings"])
    except ValidationError as error:
        raise ConfigError(
            f"{artifact.place} was made by another version of vlsi, whose settings are others; "
            "name the folder of a checkpoint with --model"
        ) from error
    return Checkpoint(place, settings.model, settings.preprocessing)


def checkpoint_named(model: str, experiment: Experiment) -> Checkpoint:
    """What a person calls a checkpoint, read as evaluation reads the experiment's student.

    Raises:
        ConfigError: it is a path, and there is no folder.
    """
    return Checkpoint(checkpoint_place(model), experiment.evaluation.model, experiment.evaluation.preprocessing)


def checkpoint_place(model: str) -> str:
    """What a person calls a checkpoint, as a place to load it from: a folder, a URL, or a hub id.

    Raises:
        ConfigError: it is a path, and there is no folder.
    """
    folder = Path(model).expanduser()
    if folder.is_dir() or "://" in model:
        return absolute(model)
    if is_hub_id(model.partition("@")[0]):
        return model
    raise ConfigError(f"--model: {model} is no folder; name a checkpoint folder, or a hub id such as Qwen/Qwen2-VL-2B")


@contextmanager
def loading(place: str) -> Iterator[None]:
    """While a checkpoint is loaded: no bars and no lists of weights, and one sentence if it is none.

    Raises:
        ConfigError: it is not there, or no model that can be asked.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except StageError as error:
        raise ConfigError(str(error)) from error
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{place} cannot be loaded: {reason[0]}") from error


@contextmanager
def asking() -> Iterator[None]:
    """While a model is asked: what it cannot be asked is a mistake of whoever asks.

    Raises:
        ConfigError: a picture cannot be read, or the conversation is too long.
    """
    try:
        yield
    except (BadSample, StageError) as error:
        raise ConfigError(str(error)) from error


def existing_picture(image: Path) -> Path:
    """The absolute path of a picture.

    Raises:
        ConfigError: there is no such file.
    """
    path = image.expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"--image: {image} is no file; name a picture on this machine")
    return path
