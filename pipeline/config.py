"""From `conf/` and the command line to typed experiments, or to one sentence per mistake.

Hydra composes the files and the overrides, pydantic validates the result. Every mistake is a
`ConfigError` that names the key, what was found, and what is allowed.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from pipeline.experiment import Experiment

CONF_VARIABLE = "VLSI_CONF"
SWEEPS = "sweep"
"""The folder of `conf/` whose files are no part of an experiment: each describes many."""


class ConfigError(Exception):
    """The configuration is not valid, or asks for something that is not there."""


@dataclass(frozen=True)
class Configuration:
    """An experiment with its variants, and the overrides it was made from."""

    main: Experiment
    variants: dict[str, Experiment]
    overrides: tuple[str, ...] = ()

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The experiment and its variants."""
        return (self.main, *self.variants.values())


def conf_folder() -> Path:
    """The folder of configuration files: VLSI_CONF, else `conf/` beside this package."""
    chosen = os.environ.get(CONF_VARIABLE)
    return Path(chosen).absolute() if chosen else Path(__file__).resolve().parent.parent / "conf"


def load(overrides: Sequence[str] = ()) -> Configuration:
    """Compose and validate an experiment and its variants.

    Raises:
        ConfigError: naming every mistake.
    """
    main = load_experiment(overrides)
    variants = {}
    for name, changes in main.variants.items():
        try:
            variants[name] = load_experiment([*overrides, *changes])
        except ConfigError as error:
            raise ConfigError(f"variants.{name}: {error}") from error
    return Configuration(main, variants, tuple(overrides))


def load_experiment(overrides: Sequence[str] = ()) -> Experiment:
    """Compose and validate one experiment from the files and `overrides`, in order, without its variants.

    Raises:
        ConfigError: naming every mistake.
    """
    folder = conf_folder()
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} has no config.yaml; set {CONF_VARIABLE} to a folder laid out like `conf/`")
    parsed = _parse(overrides)
    groups = [override for override in parsed if _is_group(folder, override)]
    values = [override for override in parsed if not _is_group(folder, override)]
    for group in groups:
        _check_option(folder, group)
    chosen = tuple(str(group.input_line) for group in groups)
    try:
        composed = _composed(folder, chosen)
        _refuse_shared(OmegaConf.to_container(composed), values)
        data = OmegaConf.to_container(_changed(composed, values), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(": ".join(str(e).splitlines()[0] for e in (error, error.__cause__) if e)) from error
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        sentences = [_sentence(folder, data, detail) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(sentences))) from error


@cache
def _composed(folder: Path, overrides: tuple[str, ...]) -> DictConfig:
    """The files of `folder` that `overrides` choose, interpolations unresolved; read once in a process."""
    with initialize_config_dir(str(folder), version_base=None):
        return compose("config", list(overrides))


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise ConfigError(
                f"{text!r} is not an override; write key=value, for example interaction.schedule.steps=100"
            ) from error
        if override.is_sweep_override():
            raise ConfigError(f"{override.key_or_group}: {text!r} gives several values; give one, or [a, b] for a list")
        if override.package is not None:
            raise ConfigError(f"{override.key_or_group}: {text!r} names a package, which no key here has; leave out @…")
        parsed.append(override)
    return parsed


def _is_group(folder: Path, override: Override) -> bool:
    return (folder / override.key_or_group).is_dir()


