"""What was made: of an experiment that is up to date, and of a run whatever came after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import ConfigError
from pipeline.made import Made
from pipeline.runner import Outcome
from pipeline.session import Session

Run = Callable[..., Outcome]
ALONE = "~variants"


def test_an_experiment_has_what_is_up_to_date(run: Run) -> None:
    run(ALONE)
    made = Made.find(None, [ALONE])
    assert made.need("reinforcement").place == Session.open([ALONE]).artifacts()["reinforcement"].place
    assert set(made.evaluations) == {"vlsi", "teacher", "backbone"}
    with pytest.raises(ConfigError, match="digits has no reinforcement that is up to date: run `vlsi run"):
        Made.find(None, [ALONE, "reinforcement.schedule.steps=5"]).need("reinforcement")


def test_a_run_has_what_it_made_whatever_came_after(run: Run) -> None:
    run(ALONE)
    first = Session.open([ALONE]).artifacts()["reinforcement"]
    run(ALONE, "reinforcement.schedule.steps=5")
    made = Made.find("digits~1", [])
    assert made.need("reinforcement").manifest == first.manifest
    maker = made.maker(first)
    assert maker is not None
    assert made.experiment == maker.experiment == "digits"
    assert [step.stage for step in made.lineage(first).steps][-1] == "reinforcement"


def test_what_was_deleted_is_named(run: Run) -> None:
    run(ALONE)
    place = Session.open([ALONE]).artifacts()["reinforcement"].place
    (Path(str(place)) / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="did not make it, or it was deleted"):
        Made.find("digits", []).need("reinforcement")
