"""A pair that does not fit stops before any compute; one that fits is looked at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import ConfigError
from pipeline.runner import Outcome
from tests.pipeline.conftest import FakeExecutor
from tests.stages import tiny

pytestmark = pytest.mark.paired


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_qwen2vl(tmp_path_factory.mktemp("model"), width=16, layers=2, pad_rows=0, seed=0)


@pytest.fixture
def models(world: Path, checkpoint: Path) -> Path:
    """The experiment's models, with genuine processors."""
    prepared = world / "store" / "prepared" / "digits"
    for name in ("teacher", "backbone"):
        shutil.rmtree(prepared / name)
        shutil.copytree(checkpoint, prepared / name)
    return prepared


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each time that processors were compared."""
    import stages.data.pair

    calls: list[object] = []
    original = stages.data.pair.differences

    def count(*processors: object) -> list[str]:
        calls.append(processors)
        return original(*processors)

    monkeypatch.setattr(stages.data.pair, "differences", count)
    return calls


def change_template(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "harmless"))


def test_a_pair_that_differs_runs_nothing(run: Callable[..., Outcome], models: Path, executor: FakeExecutor) -> None:
    change_template(models / "backbone")
    with pytest.raises(ConfigError, match="do not see samples alike") as error:
        run()
    assert "-You are a helpful assistant" in str(error.value)
    assert executor.jobs == []


def test_what_was_found_alike_is_remembered(run: Callable[..., Outcome], models: Path, compared: list[object]) -> None:
    run()
    assert len(compared) == 1, "the variants have the same pair"
    run("interaction.matching.scale=4")
    assert len(compared) == 1
    change_template(models / "teacher")
    change_template(models / "backbone")
    run()
    assert len(compared) == 2


def test_nothing_is_compared_if_nothing_runs_that_compares(
    run: Callable[..., Outcome], models: Path, compared: list[object]
) -> None:
    run(only="evaluation@teacher")
    assert compared == []


def test_a_model_without_a_processor_is_named(run: Callable[..., Outcome], models: Path) -> None:
    for file in models.glob("backbone/*"):
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    with pytest.raises(ConfigError, match=r"student.path: the processor of .*backbone cannot be loaded"):
        run()