def _changed(composed: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """A copy with values set or deleted; keys that no file mentions are set too, validation knows which exist."""
    changed = copy.deepcopy(composed)
    OmegaConf.set_struct(changed, False)
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if override.is_delete():
            _delete(changed, override)
        elif override.is_add() and not isinstance(value, dict | list) and OmegaConf.select(changed, key) is not None:
            raise ConfigError(f"{key}: is there already, +{key} only adds; write {key}=value")
        else:
            OmegaConf.update(changed, key, value, merge=True)
    return changed


def _delete(config: DictConfig, override: Override) -> None:
    """What `~key` and, if that is its value, `~key=value` mean."""
    key = override.key_or_group
    section, _, name = key.rpartition(".")
    parent = OmegaConf.select(config, section) if section else config
    if not isinstance(parent, DictConfig) or name not in parent:
        raise ConfigError(f"{key}: there is nothing to delete")
    found, expected = parent[name], override.value()
    if expected is not None and expected != found:
        raise ConfigError(f"{key}: is {found} and not {expected}; ~{key} deletes it")
    del parent[name]


def _check_option(folder: Path, override: Override) -> None:
    """Refuse `experiment=NAME` when there is no such file, and sweeps, which have a command of their own."""
    group, option = override.key_or_group, str(override.value())
    if group == SWEEPS:
        raise ConfigError(f"sweep: a single experiment has none; use `vlsi sweep sweep={option}`")
    options = sorted(path.stem for path in (folder / group).glob("*.yaml"))
    if option not in options:
        hint = _hint(option, options) or ";"
        raise ConfigError(f"{group}: {option!r} is unknown{hint} allowed: {', '.join(options)}")


def _refuse_shared(composed: Any, overrides: Sequence[Override]) -> None:
    """Refuse to change one field of a section that is an interpolation: it would cut the others loose."""
    for override in overrides:
        section = composed
        parts = override.key_or_group.split(".")
        for depth, part in enumerate(parts[:-1], start=1):
            section = section.get(part) if isinstance(section, dict) else None
            if isinstance(section, str) and section.startswith("${"):
                rest = ".".join(parts[depth:])
                raise ConfigError(
                    f"{override.key_or_group}: {'.'.join(parts[:depth])} is shared; set {section[2:-1]}.{rest} instead"
                )


def _sentence(folder: Path, data: Any, detail: Any) -> str:
    """One pydantic error as a sentence: key, what was found, what is allowed."""
    key = _key(data, detail["loc"])
    if detail["type"] == "union_tag_invalid":
        return f"{key}.kind: {detail['ctx']['tag']!r} is unknown; allowed: {detail['ctx']['expected_tags']}"
    if detail["type"] == "extra_forbidden":
        known = [*_known_keys(Experiment), *_groups(folder)]
        if key in known:
            section = key.partition(".")[0]
            return f"{key}: {section}={data[section]['kind']} has no such key; it belongs to another {section}"
        return f"{_origin(folder, data, key)}{key}: unknown key{_hint(key, known)}"
    if detail["type"] == "missing":
        return f"{key}: a value is missing"
    message = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
    if not key:
        return message
    found = "" if isinstance(detail["input"], dict) else f"{without_secret(repr(detail['input']))} is not valid: "
    return f"{key}: {found}{message[0].lower()}{message[1:]}"


def _key(data: Any, loc: Sequence[str | int]) -> str:
    """Where an error is, as a person would write it: pydantic also names the kind of a section that has several."""
    parts = []
    for part in loc:
        if isinstance(data, dict) and part not in data and part == data.get("kind"):
            continue
        parts.append(str(part))
        data = data.get(part) if isinstance(data, dict) else None
    return ".".join(parts)


def without_secret(text: str) -> str:
    """A text whose URLs keep nothing of what stands before an `@`."""
    return re.sub(r"(\w://)[^/@\s]*@", r"\1…@", text)


def _origin(folder: Path, data: Any, key: str) -> str:
    """The configuration file in which `key` stands, as a prefix; empty for the command line."""
    name = data.get("name") if isinstance(data, dict) else None
    for path in (folder / "experiment" / f"{name}.yaml", folder / "config.yaml"):
        if path.is_file() and OmegaConf.select(OmegaConf.load(path), key) is not None:
            return f"{path.relative_to(folder.parent)}: "
    return ""


def _groups(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of the configuration, sections included, dotted."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = f"{prefix}{name}.NAME." if get_origin(field.annotation) is dict else f"{prefix}{name}."
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from _known_keys(candidate, inner)


def _hint(key: str, known: Sequence[str]) -> str:
    """`; did you mean …?` with the most similar known key, or nothing if none is similar."""
    best = max(known, key=lambda candidate: _likeness(key, candidate), default="")
    return f"; did you mean {best}?" if best and _likeness(key, best)[0] >= 0.6 else ""


def _likeness(key: str, candidate: str) -> tuple[float, float]:
    """How alike the last parts are (initials count as equal), then the sections before them."""
    section, _, leaf = key.rpartition(".")
    other_section, _, other_leaf = candidate.rpartition(".")
    initials = "".join(word[:1] for word in other_leaf.split("_"))
    same = leaf in (other_leaf, initials)
    leaf_likeness = 1.0 if same else SequenceMatcher(None, leaf, other_leaf).ratio()
    if f"{other_section}.".startswith(f"{section}."):
        return leaf_likeness, 1.0 + 1.0 / (1 + len(other_section))
    return leaf_likeness, SequenceMatcher(None, section, other_section).ratio()
