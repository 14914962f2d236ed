"""One step of every loss: against dense float64, cut into micro-batches, and dealt to two workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from stages.contract import Job
from stages.contract.files import TEACHER_VERBALIZERS_FILE
from stages.data.encoding import Batch, collate
from stages.training.order import Order
from tests.stages.test_chain import FLOAT32, Chain, start_chain
from tests.stages.tiny import save_qwen2vl
from tests.stages.training import steps

SAME_UPDATE = 1e-5
"""Relative distance of two float32 gradients of the same global batch, whole vector against whole vector."""
FLOAT64 = 2e-5
"""Relative distance of a float32 gradient from the dense float64 one: a forward and a backward pass of 4 blocks."""
MATCHES = (0, 1)
"""`uniform` with 2 student and 3 teacher target layers; it depends on no KL, so every way to cut a batch agrees."""
SCHEDULE = {"steps": 1, "batch_size": 12, "max_gradient_norm": None}
LORA = {"rank": 4, "alpha": 8}
LOSSES = {
    "kl-kl": {"intermediate": "kl", "last": "kl"},
    "ce-ce": {"intermediate": "ce", "last": "ce"},
    "kl-none": {"intermediate": "kl", "last": "none"},
    "none-kl": {"intermediate": "none", "last": "kl"},
    "feature-l2-kl": {"intermediate": "feature-l2", "last": "kl"},
}
CASES = {
    "verbalization": ("verbalization", {}),
    "reinforcement": ("reinforcement", {}),
    "reinforcement-lora": ("reinforcement", {"lora": LORA}),
    "reinforcement-tied": ("reinforcement", {}),
    **{f"interaction-{name}": ("interaction", {"losses": losses}) for name, losses in LOSSES.items()},
    "interaction-kl-kl-lora": ("interaction", {"losses": LOSSES["kl-kl"], "lora": LORA}),
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    chain = start_chain(tmp_path_factory.mktemp("parity"), "qwen2_vl")
    hidden = chain.run("precompute", name="hidden", model=FLOAT32, codec="hidden", dtype="float32")
    chain.places["hidden"] = hidden
    chain.places["tied"] = save_qwen2vl(chain.root / "tied", width=16, layers=4, pad_rows=2, seed=1, tied=True)
    return chain


def make_job(chain: Chain, case: str, resources: dict[str, Any] | None = None, **schedule: Any) -> Job:
    stage, settings = CASES[case]
    inputs = {
        "verbalization": ("capture", "student", "samples"),
        "reinforcement": ("student", "samples"),
        "interaction": ("student", "samples", "verbalization", "precompute"),
    }[stage]
    places = dict(chain.places)
    if "feature" in case:
        places["precompute"] = places["hidden"]
    if "tied" in case:
        places["student"] = places["tied"]
    matching = {"matching": {"strategy": "uniform"}} if stage == "interaction" else {}
    target = {"target_layers": [0, 2]} if stage == "verbalization" else {}
    return Job(
        stage=stage,
        settings={"model": FLOAT32, "schedule": SCHEDULE | schedule, **matching, **target, **settings},
        inputs={name: str(places[name]) for name in inputs},
        output=str(chain.root / "unused"),
        resources=resources or {"workers": 0},
    )


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of two gradients as whole vectors, relative to the second."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    difference = sum(((one[name].double() - other[name].double()) ** 2).sum() for name in other)
    return float((difference / sum((value.double() ** 2).sum() for value in other.values())).sqrt())


@pytest.fixture(scope="module")
def whole(chain: Chain) -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    """Every case in one micro-batch of one worker."""
    return {case: steps.take_step(make_job(chain, case), chain.root / "whole" / case) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_four_micro_batches_give_the_update_of_one(chain: Chain, whole: dict, case: str) -> None:
    """Red if a loss is averaged over micro-batches instead of tokens: their lengths differ."""
    job = make_job(chain, case, micro_batch_size=3)
    gradients, line = steps.take_step(job, chain.root / "pieces" / case)
    assert line["micro_batches"] == 4
    found = distance(gradients, whole[case][0])
    assert found < SAME_UPDATE, found
    assert line["loss"] == pytest.approx(whole[case][1]["loss"], rel=SAME_UPDATE)


@pytest.fixture(scope="module")
def workers(chain: Chain) -> Path:
    """Every case on two workers with a copy each, and with a share each; LoRA and full, all in one process group."""
    cases = {
        f"{kind}-{case}": make_job(chain, case, {"workers": 2, "parallelism": kind}, micro_batch_size=size)
        for kind, size in (("ddp", None), ("fsdp", 2))
        for case in CASES
    }
    cases["ddp-sync"] = make_job(chain, "interaction-kl-kl", {"workers": 2})
    sync = {"matching": {"sync": True, "strategy": "adaptive"}}
    cases["ddp-sync"] = _with_settings(cases["ddp-sync"], sync)
    folder = chain.root / "two"
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps({name: job.model_dump(mode="json") for name, job in cases.items()}))
    command = [sys.executable, "-m", "tests.stages.training.steps", str(folder / "cases.json"), str(folder)]
    both = [
        subprocess.Popen(
            [*command, str(rank), "2"],
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    assert all(process.returncode == 0 for process in both), outputs[0][-3000:] + outputs[1][-3000:]
    return folder


def _with_settings(job: Job, settings: dict[str, Any]) -> Job:
    data = job.model_dump(mode="json")
    return Job.model_validate({**data, "settings": data["settings"] | settings})


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", CASES)
def test_two_workers_give_the_update_of_one(workers: Path, whole: dict, case: str, kind: str) -> None:
    """Red if each trains by itself, if gradients are summed where they are averaged, or a token counts twice."""
    gradients, line = torch.load(workers / f"{kind}-{case}.pt", weights_only=True)
    found = distance(gradients, whole[case][0])
    assert found < SAME_UPDATE, found
    assert json.loads(line)["loss"] == pytest.approx(whole[case][1]["loss"], rel=SAME_UPDATE)


def test_a_common_draw_of_two_workers_is_the_draw_of_one(chain: Chain, workers: Path) -> None:
    job = _with_settings(make_job(chain, "interaction-kl-kl"), {"matching": {"sync": True, "strategy": "adaptive"}})
    expected, alone = steps.take_step(job, chain.root / "sync")
    gradients, line = torch.load(workers / "ddp-sync.pt", weights_only=True)
    assert json.loads(line)["matches"] == alone["matches"]
    found = distance(gradients, expected)
    assert found < SAME_UPDATE, found


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_dense_float64_step(chain: Chain, whole: dict, case: str) -> None:
    """Hidden states from transformers' own forward, every log-probability dense, gradients by autograd."""
    job = make_job(chain, case)
    dense = Dense(job, chain)
    loss = dense.loss()
    loss.backward()
    trained = {name: p for name, p in dense.objective.named_parameters() if p.requires_grad and p.grad is not None}
    expected = {name: parameter.grad for name, parameter in trained.items()}
    gradients, line = whole[case]
    found = distance(gradients, expected)
    assert found < FLOAT64, found
    assert line["loss"] == pytest.approx(loss.item(), rel=SAME_UPDATE)


