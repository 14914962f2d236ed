"""What a container is asked to see whether it is well."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

healthy = runpy.run_path(str(Path(__file__).parents[2] / "docker/healthy.py"))
RAYLET, HEAD = healthy["RAYLET"], healthy["HEAD"]


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (["python", "/opt/vlsi/bin/ray", "start", "--head", "--block"], [RAYLET, HEAD]),
        (["/sbin/docker-init", "--", "ray", "start", "--block", "--address=head:6379"], [RAYLET]),
        (["python", "-m", "stages.interaction", "--job", "start"], []),
        ([], []),
    ],
)
def test_a_head_a_worker_and_a_stage_are_asked_what_they_can_answer(command: list[str], asked: list[str]) -> None:
    assert list(healthy["questions"]([command])) == asked
