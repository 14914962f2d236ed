"""Losses against a head: values and gradients equal the dense float64 mathematics of METHOD.md, in little memory."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stages.losses import divergence as module
from stages.losses.divergence import (
    Head,
    Target,
    divergence,
    float32_product,
    label_target,
    moment_target,
    partition,
    prices,
    sum_of_halves,
    trained_cross_entropy,
)
from tests import reference

FLOAT32_TOLERANCE = 1e-5
"""Relative, worst token. The sums are over 150 words; float32 rounds each at 6e-8. Measured: at most 8e-7."""
ROUNDING_NATS = 1e-5
"""Absolute, where the exact value is 0: the difference of two numbers near 10 in float32."""

REAL, WIDTH, TEACHER_WIDTH, TOKENS, LAYERS = 150, 24, 40, 13, 3
PADDING = 9
POISON = 1e3
ENOUGH = 2**20
"""Bytes for all logits of these sizes in one chunk."""


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def make_head(width: int, *, seed: int, bias: bool = False, rows: int = REAL) -> Head:
    return Head(random(rows, width, seed=seed, scale=2 * width**-0.5), random(rows, seed=seed + 1) if bias else None)


def said(head: Head, x: Tensor, real: int | None = None) -> reference.Array:
    """[..., V] log-probabilities in float64 of the very numbers given."""
    bias = None if head.bias is None else head.bias.detach().double()
    return reference.log_probabilities(x.detach().double(), head.weight.detach().double(), bias, real)


def value_and_gradient(
    x: Tensor, head: Head, target: Target, *, chunk_bytes: int = module.CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """[..., N] losses and [..., N, D] gradients of their sum."""
    x = x.clone().requires_grad_()
    losses = divergence(x, partition(x, head, chunk_bytes=chunk_bytes), target)
    losses.sum().backward()
    return losses.detach(), x.grad


def worst(ours: Tensor, exact: reference.Array | Tensor, *, vectors: bool = False) -> float:
    """Largest relative error: of a number, or of a vector along the last axis."""
    ours, exact = ours.detach().double().numpy(), np.asarray(exact, np.float64)
    assert ours.shape == exact.shape, f"{ours.shape} against {exact.shape}"
    shape = (-1, exact.shape[-1]) if vectors else (-1,)
    return reference.error_of_worst_token(ours.reshape(shape), exact.reshape(shape))


def assert_parity(
    actual: tuple[Tensor, Tensor],
    values: reference.Array | Tensor,
    gradients: reference.Array | Tensor,
    tolerance: float = FLOAT32_TOLERANCE,
) -> None:
    errors = {"value": worst(actual[0], values), "gradient": worst(actual[1], gradients, vectors=True)}
    assert max(errors.values()) < tolerance, f"relative errors {errors}, allowed {tolerance:.1e}"


def stacked(targets: list[Target]) -> Target:
    moments, entropies, biases = zip(*targets, strict=True)
    return Target(torch.stack(moments), torch.stack(entropies), None if biases[0] is None else torch.stack(biases))


@pytest.fixture(
    params=[(REAL, TOKENS), (64, TOKENS), (64, 4), (7, 5), (1, 1), (4 * REAL, 4 * TOKENS)],
    ids=lambda cut: f"{cut[0]} words, {cut[1]} tokens",
)
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A budget, with vocabulary blocks and chunks of tokens that are whole, short at the end, single, or too large."""
    words, tokens = request.param
    monkeypatch.setattr(module, "VOCABULARY_BLOCK", words)
    return 4 * words * tokens


