"""The loop: accumulation, resuming, what it measures, and what stops it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.contract import Resources, StageError, read_journal
from stages.contract.files import NOTICE_FILE
from stages.contract.settings import Preprocessing, Schedule
from stages.data.encoding import Batch, Encoder
from stages.data.sample import Sample
from stages.training.checkpoint import Checkpoints
from stages.training.loader import StepData
from stages.training.loop import Loop
from stages.training.objective import Loss
from tests.stages.training.objectives import Unigrams

SAME_UPDATE_TOLERANCE = 1e-5
"""Relative: sums of a few float32 numbers in another order."""


def schedule(**changes: Any) -> Schedule:
    return Schedule(**{"steps": 6, "batch_size": 4, "learning_rate": 0.1, "checkpoint_every_steps": 2} | changes)


def trained(samples: list[Sample], encoder: Encoder, plan: Schedule, work: Path) -> torch.Tensor:
    objective = Unigrams(samples, encoder, plan)
    work.mkdir(exist_ok=True)
    Loop(objective, work, Resources()).run()
    return objective.logits.detach().clone()


def newest_state(work: Path) -> dict[str, Any]:
    _, state, _ = Checkpoints(work).newest()
    assert state is not None
    return state


def numbers(work: Path) -> list[dict[str, Any]]:
    """A journal without what the clock says."""
    timed = ("time", "samples_per_second", "tokens_per_second", "seconds_waiting", "memory_gb")
    return [{key: value for key, value in line.items() if key not in timed} for line in read_journal(work)]


def test_accumulation_gives_the_update_of_the_whole_batch(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    whole = trained(samples, encoder, schedule(checkpoint_every_steps=99), tmp_path / "whole")
    pieces = trained(samples, encoder, schedule(micro_batch_size=1, checkpoint_every_steps=99), tmp_path / "pieces")
    torch.testing.assert_close(whole, pieces, rtol=SAME_UPDATE_TOLERANCE, atol=SAME_UPDATE_TOLERANCE)
    lines = [read_journal(tmp_path / name) for name in ("whole", "pieces")]
    for one, other in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=SAME_UPDATE_TOLERANCE)
        assert one["twice"] == pytest.approx(2 * one["loss"], rel=SAME_UPDATE_TOLERANCE)
        assert (one["micro_batches"], other["micro_batches"]) == (1, 4)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=SAME_UPDATE_TOLERANCE)


def test_progress_goes_from_0_in_the_first_step_to_1_in_the_last(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    trained(samples, encoder, schedule(), tmp_path / "work")
    assert [line["progress"] for line in read_journal(tmp_path / "work")] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_a_stopped_run_goes_on_bit_for_bit(
    samples: list[Sample], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns red if the order, a draw, dropout, the optimizer or the schedule restarts instead of going on."""
    straight = trained(samples, encoder, schedule(), tmp_path / "straight")

    class Killed(Exception):
        pass

    step = Loop._step

    def dies_at_five(self: Loop, number: int, data: StepData) -> dict[str, Any]:
        if number == 5:
            raise Killed
        return step(self, number, data)

    monkeypatch.setattr(Loop, "_step", dies_at_five)
    with pytest.raises(Killed):
        trained(samples, encoder, schedule(), tmp_path / "stopped")
    assert [line["step"] for line in read_journal(tmp_path / "stopped")] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(Loop, "_step", step)
    resumed = trained(samples, encoder, schedule(), tmp_path / "stopped")
    assert torch.equal(straight, resumed)
    assert numbers(tmp_path / "straight") == numbers(tmp_path / "stopped")
    one, other = (newest_state(tmp_path / name) for name in ("straight", "stopped"))
    for name, state in one["optimizer"]["state"].items():
        assert all(torch.equal(value, other["optimizer"]["state"][name][key]) for key, value in state.items())


def test_the_journal_says_what_a_step_did_and_how_fast(samples: list[Sample], encoder: Encoder, tmp_path: Path) -> None:
    trained(samples, encoder, schedule(micro_batch_tokens=60), tmp_path)
    lengths = {sample.id: len(encoder.encode(sample).input_ids) for sample in samples}
    for line in read_journal(tmp_path):
        assert line["samples_per_second"] > 0
        assert line["tokens_per_second"] / line["samples_per_second"] <= max(lengths.values())
        assert 0 <= line["padding"] < 1
        assert 0 <= line["seconds_waiting"] < 60
        assert 0.01 < line["memory_gb"] < 100
        assert line["learning_rate"] > 0


