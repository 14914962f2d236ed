"""The matched loss: prices of all pairs, the loss and gradient of the matches that were drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from stages.contract.settings import Matching
from stages.losses import layerwise
from stages.losses.divergence import Head, Target, moment_target
from stages.losses.layerwise import FeatureCosts, KLCosts, LayerCosts, match_and_learn
from stages.losses.matching import expected_matches, match_entropy
from tests import reference

FLOAT32_TOLERANCE = 1e-5
"""Relative. Sums over 70 words and 9 tokens in float32. Measured: at most 9e-7."""

STUDENT, TEACHER, TOKENS, WIDTH = 3, 5, 9, 12
ROWS = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2])
SAMPLES = ("alpha", "beta", "gamma")
LAYER_OF_TOKEN = torch.tensor([[0, 1, 2, 3, 4, 3, 2, 1, 0], [4, 0, 2, 1, 3, 3, 0, 2, 4], [1, 1, 1, 4, 4, 4, 0, 0, 0]])
"""[t_s, N]: a teacher layer for each student layer and token."""


class World(NamedTuple):
    """Three student and five teacher layers on nine tokens of three samples."""

    said: list[Tensor]
    head: Head
    teacher: Target
    log_p: list[reference.Array]

    def costs(self) -> KLCosts:
        return KLCosts(self.said, self.head, self.teacher)

    def exact_price(self, student: int, teacher: int) -> reference.Array:
        """[N], nats."""
        return reference.kl_divergence(self.log_p[teacher], self.log_q(student))

    def exact_gradient(self, student: int, teacher: int) -> reference.Array:
        """[N, D]."""
        return reference.kl_gradient(self.log_p[teacher], self.log_q(student), self.head.weight)

    def log_q(self, student: int) -> reference.Array:
        return reference.log_probabilities(self.said[student].detach(), self.head.weight, self.head.bias)


def make_world(*, teacher_layers: int = TEACHER, bias: bool = False) -> World:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    vocabulary, teacher_width = 70, 20
    head = Head(random(vocabulary, WIDTH) / 3, random(vocabulary) if bias else None)
    teacher_head = Head(random(vocabulary, teacher_width) / 4)
    states = [random(TOKENS, teacher_width) for _ in range(teacher_layers)]
    targets = [moment_target(state, teacher_head, head) for state in states]
    moments, entropies, biases = zip(*targets, strict=True)
    teacher = Target(torch.stack(moments), torch.stack(entropies), torch.stack(biases) if bias else None)
    said = [random(TOKENS, WIDTH).requires_grad_() for _ in range(STUDENT)]
    return World(said, head, teacher, [reference.log_probabilities(s, teacher_head.weight) for s in states])


class Drawn(NamedTuple):
    """What `match_and_learn` gave, the matches [G, t_s, count] it drew and the [G, t_s, t_l] costs it drew from."""

    losses: Tensor
    shares: Tensor
    expected: Tensor
    entropy: Tensor
    matches: Tensor
    reduced: Tensor


def draw(
    costs: LayerCosts,
    *,
    seed: int = 0,
    rows: Tensor = ROWS,
    sharpness: float = 1.0,
    counts: bool = True,
    **settings: object,
) -> Drawn:
    seen: list[Tensor] = []
    choose = layerwise.match_layers

    def watched(kl: Tensor, *rest: object) -> Tensor:
        seen.extend((kl, choose(kl, *rest)))
        return seen[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layerwise, "match_layers", watched)
        learned = match_and_learn(
            costs,
            costs.all_pairs(),
            rows,
            Matching(**settings),
            torch.Generator().manual_seed(seed),
            sharpness=sharpness,
            counts=counts,
        )
    return Drawn(*learned, seen[1], seen[0])


def relative(ours: object, exact: object) -> float:
    """Of all numbers together."""
    ours, exact = (np.asarray(value, np.float64).reshape(1, -1) for value in (ours, exact))
    return reference.error_of_worst_token(ours, exact)


def assert_near(ours: object, exact: object, what: str) -> None:
    error = relative(ours, exact)
    assert error < FLOAT32_TOLERANCE, f"{what}: relative error {error:.1e}"


def assert_matched(world: World, losses: Tensor, matches: list[list[list[int]]]) -> None:
    """Losses [t_s, N] and the gradient of each, of matches [t_s][N][count] whose losses are averaged."""
    for i, of_tokens in enumerate(matches):
        price = [np.mean([world.exact_price(i, j)[n] for j in layers]) for n, layers in enumerate(of_tokens)]
        slope = [np.mean([world.exact_gradient(i, j)[n] for j in layers], axis=0) for n, layers in enumerate(of_tokens)]
        assert_near(losses[i].detach(), price, f"losses of student layer {i}, matched with {of_tokens}")
        of_layers = torch.autograd.grad(losses[i].sum(), world.said, retain_graph=True, materialize_grads=True)
        for other, gradient in enumerate(of_layers):
            if other == i:
                assert_near(gradient, slope, f"gradient of student layer {i}, matched with {of_tokens}")
            else:
                assert not gradient.any(), f"the loss of layer {i} pulls at layer {other}"


def of_each_token(matches: Tensor, *, per_sample: bool) -> list[list[list[int]]]:
    """[G, t_s, count] to [t_s][N][count]."""
    return [[matches[row if per_sample else 0, i].tolist() for row in ROWS.tolist()] for i in range(STUDENT)]


class TestKLCosts:
    """Every pair's KL from one pass over the vocabulary."""

    @pytest.mark.parametrize("bias", [False, True])
    def test_every_pair_is_priced_as_the_reference_does(self, bias: bool) -> None:
        """Red if student and teacher axes are exchanged, or a layer's partition serves another."""
        world = make_world(bias=bias)
        costs = world.costs()
        prices = costs.all_pairs()
        assert prices.shape == (STUDENT, TEACHER, TOKENS)
        assert not prices.requires_grad
        for j in range(TEACHER):
            matched = costs.matched(torch.full((STUDENT, TOKENS), j))
            for i in range(STUDENT):
                for n in range(TOKENS):
                    assert_near(prices[i, j, n], world.exact_price(i, j)[n], f"price of pair {i}, {j} at token {n}")
                assert_near(matched[i].detach(), world.exact_price(i, j), f"loss of pair {i}, {j}")

    @pytest.mark.parametrize("bias", [False, True])
    def test_a_match_may_differ_from_token_to_token_and_layer_to_layer(self, bias: bool) -> None:
        """With `per_sample`, tokens of one batch learn from different layers; value and gradient follow."""
        world = make_world(bias=bias)
        losses = world.costs().matched(LAYER_OF_TOKEN)
        assert losses.shape == (STUDENT, TOKENS)
        assert_matched(world, losses, [[[j] for j in of_tokens] for of_tokens in LAYER_OF_TOKEN.tolist()])

    def test_one_pass_over_the_vocabulary_for_all_layers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The physical floor of DESIGN §2. Red if a candidate or the chosen pair costs a pass of its own."""
        passes = []
        count = layerwise.partition
        monkeypatch.setattr(layerwise, "partition", lambda *args, **kw: passes.append(1) or count(*args, **kw))
        world = make_world()
        torch.autograd.grad(draw(world.costs()).losses.sum(), world.said)
        assert len(passes) == 1

    def test_the_budget_reaches_the_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`schedule.logits_chunk_mb`. Red if the default is used whatever the caller says."""
        budgets = []
        count = layerwise.partition
        monkeypatch.setattr(layerwise, "partition", lambda *args, **kw: budgets.append(kw) or count(*args, **kw))
        world = make_world()
        KLCosts(world.said, world.head, world.teacher, chunk_bytes=1234)
        assert budgets == [{"chunk_bytes": 1234}]