class TestParity:
    """Small heads in float32 against the float64 reference, however the pass is cut."""

    @pytest.mark.parametrize("bias", [False, True])
    def test_cross_entropy(self, bias: bool, chunk_bytes: int) -> None:
        """Red if a label's row, its bias or the gradient's sign is wrong."""
        head, x = make_head(WIDTH, seed=0, bias=bias), random(TOKENS, WIDTH, seed=2)
        labels = torch.arange(TOKENS) * 11
        log_q = said(head, x)
        assert_parity(
            value_and_gradient(x, head, label_target(labels, head), chunk_bytes=chunk_bytes),
            reference.cross_entropy(log_q, labels),
            reference.cross_entropy_gradient(log_q, labels, head.weight),
        )

    @pytest.mark.parametrize("student_bias", [False, True])
    @pytest.mark.parametrize("teacher_bias", [False, True])
    def test_kl_to_a_teacher_of_another_width(self, teacher_bias: bool, student_bias: bool, chunk_bytes: int) -> None:
        """Red if KL is reversed, a temperature slips in, a bias is left out of value or gradient, or a block
        or a chunk is left out, read twice or written elsewhere."""
        teacher = make_head(TEACHER_WIDTH, seed=0, bias=teacher_bias)
        student = make_head(WIDTH, seed=2, bias=student_bias)
        x_teacher, x = random(TOKENS, TEACHER_WIDTH, seed=4), random(TOKENS, WIDTH, seed=5)
        log_p, log_q = said(teacher, x_teacher), said(student, x)
        target = moment_target(x_teacher, teacher, student, chunk_bytes=chunk_bytes)
        assert_parity(
            value_and_gradient(x, student, target, chunk_bytes=chunk_bytes),
            reference.kl_divergence(log_p, log_q),
            reference.kl_gradient(log_p, log_q, student.weight),
        )

    @pytest.mark.parametrize("student_bias", [False, True])
    def test_a_target_is_the_mean_row_the_mean_bias_and_the_entropy(self, student_bias: bool, chunk_bytes: int) -> None:
        """Each part alone, so that two wrong ones cannot make up for each other in the KL."""
        teacher, student = make_head(TEACHER_WIDTH, seed=0, bias=True), make_head(WIDTH, seed=2, bias=student_bias)
        x_teacher = random(TOKENS, TEACHER_WIDTH, seed=4)
        target = moment_target(x_teacher, teacher, student, chunk_bytes=chunk_bytes)
        log_p = said(teacher, x_teacher)
        errors = {
            "moment": worst(target.moment, np.exp(log_p) @ student.weight.double().numpy(), vectors=True),
            "entropy": worst(target.entropy, reference.entropy(log_p)),
        }
        assert (target.bias_mean is not None) == student_bias
        if target.bias_mean is not None and student.bias is not None:
            of_all = np.exp(log_p) @ student.bias.double().numpy()
            errors["bias"] = worst(target.bias_mean[None], of_all[None], vectors=True)
        assert max(errors.values()) < FLOAT32_TOLERANCE, f"relative errors {errors}"

    @pytest.mark.parametrize("bias", [False, True])
    def test_a_partition_of_all_layers_is_that_of_each(self, bias: bool, chunk_bytes: int) -> None:
        """Logsumexp and mean row of [3, 13] inputs; chunks run over the end of a layer. Red if layers are mixed."""
        head, x = make_head(WIDTH, seed=0, bias=bias), random(LAYERS, TOKENS, WIDTH, seed=2)
        ours = partition(x, head, chunk_bytes=chunk_bytes)
        logits = x.double().numpy() @ head.weight.double().numpy().T
        if head.bias is not None:
            logits += head.bias.double().numpy()
        errors = {
            "log_z": worst(ours.log_z, logits[..., 0] - reference.log_softmax(logits)[..., 0]),
            "mean row": worst(ours.mean_row, np.exp(said(head, x)) @ head.weight.double().numpy(), vectors=True),
        }
        assert max(errors.values()) < FLOAT32_TOLERANCE, f"relative errors {errors}"

    def test_layers_against_one_target_each(self) -> None:
        """[3, 13] losses. Red if a layer is compared with another layer's target."""
        teacher, student = make_head(TEACHER_WIDTH, seed=0), make_head(WIDTH, seed=2, bias=True)
        x_teacher, x = random(LAYERS, TOKENS, TEACHER_WIDTH, seed=4), random(LAYERS, TOKENS, WIDTH, seed=5)
        log_p, log_q = said(teacher, x_teacher), said(student, x)
        assert_parity(
            value_and_gradient(x, student, stacked([moment_target(t, teacher, student) for t in x_teacher])),
            reference.kl_divergence(log_p, log_q),
            reference.kl_gradient(log_p, log_q, student.weight),
        )

    def test_layers_against_one_target_for_all(self) -> None:
        """Verbalization: labels of [13], inputs of [3, 13]. Red if broadcasting repeats tokens or sums layers."""
        head, x = make_head(WIDTH, seed=0, bias=True), random(LAYERS, TOKENS, WIDTH, seed=2)
        labels = torch.arange(TOKENS) * 11
        of_layers = [said(head, layer) for layer in x]
        assert_parity(
            value_and_gradient(x, head, label_target(labels, head)),
            np.stack([reference.cross_entropy(log_q, labels) for log_q in of_layers]),
            np.stack([reference.cross_entropy_gradient(log_q, labels, head.weight) for log_q in of_layers]),
        )

    @pytest.mark.parametrize("bias", [False, True])
    def test_prices_of_every_layer_against_every_target(self, bias: bool) -> None:
        """Red if student and teacher axes are exchanged, or a bias is left out."""
        teacher, student = make_head(TEACHER_WIDTH, seed=0), make_head(WIDTH, seed=2, bias=bias)
        x_teacher, x = random(5, TOKENS, TEACHER_WIDTH, seed=4), random(LAYERS, TOKENS, WIDTH, seed=5)
        ours = prices(x, partition(x, student), stacked([moment_target(t, teacher, student) for t in x_teacher]))
        exact = reference.kl_divergence(said(teacher, x_teacher)[None], said(student, x)[:, None])
        error = worst(ours, exact)
        assert error < FLOAT32_TOLERANCE, f"relative error {error:.1e}"

    def test_the_final_layers_loss_goes_on_into_the_network(self) -> None:
        """The last-layer KL with a norm and a block below the head: the chain rule reaches their weights.

        Red if the gradient is given per batch instead of per token, or the upstream gradient ignored:
        every token has a weight of its own here.
        """
        teacher, student = make_head(TEACHER_WIDTH, seed=0), make_head(WIDTH, seed=2)
        x_teacher, state = random(TOKENS, TEACHER_WIDTH, seed=4), random(TOKENS, WIDTH, seed=5)
        token_weight = torch.linspace(0.1, 3.0, TOKENS)
        block = nn.Linear(WIDTH, WIDTH)
        x = block(state)
        losses = divergence(x, partition(x, student), moment_target(x_teacher, teacher, student))
        (losses * token_weight).sum().backward()
        log_p, log_q = said(teacher, x_teacher), said(student, x)
        in_x = reference.kl_gradient(log_p, log_q, student.weight) * token_weight.double().numpy()[:, None]
        error = worst(block.weight.grad, in_x.T @ state.double().numpy(), vectors=True)
        assert error < FLOAT32_TOLERANCE, f"relative error {error:.1e}"

    def test_the_head_and_the_teacher_get_no_gradient(self) -> None:
        """Red if a frozen head would be trained through its logsumexp, or the teacher through its moments."""
        head = Head(*(part.requires_grad_() for part in make_head(WIDTH, seed=0, bias=True)))
        x_teacher = random(TOKENS, WIDTH, seed=4).requires_grad_()
        x = random(TOKENS, WIDTH, seed=5).requires_grad_()
        passed = partition(x, head)
        assert not passed.log_z.requires_grad
        assert not passed.mean_row.requires_grad
        divergence(x, passed, moment_target(x_teacher, head, head)).sum().backward()
        assert x.grad is not None
        assert head.weight.grad is None
        assert head.bias.grad is None
        assert x_teacher.grad is None