class Dense:
    """The step's loss in float64, from METHOD's formulas."""

    def __init__(self, job: Job, chain: Chain) -> None:
        self.stage, self.settings = job.stage, job.settings
        self.objective: Any = steps.build(job)
        places = Order(len(self.objective.samples), job.settings.schedule).samples_of(0)
        encoder = self.objective.encoder
        self.batch: Batch = collate([encoder.encode(self.objective.samples[i]) for i in places], encoder.pad_id)
        self.student: nn.Module = self.objective._student.model.double()
        self.objective.double()
        self.vocabulary = self.objective.encoder.real_vocabulary
        self.teacher = AutoModelForImageTextToText.from_pretrained(chain.places["teacher"], dtype=torch.float64)
        self.verbalization = chain.places["verbalization"]

    def loss(self) -> Tensor:
        """Mean over response tokens."""
        states, last, head = self._states(self.student)
        if self.stage == "reinforcement":
            return self._cross_entropy(self._log_p(last, head)).mean()
        if self.stage == "verbalization":
            with torch.no_grad():
                taught, _, teacher_head = self._states(self.teacher)
            said = self._said(
                taught, (0, 1, 3), self.teacher, self.objective.teacher_verbalizers.state_dict(keep_vars=True)
            )
            own = self._said(
                states, (0, 2), self.student, self.objective.student_verbalizers.state_dict(keep_vars=True)
            )
            layers = [self._log_p(x, teacher_head) for x in said] + [self._log_p(x, head) for x in own]
            return sum(self._cross_entropy(log_p).mean() for log_p in layers)
        return self._interaction(states, last, head)

    def _interaction(self, states: tuple[Tensor, ...], last: Tensor, head: Tensor) -> Tensor:
        losses = self.settings.losses
        with torch.no_grad():
            taught, teacher_last, teacher_head = self._states(self.teacher)
            weights = {k: v.double() for k, v in load_file(self.verbalization / TEACHER_VERBALIZERS_FILE).items()}
            taught_said = self._said(taught, (0, 1, 3), self.teacher, weights)
        total = torch.zeros((), dtype=torch.float64)
        if losses.intermediate != "none":
            said = self._said(states, (0, 2), self.student, self.objective.verbalizers.state_dict(keep_vars=True))
            for i, (x, match) in enumerate(zip(said, MATCHES, strict=True)):
                if losses.intermediate == "ce":
                    total = total + self._cross_entropy(self._log_p(x, head)).mean()
                elif losses.intermediate == "kl":
                    total = total + self._kl(taught_said[match], teacher_head, x, head)
                else:
                    projected = x @ self.objective.projections[i].weight.T
                    total = total + (projected - taught_said[match]).square().mean(dim=1).mean()
        if losses.last == "ce":
            total = total + self._cross_entropy(self._log_p(last, head)).mean()
        elif losses.last == "kl":
            total = total + self._kl(teacher_last, teacher_head, last, head)
        return total

    def _states(self, model: Any) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Block outputs and the head's input at response positions, and the head's real rows."""
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in self.batch.inputs.items()}
        with _forward_of(model) as blocks:
            output = model.model(**inputs, use_cache=False)
        at = (self.batch.rows, self.batch.positions)
        rows = model.get_output_embeddings().weight[: self.vocabulary]
        frozen = rows if self.stage == "reinforcement" else rows.detach()
        return tuple(block[at] for block in blocks), output.last_hidden_state[at], frozen

    def _said(self, states: Any, blocks: tuple[int, ...], model: Any, weights: dict[str, Tensor]) -> list[Tensor]:
        """`stable`: normalised, gated, added to the state, through the model's final norm (METHOD §1)."""
        said = []
        for i, block in enumerate(blocks):
            h = states[block]
            gate, up, down, norm = (weights[f"ffns.{i}.{part}.weight"] for part in ("gate", "up", "down", "input_norm"))
            x = h / (h.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * norm
            inner = x @ gate.T
            h = h + (inner * torch.sigmoid(inner) * (x @ up.T)) @ down.T
            final = model.model.language_model.norm
            rms = (h.square().mean(dim=1, keepdim=True) + final.variance_epsilon).sqrt()
            said.append(h / rms * final.weight.double())
        return said

    def _log_p(self, x: Tensor, head: Tensor) -> Tensor:
        return (x @ head.double().T).log_softmax(dim=1)

    def _cross_entropy(self, log_p: Tensor) -> Tensor:
        return -log_p.gather(1, self.batch.labels[:, None])[:, 0]

    def _kl(self, x_teacher: Tensor, teacher_head: Tensor, x: Tensor, head: Tensor) -> Tensor:
        log_q = self._log_p(x_teacher, teacher_head)
        return (log_q.exp() * (log_q - self._log_p(x, head))).sum(dim=1).mean()


class _forward_of:
    """Keeps what every decoder block of a model gives."""

    def __init__(self, model: Any) -> None:
        self._blocks = model.model.language_model.layers

    def __enter__(self) -> list[Tensor]:
        outputs: list[Tensor] = []
        keep = lambda _module, _inputs, output: outputs.append(output[0] if isinstance(output, tuple) else output)  # noqa: E731
        self._handles = [block.register_forward_hook(keep) for block in self._blocks]
        return outputs

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def test_the_reference_sees_a_doubled_token(chain: Chain, whole: dict) -> None:
    """The control: a gradient that counts one token twice is far outside the bounds above."""
    dense = Dense(make_job(chain, "reinforcement"), chain)
    rows, positions, labels = dense.batch.rows, dense.batch.positions, dense.batch.labels
    again = [torch.cat([part, part[:1]]) for part in (rows, positions, labels)]
    dense.batch = replace(dense.batch, rows=again[0], positions=again[1], labels=again[2])
    dense.loss().backward()
    doubled = {name: p.grad for name, p in dense.objective.named_parameters() if p.grad is not None}
    found = distance(whole["reinforcement"][0], doubled)
    assert found > 100 * FLOAT64, found