class TestMatchAndLearn:
    """One process."""

    @pytest.mark.parametrize("strategy", ["adaptive", "multinomial", "uniform", "random", "bottom-1", "bottom-3"])
    @pytest.mark.parametrize("per_sample", [False, True])
    @pytest.mark.parametrize("bias", [False, True])
    def test_losses_and_gradients_are_those_of_the_drawn_matches(
        self, strategy: str, per_sample: bool, bias: bool
    ) -> None:
        """Red if the loss is of other pairs than the drawn ones, a non-chosen pair pulls too, or bottom-3's are
        summed instead of averaged."""
        world = make_world(bias=bias)
        for seed in range(3):
            drawn = draw(world.costs(), seed=seed, strategy=strategy, per_sample=per_sample)
            assert drawn.matches.shape == (3 if per_sample else 1, STUDENT, 3 if strategy == "bottom-3" else 1)
            assert drawn.losses.shape == (STUDENT, TOKENS)
            assert_matched(world, drawn.losses, of_each_token(drawn.matches, per_sample=per_sample))

    @pytest.mark.parametrize("strategy", ["adaptive", "random", "bottom-3"])
    @pytest.mark.parametrize("per_sample", [False, True])
    def test_shares_count_the_tokens_that_learn_from_each_pair(self, strategy: str, per_sample: bool) -> None:
        """Rows sum to the number of tokens. Red if samples count alike whatever their length."""
        for seed in range(5):
            drawn = draw(make_world().costs(), seed=seed, strategy=strategy, per_sample=per_sample)
            expected = np.zeros((STUDENT, TEACHER))
            for i, of_tokens in enumerate(of_each_token(drawn.matches, per_sample=per_sample)):
                for layers in of_tokens:
                    expected[i, layers] += 1 / len(layers)
            assert drawn.shares.tolist() == pytest.approx(expected, rel=FLOAT32_TOLERANCE)
            assert drawn.shares.sum(dim=1).tolist() == pytest.approx([TOKENS] * STUDENT, rel=FLOAT32_TOLERANCE)
            assert not drawn.shares.requires_grad

    @pytest.mark.parametrize("strategy", ["joint", "viterbi", "adaptive", "bottom-3"])
    def test_where_a_match_was_to_be_expected_is_summed_over_tokens(self, strategy: str) -> None:
        """Of `joint` the mean over all paths, of each sample's own costs. Red if samples count alike."""
        matching = {"strategy": strategy, "per_sample": True}
        drawn = draw(make_world().costs(), **matching)
        of_sample = expected_matches(drawn.reduced, drawn.matches, Matching(**matching))
        assert drawn.expected.tolist() == pytest.approx(of_sample[ROWS].sum(dim=0).tolist(), rel=FLOAT32_TOLERANCE)
        places = drawn.shares @ torch.arange(TEACHER).float()
        assert (drawn.expected.tolist() == pytest.approx(places.tolist(), rel=1e-3)) == (strategy != "joint")

    @pytest.mark.parametrize("strategy", ["joint", "viterbi", "adaptive", "random"])
    @pytest.mark.parametrize("per_sample", [False, True])
    def test_how_open_the_choice_was_is_summed_over_tokens(self, strategy: str, per_sample: bool) -> None:
        """Red if samples count alike."""
        matching = {"strategy": strategy, "per_sample": per_sample}
        drawn = draw(make_world().costs(), sharpness=5.0, **matching)
        of_group = match_entropy(drawn.reduced, Matching(**matching), 5.0)
        of_token = of_group[ROWS] if per_sample else of_group.expand(TOKENS)
        assert drawn.entropy.item() == pytest.approx(of_token.sum().item(), rel=FLOAT32_TOLERANCE)
        assert not drawn.entropy.requires_grad

    def test_a_sharper_draw_is_a_surer_one(self) -> None:
        costs = make_world().costs()
        sure = {str(draw(costs, seed=seed, strategy="joint", sharpness=1e6).matches.tolist()) for seed in range(20)}
        even = {str(draw(costs, seed=seed, strategy="joint", sharpness=1e-6).matches.tolist()) for seed in range(20)}
        assert len(sure) == 1 < len(even)

    def test_per_sample_draws_one_match_for_each_sample(self) -> None:
        """Twelve seeds: some draw differs between samples. Red if all samples get the first one's match."""
        costs = make_world().costs()
        drawn = [draw(costs, seed=seed, per_sample=True).matches.tolist() for seed in range(12)]
        assert any(len({str(group) for group in groups}) > 1 for groups in drawn)

    def test_samples_need_not_lie_in_a_row(self) -> None:
        """Tokens of two samples in turns: each learns from its own sample's match."""
        world, rows = make_world(), torch.tensor([1, 0, 1, 0, 0, 1, 1, 0, 1])
        drawn = draw(world.costs(), rows=rows, seed=2, strategy="random", per_sample=True)
        assert drawn.matches[0].tolist() != drawn.matches[1].tolist(), "both samples drew the same"
        assert_matched(world, drawn.losses, [[drawn.matches[row, i].tolist() for row in rows] for i in range(STUDENT)])

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("per_sample", [False, True])
    def test_the_draw_sees_each_groups_reduced_prices(self, reduction: str, per_sample: bool) -> None:
        """Red if tokens of one sample count for another, or `mean` divides by all tokens of the batch."""
        world = make_world()
        reduced = draw(world.costs(), reduction=reduction, per_sample=per_sample).reduced
        rows = ROWS.numpy() if per_sample else np.zeros(TOKENS, int)
        for group in range(rows.max() + 1):
            for i in range(STUDENT):
                for j in range(TEACHER):
                    exact = getattr(world.exact_price(i, j)[rows == group], reduction)()
                    assert_near(reduced[group, i, j], exact, f"group {group}, pair {i}, {j}")

    def test_the_reduction_changes_the_draw_and_never_the_loss(self) -> None:
        """With equal layer counts the match is forced: the loss is the same. Otherwise `sum` draws colder."""
        forced = make_world(teacher_layers=STUDENT).costs()
        losses = [draw(forced, reduction=reduction).losses for reduction in ("mean", "sum")]
        assert torch.equal(*losses)
        free = make_world().costs()
        drawn = {
            reduction: {str(draw(free, seed=seed, reduction=reduction).matches.tolist()) for seed in range(40)}
            for reduction in ("mean", "sum")
        }
        assert len(drawn["sum"]) < len(drawn["mean"]), {reduction: len(paths) for reduction, paths in drawn.items()}

    def test_the_search_itself_gives_no_gradient(self) -> None:
        """Prices hang on one parameter, the chosen pairs on another. Red if the draw is differentiated."""

        class Costs:
            searched = torch.ones((), requires_grad=True)
            learned = torch.ones((), requires_grad=True)

            def all_pairs(self) -> Tensor:
                return self.searched * torch.arange(TEACHER).float()[None, :, None].expand(STUDENT, TEACHER, TOKENS)

            def matched(self, teacher_layer: Tensor) -> Tensor:
                return self.learned * teacher_layer.float()

        costs = Costs()
        drawn = draw(costs)
        drawn.losses.sum().backward()
        assert not drawn.shares.requires_grad
        assert costs.searched.grad is None
        assert costs.learned.grad.item() == TOKENS * drawn.matches.sum().item()

    def test_draws_come_from_the_given_generator(self) -> None:
        """Its state belongs to the checkpoint. Red if the global generator has a say."""
        costs = make_world().costs()
        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            results.append([draw(costs, seed=s).matches.tolist() for s in range(20)])
        assert results[0] == results[1]
        assert len({str(matches) for matches in results[0]}) > 1

    @pytest.mark.parametrize("counts", [True, False])
    def test_a_common_draw_of_one_process_is_its_own(self, counts: bool) -> None:
        """`sync` without other workers changes nothing, bit for bit; nor does `counts` without `sync`."""
        costs = make_world().costs()
        for seed in range(5):
            alone, common = draw(costs, seed=seed, counts=counts), draw(costs, seed=seed, sync=True)
            for ours, expected in zip(common, alone, strict=True):
                assert torch.equal(ours, expected)

    @pytest.mark.parametrize("per_sample", [False, True])
    def test_autocast_changes_nothing(self, per_sample: bool) -> None:
        """300 and 701 tokens: bfloat16 has no number 701. Red if a loss, a price or a count passes through it."""
        generator = torch.Generator().manual_seed(0)
        rows = (torch.arange(1001) >= 300).long()
        head = Head(torch.randn(70, WIDTH, generator=generator))
        said = [torch.randn(1001, WIDTH, generator=generator, requires_grad=True) for _ in range(STUDENT)]
        moments = torch.randn(TEACHER, 1001, WIDTH, generator=generator) / 10
        teacher = Target(moments, torch.rand(TEACHER, 1001, generator=generator))
        plain = draw(KLCosts(said, head, teacher), rows=rows, per_sample=per_sample)
        with torch.autocast("cpu", torch.bfloat16):
            under = draw(KLCosts(said, head, teacher), rows=rows, per_sample=per_sample)
        for name, ours, expected in zip(Drawn._fields, under, plain, strict=True):
            assert ours.dtype == expected.dtype, f"{name} are {ours.dtype}"
            assert torch.equal(ours, expected), f"{name}: {(ours - expected).abs().max().item():.1e} apart"


