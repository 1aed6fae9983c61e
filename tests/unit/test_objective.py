"""The objective and its statistics against definitions written out in double precision."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from decdpo.data.shard import PreferenceShard
from decdpo.errors import NumericalError, PolicyError
from decdpo.losses.base import PairScores
from decdpo.losses.catalogue import LOSS_CLASSES
from decdpo.losses.dpo import DPO
from decdpo.params.flat import FlatParams
from decdpo.policies.loglinear import LogLinear
from decdpo.policies.objective import Batch, Objective, check_start
from decdpo.policies.stats import METRICS, SATURATED_MARGIN, Stats

NUM = 12
PAIR_LOSSES = [LOSS_CLASSES[name] for name in LOSS_CLASSES if name != "beta_dpo"]


def shard(**columns):
    rng = np.random.default_rng(0)
    features = {
        "chosen_features": rng.standard_normal((NUM, 4)),
        "rejected_features": rng.standard_normal((NUM, 4)),
    }
    return PreferenceShard.from_pairs(
        [("p", "c", "r")] * NUM, num_train=8, agent=5, columns={**features, **columns}
    )


@pytest.fixture
def policy():
    return LogLinear(4, features="columns", dtype="float64", reference=[0.1, -0.2, 0.3, 0.0])


@pytest.fixture
def params(policy):
    return FlatParams(policy.layout, torch.tensor([3.0, -2.0, 1.0, 0.5], dtype=torch.float64))


@dataclass(frozen=True)
class ChosenOnly:
    """A loss that ignores the rejected answer."""

    beta: float = 1.0

    def __call__(self, pairs: PairScores) -> torch.Tensor:
        return -pairs.chosen_ratio


@dataclass(frozen=True)
class Scored:
    """A loss that needs the score column."""

    beta: float = 1.0

    def __call__(self, pairs: PairScores) -> torch.Tensor:
        assert pairs.score_gap is not None
        return pairs.score_gap * (pairs.rejected_ratio - pairs.chosen_ratio)


@dataclass(frozen=True)
class Softplus:
    """A loss whose last few values in a vector torch rounds otherwise than the rest."""

    beta: float = 1.0

    def __call__(self, pairs: PairScores) -> torch.Tensor:
        return torch.nn.functional.softplus(pairs.rejected_ratio - pairs.chosen_ratio)


def test_metrics_are_what_their_names_say(policy, params):
    data, beta = policy.encode(shard()), 2.0
    means = Objective(policy, DPO(beta)).gradient(params, data, np.arange(NUM)).means()
    assert tuple(means) == METRICS
    logps = policy.forward(params, data, np.arange(NUM)).scores
    w, l, rw, rl = (
        t.numpy() for t in (logps.chosen, logps.rejected, logps.ref_chosen, logps.ref_rejected)
    )
    margins = beta * ((w - rw) - (l - rl))
    sigma = 1 / (1 + np.exp(-margins))
    expected = {
        "loss": np.log1p(np.exp(-margins)),
        "rewards/chosen": beta * (w - rw),
        "rewards/rejected": beta * (l - rl),
        "rewards/margins": margins,
        "rewards/accuracies": margins > 0,
        "logps/chosen": w,
        "logps/rejected": l,
        "drift/chosen": w - rw,
        "imbalance/log_ratio": l - w,
        "saturated": sigma * (1 - sigma) < 0.01,
    }
    assert 0 < expected["saturated"].mean() < 1
    for name, values in expected.items():
        assert means[name] == pytest.approx(values.mean(), rel=1e-10), name


def test_saturation_begins_where_the_slope_of_the_sigmoid_is_a_hundredth():
    sigma = 1 / (1 + np.exp(-SATURATED_MARGIN))
    assert sigma * (1 - sigma) == pytest.approx(0.01, rel=1e-12)


def test_ties_count_half_and_rewards_vanish_at_the_reference(policy):
    params = FlatParams(policy.layout, policy.initial())
    data = policy.encode(shard())
    check_start(policy, data)
    means = Objective(policy, DPO()).gradient(params, data, np.arange(8)).means()
    assert means["rewards/accuracies"] == 0.5
    assert means["rewards/chosen"] == means["rewards/rejected"] == means["rewards/margins"] == 0
    assert means["loss"] == pytest.approx(np.log(2), rel=1e-15)


def test_the_imbalance_of_any_loss_comes_from_its_cotangents(policy, params):
    data = policy.encode(shard(score_chosen=np.arange(NUM) + 2.0, score_rejected=np.ones(NUM)))
    rows = np.array([3, 1])
    logps = policy.forward(params, data, rows).scores
    expected = (logps.rejected - logps.chosen).mean().item()
    means = Objective(policy, Scored()).gradient(params, data, rows).means()
    assert means["imbalance/log_ratio"] == pytest.approx(expected, rel=1e-12)


def test_a_loss_may_ignore_one_answer(policy, params):
    data = policy.encode(shard())
    stats = Objective(policy, ChosenOnly()).gradient(params, data, np.arange(8))
    forward = policy.forward(params, data, np.arange(8))
    expected = torch.zeros_like(params.data)
    forward.params = FlatParams(policy.layout, params.data, expected)
    slope = torch.full((8,), -1 / 8).double()
    forward.backward({"chosen": slope, "rejected": torch.zeros_like(slope)})
    assert (params.grad == expected).all() and params.grad.any()
    assert stats.means()["imbalance/log_ratio"] > 600


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_is_a_finite_difference_of_the_loss(policy, params, weighted):
    weight = np.linspace(0, 3, NUM)
    data = policy.encode(shard(**({"weight": weight} if weighted else {})))
    rows = np.array([7, 2, 2, 5])
    objective = Objective(policy, DPO(0.5))
    objective.gradient(params, data, rows)
    scale = weight[rows] / weight[:8].mean() if weighted else np.ones(4)

    def value(x):
        moved = FlatParams(policy.layout, x)
        each = [objective.evaluate(moved, data, rows[i : i + 1]).means()["loss"] for i in range(4)]
        return float(np.mean(scale * each))

    for i in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = 1e-5
        slope = (value(params.data + step) - value(params.data - step)) / 2e-5
        assert params.grad[i].item() == pytest.approx(slope, rel=1e-8)


def test_weighted_means_weigh_and_pairs_without_weight_do_not_count(policy, params):
    weight = np.where(np.arange(NUM) % 2, 3.0, 0.0)
    weighed, plain = policy.encode(shard(weight=weight)), policy.encode(shard())
    objective = Objective(policy, DPO())
    a = objective.evaluate(params, weighed, np.arange(NUM))
    b = objective.evaluate(params, plain, np.arange(1, NUM, 2))
    assert a.count == b.count == 6
    assert a.means() == pytest.approx(b.means(), rel=1e-12)
    assert objective.evaluate(params, weighed, np.array([0, 2])).means() == {}


def test_the_gradient_overwrites_and_evaluation_leaves_it(policy, params):
    data, objective = policy.encode(shard()), Objective(policy, DPO())
    params.grad.fill_(9.0)
    objective.evaluate(params, data, np.arange(NUM), batch_size=5)
    assert (params.grad == 9).all()
    objective.gradient(params, data, np.arange(8))
    first = params.grad.clone()
    objective.gradient(params, data, np.arange(8))
    assert (params.grad == first).all()


def test_statistics_add_up_over_batches(policy, params):
    data, objective = policy.encode(shard()), Objective(policy, DPO())
    whole = objective.evaluate(params, data, np.arange(NUM))
    parts = objective.evaluate(params, data, np.arange(NUM), batch_size=5)
    assert parts.count == whole.count == NUM
    assert parts.values == pytest.approx(whole.values, rel=1e-12)
    again = whole + Stats.zero()
    assert again.means() == whole.means()
    assert Stats.zero().means() == {} and Stats.zero().count == 0


@pytest.mark.parametrize(
    "value, named", [(np.nan, r"log pi\(chosen\) is nan"), (np.inf, r"log pi\(rejected\) is -inf")]
)
def test_a_value_that_is_not_finite_names_agent_and_rows(policy, params, value, named):
    data, objective = policy.encode(shard()), Objective(policy, DPO())
    data.differences.values[4 * 6] = value
    with pytest.raises(NumericalError, match=f"agent 5: {named}") as caught:
        objective.gradient(params, data, np.array([1, 6, 3]))
    assert "shard row 6 (source row 7)" in str(caught.value)
    with pytest.raises(NumericalError, match="agent 5"):
        objective.evaluate(params, data, np.arange(NUM))


def test_a_foreign_reference_is_noticed_at_the_start(policy):
    data = policy.encode(shard())
    other = LogLinear(4, features="columns", dtype="float64")
    with pytest.raises(PolicyError, match=r"agent 5: at step 0 .* shard row 0 \(source row 1\)"):
        check_start(other, data)
    broken = data.ref_rejected.copy()
    broken[9] = np.nan
    data = replace(data, ref_rejected=broken)
    check_start(policy, data, batch_size=4)
    with pytest.raises(PolicyError, match="shard row 9"):
        check_start(policy, data, batch_size=4, batches=3)


def agents_apart(policy, weighted):
    """Return batches of unequal size, one with repeated pairs, of agents with own models."""
    batches = []
    for agent, size in enumerate((1, 7, 31, 32, 33, 40)):
        rng = np.random.default_rng(agent)
        features = {
            "chosen_features": rng.standard_normal((24, 4)),
            "rejected_features": rng.standard_normal((24, 4)),
            "score_chosen": rng.uniform(2, 3, 24),
            "score_rejected": rng.uniform(0, 1, 24),
        }
        if weighted:
            features["weight"] = rng.integers(0, 3, 24).astype(float)
        data = policy.encode(
            PreferenceShard.from_pairs(
                [("p", "c", "r")] * 24, num_train=24, agent=agent, columns=features
            )
        )
        x = torch.from_numpy(4 * rng.standard_normal(4)).to(policy.layout.dtype)
        rows = rng.integers(0, 24, size)
        batches.append(Batch(FlatParams(policy.layout, x), data, rows))
    return batches


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", [Softplus, *PAIR_LOSSES])
def test_agents_scored_together_have_the_bits_of_agents_scored_alone(loss, dtype, weighted):
    policy = LogLinear(4, features="columns", dtype=dtype)
    objective = Objective(policy, loss())
    batches = agents_apart(policy, weighted)
    together = list(objective.gradients(batches))
    grads = [batch.params.grad.clone() for batch in batches]
    evaluated = objective.evaluations(batches, batch_size=9)
    for batch, stats, grad, held in zip(batches, together, grads, evaluated):
        alone = objective.gradient(*batch[:3])
        assert (alone.values == stats.values).all()
        assert torch.equal(batch.params.grad, grad) and grad.any()
        assert (objective.evaluate(*batch[:3], batch_size=9).values == held.values).all()


def test_a_batch_may_change_its_model_once_it_is_yielded(policy):
    batches, objective = agents_apart(policy, False), Objective(policy, DPO())
    shared = torch.zeros(4, dtype=torch.float64)
    alone = []
    for batch in batches:
        objective.gradient(*batch[:3])
        alone.append(batch.params.grad.clone())
    lent = [b._replace(params=FlatParams(policy.layout, b.params.data, shared)) for b in batches]
    for batch, expected, _ in zip(lent, alone, objective.gradients(lent)):
        assert torch.equal(shared, expected)
        batch.params.data.fill_(1e3)


def test_a_fault_in_a_group_names_its_own_agent(policy):
    batches, objective = agents_apart(policy, False), Objective(policy, DPO())
    _, data, rows, *_ = batches[3]
    data.differences.values[4 * rows[5]] = np.nan
    with pytest.raises(NumericalError, match=rf"agent 3: .* shard row {rows[5]}\b"):
        list(objective.gradients(batches))


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_the_objective_is_the_mean_of_the_loss_over_the_batch_alone(loss):
    policy = LogLinear(4, features="columns", dtype="float64")
    for params, data, rows, *_ in agents_apart(policy, False):
        pairs = policy.forward(params, data, rows).scores
        stats = Objective(policy, loss()).gradient(params, data, rows)
        assert stats.means()["loss"] == pytest.approx(loss()(pairs).mean().item(), rel=1e-12)


def test_a_group_stays_below_what_torch_would_divide_between_threads(policy):
    data, objective = policy.encode(shard()), Objective(policy, DPO())
    params = FlatParams(policy.layout, policy.initial())
    batches = [Batch(params, data, np.arange(size)) for size in (1, 8, 3) * 500]
    seen = []

    @dataclass(frozen=True)
    class Watching(DPO):
        def __call__(self, pairs: PairScores) -> torch.Tensor:
            seen.append(len(pairs.chosen))
            return super().__call__(pairs)

    watched = Objective(policy, Watching()).evaluations(batches)
    assert max(seen) < 32_768 and len(seen) < len(batches) / 50
    for batch, stats in zip(batches[:3], watched):
        assert (stats.values == objective.evaluate(*batch[:3]).values).all()


class Watched:
    """A policy that splits every batch into parts of ``size`` pairs, and counts its passes."""

    concurrent = False

    def __init__(self, inner, size):
        self.inner, self.size = inner, size
        self.alive, self.most, self.forwards = 0, 0, 0
        self.layout = inner.layout

    def parts(self, data, rows):
        return [rows[i : i + self.size] for i in range(0, len(rows), self.size)]

    def forward(self, params, data, rows, *, need_grad=True):
        self.forwards += 1
        self.alive += need_grad
        self.most = max(self.most, self.alive)
        forward = self.inner.forward(params, data, rows)
        through = forward.backward

        def backward(cotangents):
            self.alive -= 1
            through(cotangents)

        forward.backward = backward
        return forward


@pytest.mark.parametrize("loss, forwards", [(DPO(), 3), (LOSS_CLASSES["kto"](), 6)])
def test_a_batch_in_parts_has_the_gradient_of_the_whole_and_one_graph_at_a_time(
    policy, params, loss, forwards
):
    data, rows = policy.encode(shard(weight=np.linspace(1, 3, NUM))), np.arange(NUM)
    whole = Objective(policy, loss).gradient(params, data, rows)
    expected = params.grad.clone()
    watched = Watched(policy, 5)
    stats = Objective(watched, loss).gradient(params, data, rows)
    assert torch.allclose(params.grad, expected, rtol=1e-12, atol=0)
    assert stats.values == pytest.approx(whole.values, rel=1e-12)
    assert watched.most == 1 and watched.forwards == forwards


def test_a_running_loss_sees_all_parts_of_a_batch_before_it_moves_on(policy, params):
    data, loss = policy.encode(shard()), LOSS_CLASSES["beta_dpo"]()
    found = []
    for one in (policy, Watched(policy, 5)):
        running = torch.full((1,), 0.2, dtype=torch.float64)
        batch = Batch(params, data, np.arange(NUM), running)
        next(Objective(one, loss).gradients([batch]))
        found.append((running.clone(), params.grad.clone()))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-12) and found[0][0] != 0.2
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-12)


@dataclass(frozen=True)
class RewardedScores(PairScores):
    """Pair scores with one more leaf: a reward that the policy gives by itself."""

    LEAVES = (*PairScores.LEAVES, "reward")

    reward: torch.Tensor | None = None


@dataclass
class RewardedPass:
    """The pass of a policy within, and the reward theta . dphi of each pair."""

    inner: object
    scores: RewardedScores

    def backward(self, cotangents):
        self.inner.backward(cotangents)
        self.inner.batch.add_combination(
            cotangents["reward"].numpy(), self.inner.params.grad.numpy()
        )


class Rewarding(LogLinear):
    """A log-linear policy whose margin is also an explicit reward."""

    metrics = {"rewards/explicit": lambda pairs: pairs.reward}

    def forward(self, params, data, rows, *, need_grad=True):
        inner = super().forward(params, data, rows)
        reward = torch.from_numpy(inner.batch.margins(params.data.numpy()))
        return RewardedPass(inner, RewardedScores(**vars(inner.scores), reward=reward))


@dataclass(frozen=True)
class ExplicitLoss:
    """-log sigma of the explicit reward, plus half the square of log pi(chosen)."""

    beta: float = 1.0

    def __call__(self, pairs: RewardedScores) -> torch.Tensor:
        return torch.nn.functional.softplus(-pairs.reward) + 0.5 * pairs.chosen.square()


def test_a_policy_and_a_loss_may_have_a_leaf_and_a_metric_of_their_own(params):
    policy = Rewarding(4, features="columns", dtype="float64")
    data, objective = policy.encode(shard()), Objective(policy, ExplicitLoss())
    stats = objective.gradient(params, data, np.arange(8))
    x = params.data.clone().requires_grad_()
    margins = torch.from_numpy(data.differences.batch(np.arange(8)).matrix.toarray()) @ x
    loss = torch.nn.functional.softplus(-margins)
    loss = (loss + 0.5 * torch.nn.functional.logsigmoid(margins).square()).mean()
    loss.backward()
    assert torch.allclose(params.grad, x.grad, rtol=1e-12)
    means = stats.means()
    assert means["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert means["rewards/explicit"] == pytest.approx(margins.mean().item(), rel=1e-12)
    assert tuple(means) == (*METRICS, "rewards/explicit") == objective.no_stats().names
    held = objective.evaluate(params, data, np.arange(8), batch_size=3).means()
    for name in ("loss", "logps/chosen", "rewards/explicit"):
        assert held[name] == pytest.approx(means[name], rel=1e-12)


def test_a_leaf_that_is_not_finite_is_named(params):
    policy = Rewarding(4, features="columns", dtype="float64")
    data = policy.encode(shard())

    class Broken(ExplicitLoss):
        def __call__(self, pairs):
            pairs.reward.data[2] = np.inf
            return super().__call__(pairs)

    with pytest.raises(NumericalError, match="agent 5: reward is inf at shard row 2"):
        Objective(policy, Broken()).gradient(params, data, np.arange(8))
