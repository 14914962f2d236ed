"""Losses against a frozen head: values and gradients equal the dense float64 mathematics of METHOD.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.losses import divergence as module
from stages.losses.divergence import Head, Target, divergence, label_target, log_partition, moment_target
from stages.models.readout import Readout
from tests import reference

FLOAT32_TOLERANCE = 1e-5
"""Relative, worst token. The sums are over 150 words; float32 rounds each at 6e-8. Measured: at most 8e-7."""
ROUNDING_NATS = 1e-5
"""Absolute, where the exact value is 0: the difference of two numbers near 10 in float32."""
BF16_GRADIENT_TOLERANCE = 0.05
"""Relative, worst token, 151,936 words, a student near its teacher. Measured 0.028; a bf16 softmax gives 0.30."""
BF16_NATS_TOLERANCE = 2e-3
"""Absolute, of a KL of 0.005 nats. Measured 0.0007; a bf16 softmax gives 0.039."""

REAL, WIDTH, TEACHER_WIDTH, TOKENS = 150, 24, 40, 13
QWEN2_VL_WORDS = 151_936
POISON = 1e3


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def make_head(width: int, *, seed: int, bias: bool = False, rows: int = REAL) -> Head:
    return Head(random(rows, width, seed=seed, scale=2 * width**-0.5), random(rows, seed=seed + 1) if bias else None)


def said(head: Head, x: Tensor) -> reference.Array:
    return reference.log_probabilities(x.detach(), head.weight, head.bias)


def value_and_gradient(x: Tensor, head: Head, target: Target) -> tuple[Tensor, Tensor]:
    """[N] losses and [N, D] gradients of their sum."""
    x = x.clone().requires_grad_()
    losses = divergence(x, log_partition(x, head), target)
    losses.sum().backward()
    return losses.detach(), x.grad


def assert_parity(actual: tuple[Tensor, Tensor], values: reference.Array, gradients: reference.Array) -> None:
    for name, ours, exact in (("value", actual[0], values), ("gradient", actual[1], gradients)):
        error = reference.error_of_worst_token(ours, exact)
        assert error < FLOAT32_TOLERANCE, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("bias", [False, True])
def test_cross_entropy(bias: bool) -> None:
    """Red if a label's row, its bias or the gradient's sign is wrong."""
    head, x = make_head(WIDTH, seed=0, bias=bias), random(TOKENS, WIDTH, seed=2)
    labels = torch.arange(TOKENS) * 11
    log_q = said(head, x)
    assert_parity(
        value_and_gradient(x, head, label_target(labels, head)),
        reference.cross_entropy(log_q, labels),
        reference.cross_entropy_gradient(log_q, labels, head.weight),
    )


@pytest.mark.parametrize("student_bias", [False, True])
@pytest.mark.parametrize("teacher_bias", [False, True])
def test_kl_to_a_teacher_of_another_width(teacher_bias: bool, student_bias: bool) -> None:
    """Red if KL is reversed, a temperature slips in, or either bias is left out of value or gradient."""
    teacher = make_head(TEACHER_WIDTH, seed=0, bias=teacher_bias)
    student = make_head(WIDTH, seed=2, bias=student_bias)
    x_teacher, x = random(TOKENS, TEACHER_WIDTH, seed=4), random(TOKENS, WIDTH, seed=5)
    log_p, log_q = said(teacher, x_teacher), said(student, x)
    assert_parity(
        value_and_gradient(x, student, moment_target(x_teacher, teacher, student)),
        reference.kl_divergence(log_p, log_q),
        reference.kl_gradient(log_p, log_q, student.weight),
    )


def test_the_final_layers_loss_goes_on_into_the_network() -> None:
    """The last-layer KL with a norm and a block below the head: the chain rule reaches their weights.

    Red if `log_partition` gives its gradient per batch instead of per token, or ignores the
    upstream gradient: every token has a weight of its own here.
    """
    teacher, student = make_head(TEACHER_WIDTH, seed=0), make_head(WIDTH, seed=2)
    x_teacher, state = random(TOKENS, TEACHER_WIDTH, seed=4), random(TOKENS, WIDTH, seed=5)
    token_weight = torch.linspace(0.1, 3.0, TOKENS)
    block = nn.Linear(WIDTH, WIDTH)
    x = block(state)
    losses = divergence(x, log_partition(x, student), moment_target(x_teacher, teacher, student))
    (losses * token_weight).sum().backward()
    log_p, log_q = said(teacher, x_teacher), said(student, x)
    in_x = reference.kl_gradient(log_p, log_q, student.weight) * token_weight.double().numpy()[:, None]
    expected = in_x.T @ state.double().numpy()
    error = reference.error_of_worst_token(block.weight.grad, expected)
    assert error < FLOAT32_TOLERANCE, f"relative error {error:.1e}"


def test_padding_rows_change_nothing() -> None:
    """Heads of one family padded to different sizes, their padding rows poisoned: the same KL, bit for bit.

    Red if a padding row enters a logsumexp, a moment or a renormalisation.
    """

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


def test_cutting_the_heads_is_cutting_and_renormalising_the_distributions() -> None:
    """METHOD §6 with padding rows that carry probability: about half of it lies on them here.

    Red if the target or the student keeps the mass of padding rows.
    """
    teacher, student = make_head(TEACHER_WIDTH, seed=0, rows=2 * REAL), make_head(WIDTH, seed=2, rows=2 * REAL + 9)
    x_teacher, x = random(TOKENS, TEACHER_WIDTH, seed=4), random(TOKENS, WIDTH, seed=5)
    log_p = reference.log_probabilities(x_teacher, teacher.weight, real=REAL)
    log_q = reference.log_probabilities(x, student.weight, real=REAL)
    cut_teacher, cut_student = Head(teacher.weight[:REAL]), Head(student.weight[:REAL])
    assert_parity(
        value_and_gradient(x, cut_student, moment_target(x_teacher, cut_teacher, cut_student)),
        reference.kl_divergence(log_p, log_q),
        reference.kl_gradient(log_p, log_q, student.weight),
    )


def test_heads_of_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="teacher's head has 152 real rows, the student's 150; cut both"):
        moment_target(random(3, 8, seed=0), make_head(8, seed=1, rows=152), make_head(6, seed=2, rows=150))


def test_several_chunks_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """13 tokens in chunks of 4, the last one short. Red if a chunk is left out or written elsewhere."""
    teacher, student = make_head(TEACHER_WIDTH, seed=0, bias=True), make_head(WIDTH, seed=2, bias=True)
    x_teacher, x = random(TOKENS, TEACHER_WIDTH, seed=4), random(TOKENS, WIDTH, seed=5)
    whole = value_and_gradient(x, student, moment_target(x_teacher, teacher, student))
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 4 * REAL)
    assert len(module._chunks(TOKENS, REAL)) == 4
    cut = value_and_gradient(x, student, moment_target(x_teacher, teacher, student))
    for ours, exact in zip(cut, whole, strict=True):
        error = reference.error_of_worst_token(ours, exact)
        assert error < FLOAT32_TOLERANCE, f"relative error {error:.1e}"


def test_a_chunk_smaller_than_one_token_still_holds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    assert module._chunks(3, 1000) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_one_pass_over_the_vocabulary_prices_a_stack_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five targets, one product with the head. Red if a target costs a pass, or the stack is misaligned."""
    student = make_head(WIDTH, seed=2, bias=True)
    teacher = make_head(TEACHER_WIDTH, seed=0)
    targets = [moment_target(random(TOKENS, TEACHER_WIDTH, seed=s), teacher, student) for s in range(10, 15)]
    x = random(TOKENS, WIDTH, seed=5)
    passes = []
    logits = module._logits
    monkeypatch.setattr(module, "_logits", lambda *args: passes.append(1) or logits(*args))
    stacked = Target(*(torch.stack(part) for part in zip(*targets, strict=True)))
    prices = divergence(x, log_partition(x, student), stacked)
    assert len(passes) == 1
    assert prices.shape == (5, TOKENS)
    for index, target in enumerate(targets):
        alone = divergence(x, log_partition(x, student), target)
        error = reference.error_of_worst_token(prices[index], alone)
        assert error < FLOAT32_TOLERANCE, f"target {index}: relative error {error:.1e}"