class TestNotFinite:
    """A NaN or an infinity in what is compared: it stays at its layers and tokens, and is named."""

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_a_broken_teacher_layer_names_its_samples(self, value: float) -> None:
        """Tokens 1 and 7 belong to alpha and gamma; beta is well."""
        world = make_world()
        world.teacher.entropy[3, [1, 7]] = value
        bad = ~world.costs().all_pairs().isfinite()
        assert bad.any(dim=0).nonzero().tolist() == [[3, 1], [3, 7]]
        assert bad[:, 3, [1, 7]].all()
        message = complaint(world)
        assert "layer block 4, block 8, block 12 for samples alpha, gamma;" in message, message

    def test_a_broken_student_layer_is_named(self) -> None:
        world = make_world()
        with torch.no_grad():
            world.said[1][4] = float("nan")
        bad = ~world.costs().all_pairs().isfinite()
        assert bad.nonzero().tolist() == [[1, j, 4] for j in range(TEACHER)]
        message = complaint(world)
        assert "layer block 8 for samples beta;" in message, message


def complaint(world: World) -> str:
    """What interaction stops with before it draws from these prices."""
    from stages.contract import StageError
    from stages.data.encoding import Batch
    from stages.training.objective import check_finite  # imports transformers, which the processes below do without

    batch = Batch(SAMPLES, {}, ROWS, ROWS, ROWS)
    with pytest.raises(StageError, match="not finite") as error:
        check_finite(world.costs().all_pairs().sum(dim=1), ["block 4", "block 8", "block 12"], batch)
    return str(error.value)


