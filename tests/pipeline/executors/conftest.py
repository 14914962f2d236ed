"""A job for whoever submits one."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.contract import Job
from stages.contract.settings import CaptureSettings


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job that nobody carries out."""
    inputs = {"teacher": "/nowhere", "samples": "/nowhere"}
    output = str(tmp_path / "capture" / "0123456789abcdef")
    return Job(
        stage="capture", settings=CaptureSettings(), inputs=inputs, output=output, fingerprint="0123456789abcdef"
    )