class TestVocabularies:
    """Padding rows, and heads that do not fit together (METHOD §6)."""

    def test_padding_rows_change_nothing(self) -> None:
        """Heads of one family padded to different sizes, their padding rows poisoned: the same KL, bit for bit.

        Red if a padding row enters a logsumexp, a moment or a renormalisation.
        """

        from stages.models.readout import Readout  # imports transformers, which the processes below do without

        def padded(width: int, rows: int, seed: int, poison: float) -> Readout:
            head = nn.Linear(width, rows)
            clean = make_head(width, seed=seed, bias=True)
            with torch.no_grad():
                head.weight.fill_(poison)
                head.bias.fill_(poison)
                head.weight[:REAL], head.bias[:REAL] = clean.weight, clean.bias
            return Readout(nn.Identity(), head)

        x_teacher, x = random(TOKENS, TEACHER_WIDTH, seed=4), random(TOKENS, WIDTH, seed=5)
        results = []
        for poison in (0.0, POISON):
            teacher = padded(TEACHER_WIDTH, REAL + 7, 0, poison).head_rows(REAL)
            student = padded(WIDTH, REAL + 2, 2, poison).head_rows(REAL)
            results.append(value_and_gradient(x, student, moment_target(x_teacher, teacher, student)))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])

    def test_cutting_the_heads_is_cutting_and_renormalising_the_distributions(self) -> None:
        """METHOD §6 with padding rows that carry probability: about half of it lies on them here.

        Red if the target or the student keeps the mass of padding rows.
        """
        teacher, student = make_head(TEACHER_WIDTH, seed=0, rows=2 * REAL), make_head(WIDTH, seed=2, rows=2 * REAL + 9)
        x_teacher, x = random(TOKENS, TEACHER_WIDTH, seed=4), random(TOKENS, WIDTH, seed=5)
        log_p, log_q = said(teacher, x_teacher, REAL), said(student, x, REAL)
        cut_teacher, cut_student = Head(teacher.weight[:REAL]), Head(student.weight[:REAL])
        assert_parity(
            value_and_gradient(x, cut_student, moment_target(x_teacher, cut_teacher, cut_student)),
            reference.kl_divergence(log_p, log_q),
            reference.kl_gradient(log_p, log_q, student.weight),
        )

    def test_heads_of_different_rows_are_refused(self) -> None:
        with pytest.raises(ValueError, match="teacher's head has 152 real rows, the student's 150; cut both"):
            moment_target(random(3, 8, seed=0), make_head(8, seed=1, rows=152), make_head(6, seed=2, rows=150))