def test_the_head_and_the_teacher_get_no_gradient() -> None:
    """Red if a frozen head would be trained through its logsumexp, or the teacher through its moments."""
    head = Head(*(part.requires_grad_() for part in make_head(WIDTH, seed=0, bias=True)))
    x_teacher = random(TOKENS, WIDTH, seed=4).requires_grad_()
    x = random(TOKENS, WIDTH, seed=5).requires_grad_()
    divergence(x, log_partition(x, head), moment_target(x_teacher, head, head)).sum().backward()
    assert x.grad is not None
    assert head.weight.grad is None
    assert head.bias.grad is None
    assert x_teacher.grad is None


@pytest.mark.parametrize("bias", [False, True])
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(bias: bool) -> None:
    head, x = make_head(WIDTH, seed=0, bias=bias), random(TOKENS, WIDTH, seed=4)
    losses, gradients = value_and_gradient(x, head, moment_target(x, head, head))
    assert losses.abs().max() < ROUNDING_NATS, f"KL {losses.abs().max():.1e} nats"
    assert gradients.abs().max() < ROUNDING_NATS, f"gradient {gradients.abs().max():.1e}"


@pytest.mark.parametrize("distance", [1e-3, 0.1, 1.0, 10.0])
def test_kl_is_never_negative(distance: float) -> None:
    """Red if the entropy's sign or the bias is wrong: then near teachers give negative numbers."""
    head, x_teacher = make_head(WIDTH, seed=0, bias=True), random(200, WIDTH, seed=4)
    x = x_teacher + distance * random(200, WIDTH, seed=5)
    losses, _ = value_and_gradient(x, head, moment_target(x_teacher, head, head))
    assert losses.min() > -ROUNDING_NATS, f"smallest KL {losses.min():.1e} nats"


