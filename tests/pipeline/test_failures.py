"""A disk that fails under `vlsi` itself: one sentence, and the next run goes on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from conftest import Command, FakeExecutor

from pipeline.session import Session

ALONE = ("~variants", "tracking.enabled=false")


@pytest.mark.parametrize(
    "where", ["pipeline.history.write_whole", "pipeline.session.write_whole"], ids=["record", "report"]
)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_record_or_report_that_cannot_be_written_is_one_sentence(
    world: Path,
    executor: FakeExecutor,
    call_vlsi: Command,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    code: int,
) -> None:
    monkeypatch.setattr("pipeline.session.make_executor", lambda *_: executor)
    monkeypatch.setattr("pipeline.session.render", lambda *_: "the report")

    def fail(path: Path, text: str) -> None:
        raise OSError(code, os.strerror(code), str(path))

    with pytest.MonkeyPatch.context() as disk:
        disk.setattr(where, fail)
        exit_code, printed = call_vlsi("run", *ALONE)
    assert exit_code == 1
    assert "Traceback" not in printed
    assert f"{os.strerror(code).lower()}; " in printed
    assert "start again after that: what is finished is kept" in " ".join(printed.split())
    executor.jobs.clear()
    assert call_vlsi("run", *ALONE)[0] == 0
    assert executor.jobs == [] or where.startswith("pipeline.history")
    assert (world / "store" / "reports" / "digits.html").read_text() == "the report"
    record = Session.open(ALONE).last
    assert record is not None
    assert record.status == "finished"


def test_a_log_that_cannot_be_written_is_one_sentence(
    world: Path, call_vlsi: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages' processes would write it; none is started."""
    monkeypatch.setenv("RAY_ADDRESS", "unused")

    def fail(path: Path, text: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("pipeline.executors.local.write_whole", fail)
    exit_code, printed = call_vlsi("run", *ALONE)
    assert exit_code == 1
    assert "Traceback" not in printed
    assert f"{world}/store/logs/" in "".join(printed.split())
    assert "read-only file system; make it writable" in " ".join(printed.split())