def test_feature_distances_are_mean_squares() -> None:
    """The ablation's L2 on features, values and gradient. Red if the width is summed instead of averaged."""
    generator = torch.Generator().manual_seed(0)
    projected = [torch.randn(TOKENS, 6, generator=generator, requires_grad=True) for _ in range(STUDENT)]
    teacher = torch.randn(TEACHER, TOKENS, 6, generator=generator)
    costs = FeatureCosts(projected, teacher)
    prices = costs.all_pairs()
    assert prices.shape == (STUDENT, TEACHER, TOKENS)
    assert not prices.requires_grad
    exact = [x.detach().double().numpy() for x in projected], teacher.double().numpy()
    for i in range(STUDENT):
        for j in range(TEACHER):
            assert_near(prices[i, j], ((exact[0][i] - exact[1][j]) ** 2).mean(axis=-1), f"price of pair {i}, {j}")
    losses = costs.matched(LAYER_OF_TOKEN)
    drawn = draw(costs)
    for i, of_tokens in enumerate(LAYER_OF_TOKEN):
        chosen = exact[1][of_tokens.numpy(), np.arange(TOKENS)]
        gradients = torch.autograd.grad(losses[i].sum(), projected, retain_graph=True, materialize_grads=True)
        assert_near(losses[i].detach(), ((exact[0][i] - chosen) ** 2).mean(axis=-1), f"losses of layer {i}")
        assert_near(gradients[i], 2 * (exact[0][i] - chosen) / 6, f"gradient of layer {i}")
        assert sum(bool(gradient.any()) for gradient in gradients) == 1, f"the loss of layer {i} pulls at others"
        j = drawn.matches[0, i].item()
        assert_near(drawn.losses[i].detach(), ((exact[0][i] - exact[1][j]) ** 2).mean(axis=-1), "losses of the draw")


