"""Where a model's configuration comes from: its folder, the Hugging Face cache, or what `conf/models` keeps.

Nothing is asked of a network. A kept configuration has the fields that `ModelSize` reads, `tokens` (how
many token ids are real; the rows beyond them are padding) and `source` (where they were read).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError, conf_folder
from pipeline.experiment import Model
from pipeline.planner.models import ModelSize
from stages.contract.place import place_of


def model_size(key: str, model: Model) -> ModelSize:
    """The size of an experiment's teacher or student.

    Args:
        key: `teacher` or `student`, for messages.
        model: its place.

    Raises:
        ConfigError: there is no configuration, or its architecture cannot be planned; says what to do.
    """
    try:
        return ModelSize.of_config(_configuration(key, model))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{key}.path: {model.path}: {error}") from error


def _configuration(key: str, model: Model) -> dict[str, Any]:
    kept = conf_folder() / "models" / f"{model.path}.json"
    candidates = [place_of(model.path) / "config.json"] if model.is_folder else [_cached(model), kept]
    for place in candidates:
        if place is not None and place.is_file():
            return json.loads(place.read_text())
    if model.is_folder:
        raise ConfigError(f"{key}.path: {candidates[0]} does not exist; make the checkpoint, or set {key}.path")
    raise ConfigError(
        f"{key}.path: the configuration of {model.path} is not on this machine; copy its config.json to {kept}, "
        f"or run `hf download {model.path} config.json`"
    )


def _cached(model: Model) -> Path | None:
    """In the Hugging Face cache, if it was downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    return Path(found) if isinstance(found, str) else None