class TestThePass:
    """How often a head is read, and in what pieces."""

    @pytest.mark.parametrize("targets", [1, 5])
    def test_two_products_with_the_head_whatever_the_number_of_targets(
        self, targets: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The floor of DESIGN §2. Red if a target costs a pass, or the backward pass reads the head again."""
        teacher, student = make_head(TEACHER_WIDTH, seed=0), make_head(WIDTH, seed=2, bias=True)
        target = stacked(
            [moment_target(random(TOKENS, TEACHER_WIDTH, seed=s), teacher, student) for s in range(targets)]
        )
        x = random(LAYERS, TOKENS, WIDTH, seed=5).requires_grad_()
        products = []
        monkeypatch.setattr(module, "float32_product", lambda *args: products.append(1) or float32_product(*args))
        passed = partition(x, student)
        prices(x, passed, target)
        one_each = Target(*(part[torch.zeros(LAYERS, dtype=torch.long)] for part in target))
        divergence(x, passed, one_each).sum().backward()
        assert len(products) == 2

    @pytest.mark.parametrize(
        ("budget", "sizes"), [(16_000, [4, 4, 4, 1]), (52_000, [13]), (10**9, [13]), (1, [1] * 13)]
    )
    def test_chunks_fill_the_budget_and_hold_at_least_one_token(self, budget: int, sizes: list[int]) -> None:
        """13 tokens of 1,000 logits, 4,000 bytes each."""
        chunks = module._chunks(13, 1000, budget)
        assert [chunk.stop - chunk.start for chunk in chunks] == sizes
        assert [n for chunk in chunks for n in range(chunk.start, chunk.stop)] == list(range(13))

    @hypothesis_settings(max_examples=60, deadline=None)
    @given(
        st.integers(1, 9),
        st.integers(2, 40),
        st.integers(1, 45),
        st.integers(1, 2000),
        st.booleans(),
        st.integers(0, 99),
    )
    def test_the_budget_and_the_blocks_change_nothing(
        self, tokens: int, words: int, block: int, budget: int, bias: bool, seed: int
    ) -> None:
        """Every loss of this module in any pieces equals the same in one piece."""
        teacher, student = (make_head(6, seed=seed + i, bias=bias, rows=words) for i in (0, 2))
        x_teacher, x = random(tokens, 6, seed=seed + 4), random(tokens, 6, seed=seed + 5)
        labels = torch.arange(tokens) % words

        def results(words_at_a_time: int, chunk_bytes: int) -> list[Tensor]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "VOCABULARY_BLOCK", words_at_a_time)
                target = moment_target(x_teacher, teacher, student, chunk_bytes=chunk_bytes)
                passed = partition(x, student, chunk_bytes=chunk_bytes)
                trained = trained_head_and_gradients(x, student, labels, words, chunk_bytes)
            return [part for part in (*target, *passed, *trained) if part is not None]

        for cut, whole in zip(results(block, budget), results(words, ENOUGH), strict=True):
            difference = (cut - whole).abs().max().item()
            assert difference < ROUNDING_NATS, f"{difference:.1e} apart"


class TestProperties:
    """What holds of every KL and every entropy."""

    @pytest.mark.parametrize("bias", [False, True])
    def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(self, bias: bool) -> None:
        head, x = make_head(WIDTH, seed=0, bias=bias), random(TOKENS, WIDTH, seed=4)
        losses, gradients = value_and_gradient(x, head, moment_target(x, head, head))
        assert losses.abs().max() < ROUNDING_NATS, f"KL {losses.abs().max():.1e} nats"
        assert gradients.abs().max() < ROUNDING_NATS, f"gradient {gradients.abs().max():.1e}"

    @pytest.mark.parametrize("distance", [1e-3, 0.1, 1.0, 10.0])
    def test_kl_is_never_negative_near_a_teacher(self, distance: float) -> None:
        """Red if the entropy's sign or the bias is wrong: then near teachers give negative numbers."""
        head, x_teacher = make_head(WIDTH, seed=0, bias=True), random(200, WIDTH, seed=4)
        x = x_teacher + distance * random(200, WIDTH, seed=5)
        losses, _ = value_and_gradient(x, head, moment_target(x_teacher, head, head))
        assert losses.min() > -ROUNDING_NATS, f"smallest KL {losses.min():.1e} nats"

    @hypothesis_settings(max_examples=80, deadline=None)
    @given(
        st.integers(1, 40), st.integers(1, 8), st.integers(1, 8), st.booleans(), st.floats(0, 3), st.integers(0, 2**16)
    )
    def test_kl_is_never_negative_and_zero_at_equality(
        self, words: int, width: int, teacher_width: int, bias: bool, scale: float, seed: int
    ) -> None:
        """Of any two heads, one word and even distributions included."""
        teacher = make_head(teacher_width, seed=seed, bias=bias, rows=words)
        student = make_head(width, seed=seed + 2, bias=bias, rows=words)
        x_teacher, x = (
            random(5, teacher_width, seed=seed + 4, scale=scale),
            random(5, width, seed=seed + 5, scale=scale),
        )
        losses, _ = value_and_gradient(x, student, moment_target(x_teacher, teacher, student))
        assert losses.min() > -ROUNDING_NATS, f"smallest KL {losses.min():.1e} nats"
        at_equality, slope = value_and_gradient(x, student, moment_target(x, student, student))
        assert at_equality.abs().max() < ROUNDING_NATS, f"KL {at_equality.abs().max():.1e} nats at equality"
        assert slope.abs().max() < ROUNDING_NATS, f"gradient {slope.abs().max():.1e} at equality"

    def test_entropy_lies_between_a_certain_and_an_ignorant_teacher(self) -> None:
        """ln V for a head input of 0, nearly 0 for a huge one, the reference's in between."""
        head = make_head(WIDTH, seed=0)
        x = torch.stack([torch.zeros(WIDTH), random(WIDTH, seed=4), random(WIDTH, seed=4, scale=1e3)])
        ours = moment_target(x, head, head).entropy
        assert ours[0].item() == pytest.approx(np.log(REAL), rel=FLOAT32_TOLERANCE)
        assert ours[1].item() == pytest.approx(reference.entropy(said(head, x))[1], rel=FLOAT32_TOLERANCE)
        assert abs(ours[2].item()) < ROUNDING_NATS
        assert label_target(torch.tensor([3]), head).entropy.tolist() == [0.0]

    def test_the_reference_agrees_with_finite_differences(self) -> None:
        """The oracle itself: its gradients are those of its values. The losses are float32 by design, so that
        `torch.autograd.gradcheck` cannot run on them; parity with this does the same."""
        teacher, student = make_head(6, seed=0, rows=9), make_head(4, seed=2, rows=9, bias=True)
        log_p, labels = said(teacher, random(2, 6, seed=4)), [3, 8]
        x, weight, bias = (part.double().numpy() for part in (random(2, 4, seed=5), *student))

        def kl(x: reference.Array) -> float:
            return reference.kl_divergence(log_p, reference.log_probabilities(x, weight, bias)).sum()

        def ce(x: reference.Array, weight: reference.Array, bias: reference.Array) -> float:
            return reference.cross_entropy(reference.log_probabilities(x, weight, bias), labels).sum()

        log_q = reference.log_probabilities(x, weight, bias)
        pairs = {
            "kl, x": (kl, x, reference.kl_gradient(log_p, log_q, weight)),
            "ce, x": (lambda at: ce(at, weight, bias), x, reference.cross_entropy_gradient(log_q, labels, weight)),
            "ce, weight": (
                lambda at: ce(x, at, bias),
                weight,
                reference.cross_entropy_weight_gradient(log_q, labels, x),
            ),
            "ce, bias": (lambda at: ce(x, weight, at), bias, reference.cross_entropy_bias_gradient(log_q, labels)),
        }
        for name, (function, at, gradient) in pairs.items():
            np.testing.assert_allclose(gradient, numeric_gradient(function, at), rtol=1e-6, atol=1e-9, err_msg=name)


def numeric_gradient(function: Callable[[reference.Array], float], at: reference.Array) -> reference.Array:
    step, gradient = 1e-6, np.zeros_like(at)
    for place in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[place] = step
        gradient[place] = (function(at + shift) - function(at - shift)) / (2 * step)
    return gradient


LARGE_LOGIT = 300.0
"""exp overflows float32 at 88.7."""
LARGE_LOGITS_TOLERANCE = 1e-4
"""Relative. A logit of 300 is known to 3e-5 in float32, and so is its exponential, relatively. Measured 5e-5."""
LARGE_LOGITS_NATS = 1e-4
"""Absolute, of a KL near 0 that is the difference of numbers near 300. Measured 5e-5."""

UNDERFLOW = 1e-30
"""Of a row of the head whose words are all less likely nothing is left in float32."""


def with_large_logits(head: Head, x: Tensor) -> Head:
    """The head scaled so that its largest logit for x is ±300."""
    return Head(head.weight * (LARGE_LOGIT / (x @ head.weight.T).abs().max()), head.bias)


class TestLargeLogits:
    """Logits that overflow exp, and a running maximum that rises from block to block."""

    def test_logits_that_overflow_exp(self, chunk_bytes: int) -> None:
        """Red if the maximum is not taken off before exp, in the teacher's pass or the student's."""
        x_teacher, x = random(TOKENS, TEACHER_WIDTH, seed=4), random(TOKENS, WIDTH, seed=5)
        teacher = with_large_logits(make_head(TEACHER_WIDTH, seed=0), x_teacher)
        student = with_large_logits(make_head(WIDTH, seed=2, bias=True), x)
        log_p, log_q = said(teacher, x_teacher), said(student, x)
        assert_parity(
            value_and_gradient(
                x,
                student,
                moment_target(x_teacher, teacher, student, chunk_bytes=chunk_bytes),
                chunk_bytes=chunk_bytes,
            ),
            reference.kl_divergence(log_p, log_q),
            reference.kl_gradient(log_p, log_q, student.weight),
            LARGE_LOGITS_TOLERANCE,
        )

    def test_a_student_near_its_teacher(self, chunk_bytes: int) -> None:
        """Some tokens are certain, some nearly even. The entropy is as exact as with small logits: red if it is a
        difference of numbers near 300."""
        x_teacher = random(TOKENS, WIDTH, seed=4) * torch.logspace(0, -2, TOKENS)[:, None]
        head = with_large_logits(make_head(WIDTH, seed=0, bias=True), x_teacher)
        x = x_teacher + 0.01 * random(TOKENS, WIDTH, seed=5)
        target = moment_target(x_teacher, head, head, chunk_bytes=chunk_bytes)
        losses, gradients = value_and_gradient(x, head, target, chunk_bytes=chunk_bytes)
        log_p, log_q = said(head, x_teacher), said(head, x)
        of_entropy = np.abs(target.entropy.double().numpy() - reference.entropy(log_p)).max()
        nats = np.abs(losses.double().numpy() - reference.kl_divergence(log_p, log_q)).max()
        slope = reference.kl_gradient(log_p, log_q, head.weight)
        error = worst(gradients.flatten()[None], slope.reshape(1, -1), vectors=True)
        assert of_entropy < ROUNDING_NATS, f"entropy off by {of_entropy:.1e} nats"
        assert nats < LARGE_LOGITS_NATS, f"KL off by {nats:.1e} nats"
        assert error < LARGE_LOGITS_TOLERANCE, f"relative error {error:.1e} of the gradient"

    @pytest.mark.parametrize("height", [5.0, LARGE_LOGIT])
    def test_a_maximum_that_rises_in_every_block(self, height: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """Logits rise along the vocabulary for one token and fall for the other; one block of 16 words of ten.

        Red if what earlier blocks gave is not shrunk to the new maximum, or shrunk when it did not rise.
        """
        monkeypatch.setattr(module, "VOCABULARY_BLOCK", 16)
        slope = torch.linspace(-1, 1, REAL)[:, None]
        direction, x = random(WIDTH, seed=0), torch.stack([random(WIDTH, seed=0), -random(WIDTH, seed=0)])
        direction *= height / direction.square().sum()
        head = Head(slope * direction + 1e-2 * random(REAL, WIDTH, seed=1))
        tops = torch.stack([block.amax(dim=1) for block in (x @ head.weight.T).split(16, dim=1)])
        assert (tops[1:, 0] > tops[:-1, 0]).all(), "the maximum does not rise in every block"
        assert (tops[1:, 1] < tops[:-1, 1]).all(), "the maximum does not fall in every block"
        other = make_head(WIDTH, seed=2)
        x_other = random(2, WIDTH, seed=3)
        for name, (teacher, x_teacher, student, x_student) in {
            "student": (other, x_other, head, x),
            "teacher": (head, x, other, x_other),
        }.items():
            log_p, log_q = said(teacher, x_teacher), said(student, x_student)
            ours = value_and_gradient(x_student, student, moment_target(x_teacher, teacher, student))
            values, gradients = (
                reference.kl_divergence(log_p, log_q),
                reference.kl_gradient(log_p, log_q, student.weight),
            )
            errors = worst(ours[0], values), worst(ours[1], gradients, vectors=True)
            assert max(errors) < LARGE_LOGITS_TOLERANCE, f"as {name}: relative errors {errors}"

    def test_trained_cross_entropy(self) -> None:
        x, labels = random(TOKENS, WIDTH, seed=4), torch.arange(TOKENS) * 11
        head = with_large_logits(make_head(WIDTH, seed=0, bias=True), x)
        assert_trained_parity(head, x, labels, REAL, tolerance=LARGE_LOGITS_TOLERANCE)


QWEN2_VL_2B_WORDS, QWEN2_VL_7B_WORDS = 151_936, 152_064
NEAR = 8
BF16_ROUNDING = 2**-8
"""Relative, of one rounding to bfloat16 (8 bits of precision), at most; over a vector the mean is half of it."""
BF16_GRADIENT_TOLERANCE = 2.2e-3
"""Relative, worst token, of a student near its teacher: the gradient is formed in float32 and rounded to bfloat16
once, which leaves 0.2 % over 64 entries. Measured 1.9e-3; a bf16 softmax gives 0.17 to 0.30."""
UNROUNDED_GRADIENT_TOLERANCE = 5e-5
"""The same with float32 inputs: what remains are the sums over 152,000 words. Measured 5e-6."""
NEAR_NATS_TOLERANCE = 1e-5
"""Absolute, of a KL of 0.005 nats between two numbers near 12. Measured 1.6e-6; a bf16 softmax gives 0.02 to 0.04."""
BF16_SOFTMAX_ERROR = 0.08
"""Relative error of the gradient that DESIGN §2 states for a softmax in bfloat16."""

Setting = tuple[Head, Tensor, Tensor]
Exact = tuple[reference.Array, reference.Array]


@pytest.fixture(scope="module", params=[QWEN2_VL_2B_WORDS, QWEN2_VL_7B_WORDS])
def near_teacher(request: pytest.FixtureRequest) -> Setting:
    """A bf16 head of a real vocabulary, the larger with a bias; inputs of the teacher, and of a student close to it."""
    words, width = request.param, 64
    bias = random(words, seed=3, scale=0.3).bfloat16() if words == QWEN2_VL_7B_WORDS else None
    head = Head(random(words, width, seed=0, scale=width**-0.5).bfloat16(), bias)
    x_teacher = random(NEAR, width, seed=1)
    return head, x_teacher.bfloat16(), (x_teacher + 0.1 * random(NEAR, width, seed=2)).bfloat16()


@pytest.fixture(scope="module")
def exact(near_teacher: Setting) -> Exact:
    """KL and gradient of the same bf16 numbers in float64."""
    head, x_teacher, x = near_teacher
    log_p, log_q = said(head, x_teacher), said(head, x)
    return reference.kl_divergence(log_p, log_q), reference.kl_gradient(log_p, log_q, head.weight.double())


class TestNearATeacher:
    """The real vocabularies, bf16 heads, a student close to its teacher: where precision is lost."""

    @pytest.mark.parametrize("arithmetic", ["float32", "sum of halves"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_the_gradient_is_right_to_0_2_percent(
        self,
        near_teacher: Setting,
        exact: Exact,
        dtype: torch.dtype,
        arithmetic: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Red with a softmax, an entropy, a dot product or a difference in bf16: the next test computes that error.

        `sum of halves` is how a GPU multiplies, with its two products done here in float32.
        """
        if arithmetic == "sum of halves":
            monkeypatch.setattr(module, "float32_product", as_on_a_gpu)
        head, x_teacher, x = near_teacher
        target = moment_target(x_teacher, head, head)
        losses, gradients = value_and_gradient(x.to(dtype), head, target)
        assert losses.dtype == torch.float32
        assert gradients.dtype == dtype
        nats = np.abs(losses.double().numpy() - exact[0]).max()
        error = worst(gradients, exact[1], vectors=True)
        bound = BF16_GRADIENT_TOLERANCE if dtype == torch.bfloat16 else UNROUNDED_GRADIENT_TOLERANCE
        assert nats < NEAR_NATS_TOLERANCE, f"KL off by {nats:.1e} of {exact[0].mean():.1e} nats"
        assert error < bound, f"relative error {error:.1e} of the gradient, allowed {bound:.1e}"

    def test_a_bf16_softmax_misses_the_bounds(self, near_teacher: Setting, exact: Exact) -> None:
        """The tempting wrong version. Red if the bounds above have become too loose to tell it apart."""
        head, x_teacher, x = near_teacher
        x = x.clone().requires_grad_()
        bias = 0 if head.bias is None else head.bias
        log_q, log_p = ((at @ head.weight.T + bias).log_softmax(-1) for at in (x, x_teacher))
        losses = (log_p.exp() * (log_p - log_q)).sum(-1)
        losses.sum().backward()
        nats = np.abs(losses.detach().double().numpy() - exact[0]).max()
        error = worst(x.grad, exact[1], vectors=True)
        assert nats > 100 * NEAR_NATS_TOLERANCE, f"KL off by {nats:.1e} nats only"
        assert error > BF16_SOFTMAX_ERROR, f"relative error {error:.3f} only"

    def test_prices_are_right_to_float32(self, near_teacher: Setting, exact: Exact) -> None:
        """Two student layers, the teacher itself and the near one, against one target."""
        head, x_teacher, x = near_teacher
        layers = torch.stack([x_teacher, x])
        ours = prices(layers, partition(layers, head), stacked([moment_target(x_teacher, head, head)]))[:, 0]
        expected = np.stack([np.zeros(NEAR), exact[0]])
        nats = np.abs(ours.double().numpy() - expected).max()
        assert nats < NEAR_NATS_TOLERANCE, f"KL off by {nats:.1e} nats"


HALVES_TOLERANCE = 2**-15
"""Relative, worst row. Two bfloat16 addends leave at most 2**-16 of a float32 number. Measured 2**-18.2."""
ONE_PRODUCT_ERROR = 2**-9
"""Relative, worst row: one bfloat16 addend leaves up to 2**-8. Measured 2**-8.7, and 2**-11.8 of float16."""


def multiply_exactly(left: Tensor, right: Tensor) -> Tensor:
    """What tensor cores do with half-precision operands: exact products, summed in float32."""
    assert left.dtype == right.dtype, f"{left.dtype} and {right.dtype}"
    return left.float() @ right.float()


def as_on_a_gpu(left: Tensor, right: Tensor) -> Tensor:
    if right.dtype == torch.float32:
        return left @ right
    return sum_of_halves(left, right, multiply_exactly)


class TestProducts:
    """Float32 products with half-precision heads."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_two_halves_equal_a_float32_product_and_one_does_not(self, dtype: torch.dtype) -> None:
        """Red if the second half is dropped, or added in half precision: the control is one product alone."""
        left, right = random(64, 512, seed=0), random(512, 96, seed=1).to(dtype)
        expected = left.double() @ right.double()
        both = worst(sum_of_halves(left, right, multiply_exactly), expected, vectors=True)
        one = worst(multiply_exactly(left.to(dtype), right), expected, vectors=True)
        assert both < HALVES_TOLERANCE, f"two products: relative error 2**{np.log2(both):.1f}"
        if dtype == torch.bfloat16:
            assert one > ONE_PRODUCT_ERROR, f"one product: relative error 2**{np.log2(one):.1f} only"
        assert one > 100 * both, f"one product 2**{np.log2(one):.1f}, two 2**{np.log2(both):.1f}"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_float32_product_rounds_neither_operand(self, dtype: torch.dtype) -> None:
        left, right = random(64, 512, seed=0), random(512, 96, seed=1).to(dtype)
        ours = float32_product(left, right)
        assert ours.dtype == torch.float32
        error = worst(ours, left.double() @ right.double(), vectors=True)
        assert error < FLOAT32_TOLERANCE, f"relative error {error:.1e}"


def trained_head_and_gradients(
    x: Tensor, head: Head, labels: Tensor, vocabulary: int, chunk_bytes: int = ENOUGH, *, upstream: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Total, [N] losses and the gradients of x, weight and bias."""
    x, weight = x.detach().clone().requires_grad_(), head.weight.detach().clone().requires_grad_()
    bias = None if head.bias is None else head.bias.detach().clone().requires_grad_()
    total, losses = trained_cross_entropy(x, Head(weight, bias), labels, vocabulary=vocabulary, chunk_bytes=chunk_bytes)
    (upstream * total).backward()
    return total.detach(), losses, x.grad, weight.grad, None if bias is None else bias.grad


def assert_trained_parity(
    head: Head,
    x: Tensor,
    labels: Tensor,
    vocabulary: int,
    *,
    chunk_bytes: int = ENOUGH,
    upstream: float = 1.0,
    tolerance: float = FLOAT32_TOLERANCE,
    tolerance_in_x: float | None = None,
) -> None:
    """Against the reference on the head's weights as rounded to the dtype of x."""
    total, losses, in_x, in_weight, in_bias = trained_head_and_gradients(
        x, head, labels, vocabulary, chunk_bytes, upstream=upstream
    )
    rounded = Head(head.weight.to(x.dtype), head.bias)
    log_q = said(rounded, x, vocabulary)
    values = reference.cross_entropy(log_q, labels)
    assert total.item() == pytest.approx(values.sum(), rel=tolerance)
    assert total.item() == pytest.approx(losses.double().sum().item(), rel=FLOAT32_TOLERANCE)
    assert (total.dtype, losses.dtype, losses.requires_grad) == (torch.float32, torch.float32, False)
    assert (in_x.dtype, in_weight.dtype) == (x.dtype, head.weight.dtype)
    of_x = reference.cross_entropy_gradient(log_q, labels, rounded.weight.double())
    of_weight = reference.cross_entropy_weight_gradient(log_q, labels, x.double())
    seen = np.linalg.norm(of_weight, axis=1) > UNDERFLOW
    errors = {
        "losses": worst(losses, values),
        "weight": worst(in_weight[:vocabulary][seen], upstream * of_weight[seen], vectors=True),
    }
    assert not in_weight[vocabulary:].any(), "padding rows are trained"
    if in_bias is not None:
        of_bias = reference.cross_entropy_bias_gradient(log_q, labels)
        errors["bias"] = worst(in_bias[None, :vocabulary], upstream * of_bias[None], vectors=True)
        assert not in_bias[vocabulary:].any(), "padding biases are trained"
    error_in_x = worst(in_x, upstream * of_x, vectors=True)
    assert max(errors.values()) < tolerance, f"relative errors {errors}, allowed {tolerance:.1e}"
    bound = tolerance_in_x or tolerance
    assert error_in_x < bound, f"x: relative error {error_in_x:.1e}, allowed {bound:.1e}"


class TestTrainedCrossEntropy:
    """Reinforcement: the head is trained too."""

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("tokens_at_a_time", [1, 4, TOKENS, 100])
    @pytest.mark.parametrize("block", [7, 64, REAL, 4096])
    def test_parity_with_padding_rows_however_it_is_cut(
        self, bias: bool, tokens_at_a_time: int, block: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nine padding rows that carry probability, labels that repeat. Red if padding enters the softmax or is
        trained, a chunk or block is lost, or two tokens with one label do not add up."""
        monkeypatch.setattr(module, "VOCABULARY_BLOCK", block)
        head = make_head(WIDTH, seed=0, bias=bias, rows=REAL + PADDING)
        labels = torch.tensor([0, 149, 3, 3, 3, 77, 0, 64, 63, 128, 149, 5, 6])
        x = random(TOKENS, WIDTH, seed=4)
        assert_trained_parity(head, x, labels, REAL, chunk_bytes=4 * REAL * tokens_at_a_time)

    def test_poisoned_padding_rows_change_nothing(self) -> None:
        clean = make_head(WIDTH, seed=0, bias=True, rows=REAL + PADDING)
        x, labels = random(TOKENS, WIDTH, seed=4), torch.arange(TOKENS) * 11
        results = []
        for poison in (0.0, POISON, float("nan")):
            head = Head(*(part.clone() for part in clean))
            head.weight[REAL:] = poison
            head.bias[REAL:] = poison
            results.append(trained_head_and_gradients(x, head, labels, REAL))
        for result in results[1:]:
            assert all(torch.equal(ours, first) for ours, first in zip(result, results[0], strict=True))

    @pytest.mark.parametrize("upstream", [0.25, -3.0])
    def test_the_incoming_gradient_scales_all_three(self, upstream: float) -> None:
        """A loss is divided by the global number of response tokens. Red if that reaches x but not the head."""
        head, x = make_head(WIDTH, seed=0, bias=True, rows=REAL + PADDING), random(TOKENS, WIDTH, seed=4)
        assert_trained_parity(head, x, torch.arange(TOKENS) * 11, REAL, upstream=upstream)

    def test_two_micro_batches_add_up_to_one(self) -> None:
        """Gradient accumulation: the head's gradient of 13 tokens is that of 5 and of 8."""
        weight, x = make_head(WIDTH, seed=0).weight.requires_grad_(), random(TOKENS, WIDTH, seed=4)
        labels = torch.arange(TOKENS) * 11
        for part in (slice(0, 5), slice(5, TOKENS)):
            total, _ = trained_cross_entropy(x[part], Head(weight), labels[part], vocabulary=REAL)
            total.backward()
        whole = trained_head_and_gradients(x, Head(weight), labels, REAL)[3]
        error = worst(weight.grad, whole, vectors=True)
        assert error < FLOAT32_TOLERANCE, f"relative error {error:.1e}"

    def test_the_gradient_goes_on_into_the_network(self) -> None:
        """And from a tied head's input side into the same weights: both ends add up."""
        table = make_head(WIDTH, seed=0).weight.requires_grad_()
        inputs, labels = torch.arange(TOKENS) * 3, torch.arange(TOKENS) * 11
        total, _ = trained_cross_entropy(table[inputs], Head(table), labels, vocabulary=REAL)
        total.backward()
        plain = table.detach().double().requires_grad_()
        cross_entropy(plain[inputs] @ plain.T, labels, reduction="sum").backward()
        error = worst(table.grad, plain.grad, vectors=True)
        assert error < FLOAT32_TOLERANCE, f"relative error {error:.1e}"

    @pytest.mark.parametrize("head_dtype", [torch.float32, torch.bfloat16])
    def test_bf16_inputs_at_a_real_vocabulary(self, head_dtype: torch.dtype) -> None:
        """As under autocast: float32 or bf16 weights, bf16 inputs. Red with a softmax or a sum over tokens in bf16.

        128 padding rows, as Qwen2-VL-7B has beside the 2B; several chunks.
        """
        width, tokens = 16, 24
        weight = random(QWEN2_VL_7B_WORDS, width, seed=0, scale=width**-0.5).to(head_dtype)
        head, x = Head(weight), random(tokens, width, seed=1).bfloat16()
        labels = torch.arange(tokens) * 6000 % QWEN2_VL_2B_WORDS
        assert_trained_parity(
            head,
            x,
            labels,
            QWEN2_VL_2B_WORDS,
            chunk_bytes=4 * QWEN2_VL_2B_WORDS * 10,
            tolerance=FLOAT32_TOLERANCE if head_dtype == torch.float32 else BF16_ROUNDING,
            tolerance_in_x=BF16_ROUNDING,
        )

    def test_a_frozen_head_is_not_trained(self) -> None:
        """LoRA may leave the head out. The gradient of x is the same."""
        head, labels = make_head(WIDTH, seed=0, bias=True), torch.arange(TOKENS) * 11
        x = random(TOKENS, WIDTH, seed=4).requires_grad_()
        trained_cross_entropy(x, head, labels, vocabulary=REAL)[0].backward()
        assert head.weight.grad is None
        assert torch.equal(x.grad, trained_head_and_gradients(x, head, labels, REAL)[2])


@pytest.mark.parametrize("part", ["moment_target", "partition", "prices", "divergence", "trained_cross_entropy"])
def test_autocast_changes_nothing(part: str) -> None:
    """`model.dtype: bfloat16` runs the forward pass in bf16, the losses in float32 all the same."""
    teacher, student = make_head(TEACHER_WIDTH, seed=0), make_head(WIDTH, seed=2, bias=True)
    x_teacher, x = random(TOKENS, TEACHER_WIDTH, seed=4), random(1, TOKENS, WIDTH, seed=5).requires_grad_()
    target = moment_target(x_teacher, teacher, student)
    passed = partition(x, student)
    run: Callable[[], tuple[Tensor | None, ...]] = {
        "moment_target": lambda: moment_target(x_teacher, teacher, student),
        "partition": lambda: partition(x, student),
        "prices": lambda: (prices(x, passed, stacked([target])),),
        "divergence": lambda: torch.autograd.grad(divergence(x, passed, target).sum(), x),
        "trained_cross_entropy": lambda: trained_head_and_gradients(x[0], student, torch.arange(TOKENS), REAL),
    }[part]
    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        under = run()
    for ours, expected in zip(under, plain, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected), f"{(ours - expected).abs().max().item():.1e} apart"


MIB = 2**20
MEMORY_WORDS, MEMORY_WIDTH = 40_000, 32
MEMORY_TOKENS = (256, 1_024)
MEMORY_BUDGETS = (MIB, 4 * MIB)
STATES_ALIVE = 10
"""[N, d] float32 tensors: results, gradients and what is on the way to them."""
HEADS_ALIVE = 2
"""[V, d] float32 tensors of the loss that trains a head: its gradient, and the copy that is trained here."""
MEMORY_SLACK = 3 * MIB
"""Buffers of the matrix products, and tensors too small to be given back at once."""
MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 2**18
"""glibc's `mallopt`: larger blocks are given back when they are freed, so that what is resident is what lives."""

Peaks = dict[tuple[str, int, int], int]


def memory_bound(loss: str, tokens: int, budget: int) -> int:
    """Nothing here is of size tokens × vocabulary."""
    states = STATES_ALIVE * 4 * tokens * MEMORY_WIDTH
    heads = HEADS_ALIVE * 4 * MEMORY_WORDS * MEMORY_WIDTH if loss == "trained_cross_entropy" else 0
    return budget + states + heads + MEMORY_SLACK


def run_loss(name: str, x: Tensor, head: Head, budget: int) -> None:
    labels = torch.arange(len(x))
    if name == "divergence":
        value_and_gradient(x, head, label_target(labels, head), chunk_bytes=budget)
    elif name == "moment_target":
        moment_target(x, head, head, chunk_bytes=budget)
    elif name == "trained_cross_entropy":
        trained_head_and_gradients(x, head, labels, MEMORY_WORDS, budget)
    else:
        cross_entropy(x.clone().requires_grad_() @ head.weight.T, labels, reduction="sum").backward()


def measure_peaks() -> Peaks:
    """Bytes beyond its inputs by loss, tokens and budget, measured where nothing else runs."""
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    head = Head(random(MEMORY_WORDS, MEMORY_WIDTH, seed=0, scale=0.2))
    peaks = {}
    for name in ("divergence", "moment_target", "trained_cross_entropy", "dense"):
        run_loss(name, random(2, MEMORY_WIDTH, seed=2), head, ENOUGH)
        for tokens in MEMORY_TOKENS:
            x = random(tokens, MEMORY_WIDTH, seed=2)
            for budget in MEMORY_BUDGETS[-1:] if name == "dense" else MEMORY_BUDGETS:
                peaks[name, tokens, budget] = peak_bytes(partial(run_loss, name, x, head, budget))
    return peaks


def peak_bytes(run: Callable[[], None]) -> int:
    """The kernel's high-water mark of the resident set, reset before the run, above what is resident then."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@pytest.fixture(scope="module")
def peaks() -> Peaks:
    """From a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_peaks)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's high-water mark of memory")
class TestMemory:
    """What a loss needs beyond its inputs."""

    @pytest.mark.parametrize("loss", ["divergence", "moment_target", "trained_cross_entropy"])
    def test_it_grows_with_the_chunk_and_not_with_tokens_times_vocabulary(self, loss: str, peaks: Peaks) -> None:
        """Red if the logits of all tokens live at once, or outlive their chunk."""
        for tokens in MEMORY_TOKENS:
            for budget in MEMORY_BUDGETS:
                peak, bound = peaks[loss, tokens, budget], memory_bound(loss, tokens, budget)
                what = f"{tokens} tokens, budget {budget / MIB:.0f} MiB"
                assert peak < bound, f"{what}: {peak / MIB:.1f} MiB, allowed {bound / MIB:.1f} MiB"
            growth = peaks[loss, tokens, MEMORY_BUDGETS[1]] - peaks[loss, tokens, MEMORY_BUDGETS[0]]
            assert growth > 0.5 * (MEMORY_BUDGETS[1] - MEMORY_BUDGETS[0]), (
                f"{tokens} tokens: {growth / MIB:.1f} MiB more with the larger chunk: it is not what was measured"
            )

    @pytest.mark.parametrize("tokens", MEMORY_TOKENS)
    def test_a_dense_loss_misses_the_bound(self, tokens: int, peaks: Peaks) -> None:
        """Red if the bound has become too loose to tell it apart, even with few tokens and the larger chunk."""
        budget = MEMORY_BUDGETS[1]
        peak, bound = peaks["dense", tokens, budget], memory_bound("trained_cross_entropy", tokens, budget)
        assert peak > 2 * bound, f"{peak / MIB:.1f} MiB, the bound is {bound / MIB:.1f} MiB"