WORKERS = 2
TOKENS_OF_WORKER = (6, 3)
"""Unequal, so that a mean over workers is not a mean over tokens."""
SEEDS = 40
SCENARIOS: dict[str, dict[str, object]] = {
    "common": {"sync": True},
    "common, sum": {"sync": True, "reduction": "sum"},
    "common, the second fills up": {"sync": True},
    "each its own": {},
    "each its own, the second fills up": {},
}
Outcome = dict[str, list[tuple[Tensor, Tensor, Tensor, Tensor]]]


class GivenCosts:
    """Costs out of a table [t_s, t_l, N]."""

    def __init__(self, table: Tensor) -> None:
        self._table = table

    def all_pairs(self) -> Tensor:
        return self._table

    def matched(self, teacher_layer: Tensor) -> Tensor:
        return self._table.gather(1, teacher_layer[:, None])[:, 0]


def micro_batches() -> list[Tensor]:
    """Costs [t_s, t_l, N] of each worker; the second worker's differ in kind, so that their draws do."""
    generator = torch.Generator().manual_seed(0)
    tables = [4 * torch.rand(STUDENT, TEACHER, tokens, generator=generator) for tokens in TOKENS_OF_WORKER]
    return [tables[0], tables[1] + 3 * torch.arange(TEACHER).flip(0)[None, :, None]]


