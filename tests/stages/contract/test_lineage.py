"""Lineage: what stands upstream of an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.contract import Artifact, open_artifact
from stages.contract.artifact import Manifest, commit, prepare_work
from stages.contract.lineage import Source, trace

HUB = "Qwen/Qwen2-VL-2B-Instruct"


def make(store: Path, stage: str, fingerprint: str, inputs: dict[str, tuple[str, str]]) -> Artifact:
    """Commit an artifact whose inputs are given as place and digest."""
    place = store / stage / fingerprint
    work = prepare_work(place, fresh=False, identity=fingerprint)
    digests = {name: digest for name, (_, digest) in inputs.items()}
    identity = {"stage": stage, "version": 1, "settings": {"seed": 1}, "inputs": digests}
    places = {name: where for name, (where, _) in inputs.items()}
    described: dict[str, Any] = {"stage": stage, "fingerprint": fingerprint, "identity": identity, "inputs": places}
    commit(work, place, Manifest.of_folder(work, summary={}, started=0.0, **described))
    artifact = open_artifact(place)
    assert artifact is not None
    return artifact


@pytest.fixture
def chain(tmp_path: Path) -> Artifact:
    store = tmp_path / "store"
    samples = ("/data/train.jsonl", "5a5a")
    student = (f"{HUB}@abc", "id")
    capture = make(store, "capture", "c1", {"teacher": ("/models/large", "7e7e"), "samples": samples})
    verbalization = make(
        store, "verbalization", "e1", {"capture": (str(capture.place), "c1"), "student": student, "samples": samples}
    )
    interaction = make(
        store,
        "interaction",
        "11",
        {"student": student, "samples": samples, "verbalization": (str(verbalization.place), "e1")},
    )
    return make(store, "reinforcement", "f1", {"student": (str(interaction.place), "11"), "samples": samples})


def test_steps_come_in_the_order_in_which_they_were_made(chain: Artifact, tmp_path: Path) -> None:
    lineage = trace(chain.manifest, tmp_path / "store")
    assert [step.stage for step in lineage.steps] == ["capture", "verbalization", "interaction", "reinforcement"]
    assert [step.fingerprint for step in lineage.steps] == ["c1", "e1", "11", "f1"]
    assert lineage.steps[0].settings == {"seed": 1}


def test_sources_are_what_came_from_outside(chain: Artifact, tmp_path: Path) -> None:
    sources = trace(chain.manifest, tmp_path / "store").sources
    assert sources["teacher"] == Source("/models/large", "7e7e")
    assert {name: source.name for name, source in sources.items()} == {
        "teacher": "large",
        "student": f"{HUB}@abc",
        "samples": "train.jsonl",
    }
    assert Source("s3://bucket/models/large", "").name == "large"


def test_a_store_that_was_moved_still_tells(chain: Artifact, tmp_path: Path) -> None:
    before = trace(chain.manifest, tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = open_artifact(tmp_path / "moved" / "reinforcement" / "f1")
    assert moved is not None
    assert trace(moved.manifest, tmp_path / "moved") == before


def test_a_job_written_by_hand_has_no_digests(tmp_path: Path) -> None:
    manifest = json.loads((make(tmp_path, "capture", "c1", {}).place / "manifest.json").read_text())
    by_hand = Manifest.model_validate({**manifest, "identity": {}, "inputs": {"teacher": "/models/large"}})
    lineage = trace(by_hand, tmp_path)
    assert lineage.sources == {"teacher": Source("/models/large", "")}
    assert lineage.steps[0].settings == {}
