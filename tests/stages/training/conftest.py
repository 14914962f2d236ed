"""Samples, an encoder, and a folder that keeps checkpoints as Ray Train would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray.train

from stages.contract.settings import Preprocessing
from stages.data.encoding import Encoder
from stages.data.sample import Sample, read_samples
from tests.stages import tiny


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return read_samples(tiny.save_samples(tmp_path_factory.mktemp("data")))[0]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tiny.build_processor(tiny.CORPUS), Preprocessing())


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    store = tmp_path / "checkpoints"
    store.mkdir()

    def report(metrics: dict[str, Any], checkpoint: ray.train.Checkpoint | None = None) -> None:
        assert checkpoint is not None
        checkpoint.to_directory(store / f"{metrics['step']:04d}")

    def newest() -> ray.train.Checkpoint | None:
        kept = sorted(store.iterdir())
        return ray.train.Checkpoint.from_directory(kept[-1]) if kept else None

    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train, "get_checkpoint", newest)
    return store