def test_a_loss_that_is_not_finite_stops_with_step_layer_and_samples(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    """Nothing after the last good step is kept, and that is kept."""
    objective = Unigrams(samples, encoder, schedule(steps=9))
    victim = Loop(objective, tmp_path, Resources())._order.samples_of(2)[0]
    objective.poison = samples[victim].id
    expected = rf"step 3: the loss is not finite at layer unigrams for samples {objective.poison}; .*checkpoint is kept"
    with pytest.raises(StageError, match=expected):
        Loop(objective, tmp_path, Resources()).run()
    assert torch.isfinite(objective.logits).all()
    assert newest_state(tmp_path)["step"] == 2


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    objective = Unigrams(samples, encoder, schedule())
    objective.logits.register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(StageError, match=r"step 1: the gradient norm is (nan|inf) though the loss is finite"):
        Loop(objective, tmp_path, Resources()).run()
    assert torch.equal(objective.logits, torch.zeros_like(objective.logits))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 9 GB")]
)
def test_out_of_memory_names_the_settings_to_change(
    samples: list[Sample], encoder: Encoder, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def forward(self: Unigrams, batch: Batch) -> Loss:
        calls.append(batch)
        raise error

    monkeypatch.setattr(Unigrams, "forward", forward)
    plan = schedule(micro_batch_tokens=777, logits_chunk_mb=5)
    with pytest.raises(StageError) as caught:
        Loop(Unigrams(samples, encoder, plan), tmp_path, Resources()).run()
    for part in ("step 1", "micro_batch_tokens (now 777)", "logits_chunk_mb (now 5)", "checkpointing", "lora", "fsdp"):
        assert part in str(caught.value), part
    assert len(calls) == 1


def test_another_error_is_not_called_out_of_memory(
    samples: list[Sample], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Unigrams, batch: Batch) -> Loss:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Unigrams, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Loop(Unigrams(samples, encoder, schedule()), tmp_path, Resources()).run()


def test_bad_samples_are_left_out_and_named_until_they_are_too_many(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    broken = [Sample(s.id, (tmp_path / "gone.png",), s.messages, s.task, s.line) for s in samples]
    one_bad = [broken[0], *samples[1:]]
    fresh = Encoder(encoder.processor, Preprocessing(), memory_bytes=0)
    outcome = Loop(Unigrams(one_bad, fresh, schedule()), tmp_path, Resources()).run()
    assert [line.id for line in outcome.bad] == [samples[0].id]
    many_bad = [*broken[:5], *samples[5:]]
    (tmp_path / "many").mkdir()
    with pytest.raises(StageError, match="preprocessing.max_bad_fraction allows 2"):
        Loop(Unigrams(many_bad, fresh, schedule(steps=9)), tmp_path / "many", Resources()).run()


def test_a_resumed_run_remembers_which_samples_could_not_be_used(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    """Stopped after the last of three steps, which used every sample once; nothing is left to see again."""
    one_bad = [Sample(samples[0].id, (tmp_path / "gone.png",), samples[0].messages, None, 1), *samples[1:]]
    fresh = Encoder(encoder.processor, Preprocessing(), memory_bytes=0)
    first, second = (
        Loop(Unigrams(one_bad, fresh, schedule(steps=3)), tmp_path, Resources()).run().bad for _ in range(2)
    )
    assert [line.id for line in first] == [samples[0].id]
    assert second == first


def test_the_stages_log_is_told_of_a_damaged_checkpoint_and_the_result_is_the_same(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    straight = trained(samples, encoder, schedule(), tmp_path / "work")
    folder = tmp_path / "work" / "scratch" / "checkpoints"
    (folder / "00000006.pt").write_bytes(b"torn")
    assert torch.equal(trained(samples, encoder, schedule(), tmp_path / "work"), straight)
    notice = (tmp_path / "work" / "scratch" / NOTICE_FILE).read_text()
    assert notice == f"the checkpoint of step 6, {folder}/00000006.pt, is not what was written; going on after step 4"
    assert [line["step"] for line in read_journal(tmp_path / "work")] == list(range(1, 7))


def test_a_step_without_a_usable_sample_stops_and_says_why(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    objective = Unigrams(
        [Sample(samples[0].id, (tmp_path / "gone.png",), samples[0].messages)], encoder, schedule(batch_size=1)
    )
    objective.preprocessing = Preprocessing(max_bad_fraction=1.0)
    objective.encoder = Encoder(encoder.processor, Preprocessing(), memory_bytes=0)
    with pytest.raises(StageError, match=r"step 1: none of a worker's samples can be used; .*gone.png cannot be read"):
        Loop(objective, tmp_path, Resources()).run()


def test_frozen_parameters_are_neither_trained_nor_checkpointed(
    samples: list[Sample], encoder: Encoder, tmp_path: Path
) -> None:
    objective = Unigrams(samples, encoder, schedule(weight_decay=0.5))
    Loop(objective, tmp_path, Resources()).run()
    assert set(newest_state(tmp_path)["trained"]) == {"logits"}
    assert torch.equal(objective.frozen, torch.ones(3))