def test_entropy_lies_between_a_certain_and_an_ignorant_teacher() -> None:
    """ln V for a head input of 0, nearly 0 for a huge one, the reference's in between."""
    head = make_head(WIDTH, seed=0)
    x = torch.stack([torch.zeros(WIDTH), random(WIDTH, seed=4), random(WIDTH, seed=4, scale=1e3)])
    ours = moment_target(x, head, head).entropy
    assert ours[0].item() == pytest.approx(np.log(REAL), rel=FLOAT32_TOLERANCE)
    assert ours[1].item() == pytest.approx(reference.entropy(said(head, x))[1], rel=FLOAT32_TOLERANCE)
    assert abs(ours[2].item()) < ROUNDING_NATS
    assert label_target(torch.tensor([3]), head).entropy.tolist() == [0.0]


def test_the_reference_agrees_with_finite_differences() -> None:
    """The oracle itself: its gradients are those of its values. `log_partition` is float32 by design, so that
    `torch.autograd.gradcheck` cannot run on it; parity with this does the same."""
    teacher, student = make_head(6, seed=0, rows=9), make_head(4, seed=2, rows=9)
    log_p, x, labels = said(teacher, random(2, 6, seed=4)), random(2, 4, seed=5).double().numpy(), [3, 8]

    def values(at: reference.Array) -> tuple[float, float]:
        log_q = reference.log_probabilities(at, student.weight)
        return reference.kl_divergence(log_p, log_q).sum(), reference.cross_entropy(log_q, labels).sum()

    step, numeric = 1e-6, np.zeros((2, 2, 4))
    for place in np.ndindex(2, 4):
        shift = np.zeros((2, 4))
        shift[place] = step
        numeric[:, *place] = np.subtract(values(x + shift), values(x - shift)) / (2 * step)
    log_q = reference.log_probabilities(x, student.weight)
    np.testing.assert_allclose(reference.kl_gradient(log_p, log_q, student.weight), numeric[0], rtol=1e-6)
    np.testing.assert_allclose(reference.cross_entropy_gradient(log_q, labels, student.weight), numeric[1], rtol=1e-6)