def draw_table(table: Tensor, seed: int, *, counts: bool = True, **settings: object) -> Drawn:
    return draw(
        GivenCosts(table), seed=seed, rows=torch.zeros(table.shape[2], dtype=torch.long), counts=counts, **settings
    )


def work(rank: int, folder: Path) -> None:
    """One worker of a gloo group: every scenario with every seed, written to its file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORKERS)
    table = micro_batches()[rank]
    outcome: Outcome = {}
    for name, settings in SCENARIOS.items():
        counts = not (rank == 1 and "fills up" in name)
        outcome[name] = [tuple(draw_table(table, seed, counts=counts, **settings)) for seed in range(SEEDS)]
    torch.save(outcome, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[Drawn]]]:
    """By scenario, worker and seed, from two processes of one group."""
    folder = tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(work, (folder,), nprocs=WORKERS)
    loaded: list[Outcome] = [torch.load(folder / f"{rank}.pt") for rank in range(WORKERS)]
    return {name: [[Drawn(*parts) for parts in outcome[name]] for outcome in loaded] for name in SCENARIOS}


def assert_drawn_as(worker: list[Drawn], expected: Callable[[int], Drawn]) -> None:
    for seed, drawn in enumerate(worker):
        one = expected(seed)
        assert_near(drawn.reduced, one.reduced, f"costs of seed {seed}")
        assert torch.equal(drawn.matches, one.matches), f"seed {seed}: {drawn.matches.tolist()}, {one.matches.tolist()}"


class TestTwoWorkers:
    """A real group of two processes, against one process."""

    @pytest.mark.parametrize(("scenario", "reduction"), [("common", "mean"), ("common, sum", "sum")])
    def test_with_sync_they_draw_as_one_worker_with_both_micro_batches(
        self, scenario: str, reduction: str, outcomes: dict[str, list[list[Drawn]]]
    ) -> None:
        """Red if costs are averaged over workers instead of tokens, or each worker draws with its own costs."""
        together = torch.cat(micro_batches(), dim=2)
        for worker in outcomes[scenario]:
            assert_drawn_as(worker, lambda seed: draw_table(together, seed, reduction=reduction))

    @pytest.mark.parametrize("scenario", ["each its own", "each its own, the second fills up"])
    def test_without_sync_each_draws_from_its_own(self, scenario: str, outcomes: dict[str, list[list[Drawn]]]) -> None:
        """Red if workers wait for each other, or a filling micro-batch loses its draw."""
        for worker, table in zip(outcomes[scenario], micro_batches(), strict=True):
            assert_drawn_as(worker, lambda seed, table=table: draw_table(table, seed))
        pairs = zip(*outcomes[scenario], strict=True)
        assert any(not torch.equal(one.matches, other.matches) for one, other in pairs), "they never differ"

    def test_a_filling_micro_batch_has_no_say_in_a_common_draw(self, outcomes: dict[str, list[list[Drawn]]]) -> None:
        """Both draw as the first worker alone would. Red if the second's costs or its tokens count."""
        for worker in outcomes["common, the second fills up"]:
            assert_drawn_as(worker, lambda seed: draw_table(micro_batches()[0], seed))

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_each_learns_on_its_own_tokens(self, scenario: str, outcomes: dict[str, list[list[Drawn]]]) -> None:
        """Losses and shares are of the worker's own micro-batch, whoever drew."""
        for worker, table, tokens in zip(outcomes[scenario], micro_batches(), TOKENS_OF_WORKER, strict=True):
            for drawn in worker:
                layers = drawn.matches[0, :, 0]
                assert torch.equal(drawn.losses, table[torch.arange(STUDENT), layers])
                assert torch.equal(drawn.shares, tokens * torch.eye(TEACHER)[layers])

    def test_the_scenarios_can_be_told_apart(self) -> None:
        """The control: a mean over workers, or either worker alone, draws differently for some of the seeds."""
        first, second = micro_batches()
        of_workers = torch.stack([first.mean(dim=2), second.mean(dim=2)], dim=2)
        drawn = [
            [draw_table(table, seed).matches.tolist() for seed in range(SEEDS)]
            for table in (torch.cat([first, second], dim=2), of_workers, first, second)
        ]
        differing = [sum(one != together for one, together in zip(other, drawn[0], strict=True)) for other in drawn[1:]]
        assert min(differing) > 0, f"of {SEEDS} seeds {differing} draw differently"
