"""The loop: accumulation, resuming, and what stops it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from torch import nn

from stages.contract import StageError, read_journal
from stages.contract.settings import Preprocessing, Schedule
from stages.data.encoding import Batch, Encoder
from stages.data.sample import Sample, read_samples
from stages.training.loop import Loop
from stages.training.objective import Loss, Objective
from tests.stages import tiny

SAME_UPDATE_TOLERANCE = 1e-5


class Unigrams(Objective):
    """Learns how often each token occurs, with a random draw in every micro-batch."""

    def __init__(self, samples: list[Sample], encoder: Encoder) -> None:
        super().__init__()
        self.samples, self.encoder, self.preprocessing = samples, encoder, Preprocessing(max_bad_fraction=0.2)
        self.generator = torch.Generator().manual_seed(0)
        self.logits = nn.Parameter(torch.zeros(encoder.real_vocabulary))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.poison: str | None = None

    def forward(self, batch: Batch) -> Loss:
        losses = -self.logits.log_softmax(0)[batch.labels]
        total = losses.sum() * (float("nan") if self.poison in batch.sample_ids else 1.0)
        draw = torch.rand(1, generator=self.generator).item()
        return Loss(total, {"twice": 2 * losses.detach().sum()}, {"draw": draw})

    def save(self, work: Path) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return read_samples(tiny.save_samples(tmp_path_factory.mktemp("data")))[0]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tiny.build_processor(tiny.CORPUS), Preprocessing())


@pytest.fixture(autouse=True)
def checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Checkpoints go to a folder, as Ray Train would keep them."""
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


def schedule(**changes: Any) -> Schedule:
    return Schedule(
        **{"steps": 6, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 0.1, "checkpoint_every_steps": 2}
        | changes
    )


def trained(samples: list[Sample], encoder: Encoder, plan: Schedule, work: Path) -> torch.Tensor:
    objective = Unigrams(samples, encoder)
    work.mkdir(exist_ok=True)
    Loop(objective, plan, work).run()
    return objective.logits.detach().clone()


def test_accumulation_gives_the_update_of_the_whole_batch(
    samples: list[Sample], encoder: Encoder, tmp_path: Path, checkpoints: Path
) -> None:
    whole = trained(samples, encoder, schedule(checkpoint_every_steps=99), tmp_path / "whole")
    for kept in checkpoints.iterdir():
        kept.rename(tmp_path / kept.name)
    pieces = trained(samples, encoder, schedule(micro_batch_size=1, checkpoint_every_steps=99), tmp_path / "pieces")
    torch.testing.assert_close(whole, pieces, rtol=SAME_UPDATE_TOLERANCE, atol=SAME_UPDATE_TOLERANCE)
    lines = [read_journal(tmp_path / name) for name in ("whole", "pieces")]
    for one, other in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=SAME_UPDATE_TOLERANCE)
        assert one["twice"] == pytest.approx(2 * one["loss"], rel=SAME_UPDATE_TOLERANCE)
        assert len(other["draw"]) == 4


def test_a_stopped_run_goes_on_bit_for_bit(
    samples: list[Sample], encoder: Encoder, tmp_path: Path, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns red if the order, a draw, the optimizer or the schedule restarts instead of going on."""
    straight = trained(samples, encoder, schedule(), tmp_path / "straight")
    for kept in checkpoints.iterdir():
        kept.rename(tmp_path / kept.name)

    class Killed(Exception):
        pass

    step = Loop._step

    def dies_at_five(self: Loop, number: int) -> dict[str, Any]:
        if number == 5:
            raise Killed
        return step(self, number)

    monkeypatch.setattr(Loop, "_step", dies_at_five)
    with pytest.raises(Killed):
        trained(samples, encoder, schedule(), tmp_path / "stopped")
    assert [line["step"] for line in read_journal(tmp_path / "stopped")] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(Loop, "_step", step)
    resumed = trained(samples, encoder, schedule(), tmp_path / "stopped")
    assert torch.equal(straight, resumed)
    one, other = (read_journal(tmp_path / name) for name in ("straight", "stopped"))
    assert [(line["step"], line["loss"], line["draw"]) for line in one] == [
        (line["step"], line["loss"], line["draw"]) for line in other
    ]


def test_a_loss_that_is_not_finite_stops_with_step_and_samples(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    objective = Unigrams(samples, encoder)
    objective.poison = "sample-3"
    with pytest.raises(StageError, match=r"step \d: the loss is not finite .*sample-3"):
        Loop(objective, schedule(), tmp_path).run()
    assert torch.isfinite(objective.logits).all()


def test_bad_samples_are_left_out_and_named_until_they_are_too_many(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    broken = [Sample(s.id, (tmp_path / "gone.png",), s.messages, s.task, s.line) for s in samples]
    one_bad = [broken[0], *samples[1:]]
    fresh = Encoder(encoder.processor, Preprocessing(), memory_bytes=0)
    bad = Loop(Unigrams(one_bad, fresh), schedule(), tmp_path).run()
    assert [line.id for line in bad] == [samples[0].id]
    many_bad = [*broken[:5], *samples[5:]]
    with pytest.raises(StageError, match="preprocessing.max_bad_fraction allows 2"):
        Loop(Unigrams(many_bad, fresh), schedule(steps=9), tmp_path).run()


def test_frozen_parameters_are_neither_trained_nor_checkpointed(
    samples: list[Sample], encoder: Encoder, tmp_path: Path, checkpoints: Path
) -> None:
    trained(samples, encoder, schedule(weight_decay=0.5), tmp_path / "run")
    state = torch.load(sorted(checkpoints.iterdir())[-1] / "state.pt", weights_only=True)
    assert set(state["trained"]) == {"logits"}