Setting = tuple[Head, Tensor, Tensor]
Exact = tuple[reference.Array, reference.Array]


@pytest.fixture(scope="module")
def near_teacher() -> Setting:
    """A bf16 head of the real vocabulary, inputs of the teacher, and inputs of a student close to it."""
    head = Head(random(QWEN2_VL_WORDS, 64, seed=0, scale=64**-0.5).bfloat16())
    x_teacher = random(8, 64, seed=1)
    return head, x_teacher.bfloat16(), (x_teacher + 0.1 * random(8, 64, seed=2)).bfloat16()


@pytest.fixture(scope="module")
def exact(near_teacher: Setting) -> Exact:
    """KL and gradient of the same bf16 numbers in float64."""
    head, x_teacher, x = near_teacher
    log_p, log_q = (reference.log_probabilities(at.double(), head.weight.double()) for at in (x_teacher, x))
    return reference.kl_divergence(log_p, log_q), reference.kl_gradient(log_p, log_q, head.weight.double())


def test_bf16_inputs_stay_close_to_float64(near_teacher: Setting, exact: Exact) -> None:
    """Red with a softmax, an entropy or a dot product in bf16: the next test computes that error."""
    head, x_teacher, x = near_teacher
    losses, gradients = value_and_gradient(x, head, moment_target(x_teacher, head, head))
    assert losses.dtype == torch.float32
    assert gradients.dtype == torch.bfloat16
    nats = np.abs(losses.double().numpy() - exact[0]).max()
    error = reference.error_of_worst_token(gradients.double(), exact[1])
    assert nats < BF16_NATS_TOLERANCE, f"KL off by {nats:.1e} of {exact[0].mean():.1e} nats"
    assert error < BF16_GRADIENT_TOLERANCE, f"relative error {error:.3f} of the gradient"


def test_a_bf16_softmax_misses_the_bounds(near_teacher: Setting, exact: Exact) -> None:
    """The tempting wrong version. Red if the bounds above have become too loose to tell it apart."""
    head, x_teacher, x = near_teacher
    x = x.clone().requires_grad_()
    log_q, log_p = (x @ head.weight.T).log_softmax(-1), (x_teacher @ head.weight.T).log_softmax(-1)
    losses = (log_p.exp() * (log_p - log_q)).sum(-1)
    losses.sum().backward()
    nats = np.abs(losses.detach().double().numpy() - exact[0]).max()
    error = reference.error_of_worst_token(x.grad.double(), exact[1])
    assert nats > BF16_NATS_TOLERANCE, f"KL off by {nats:.1e} nats only"
    assert error > BF16_GRADIENT_TOLERANCE, f"relative error {error:.3f} only"


@pytest.mark.parametrize("part", ["divergence", "moment_target"])
def test_autocast_changes_nothing(part: str) -> None:
    """`schedule.autocast: bfloat16` runs the model in bf16, the losses in float32 all the same."""
    teacher, student = make_head(TEACHER_WIDTH, seed=0), make_head(WIDTH, seed=2)
    x_teacher, x = random(TOKENS, TEACHER_WIDTH, seed=4), random(TOKENS, WIDTH, seed=5)
    results = []
    for outer in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=outer and part == "moment_target"):
            target = moment_target(x_teacher, teacher, student)
        with torch.autocast("cpu", torch.bfloat16, enabled=outer and part == "divergence"):
            results.append(divergence(x, log_partition(x, student), target))
    error = reference.error_of_worst_token(results[1], results[0])
    assert error < FLOAT32_TOLERANCE, f"relative error {error:.1e}"
