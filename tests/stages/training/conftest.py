"""Samples and an encoder."""

from __future__ import annotations

import pytest

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
