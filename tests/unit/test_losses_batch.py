"""Losses that look at a whole batch: beta-DPO with its running mean, and KTO."""

import math

import pytest
import torch
from torch import Tensor

from decdpo.losses.base import PairScores
from decdpo.losses.beta_dpo import BetaDPO
from decdpo.losses.dpo import DPO
from decdpo.losses.kto import KTO, UnpairedKTO, reference_point


def pairs_with(h_w: list[float], h_l: list[float]) -> PairScores:
    """Return pairs with these log-ratios, float64."""
    ref = torch.full((len(h_w),), -20.0, dtype=torch.float64)
    lengths = torch.full((len(h_w),), 5)
    return PairScores(
        chosen=(ref + torch.tensor(h_w, dtype=torch.float64)).requires_grad_(),
        rejected=(ref + torch.tensor(h_l, dtype=torch.float64)).requires_grad_(),
        ref_chosen=ref,
        ref_rejected=ref,
        chosen_length=lengths,
        rejected_length=lengths,
    )


def mean_of(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_a_batch_at_the_running_mean_gets_dpo() -> None:
    pairs = pairs_with([1.0, 2.0], [0.5, -0.5])  # gaps 0.5 and 2.5
    loss = BetaDPO(beta=0.2).at(mean_of(1.5))
    torch.testing.assert_close(loss(pairs), DPO(beta=0.2)(pairs))


def test_beta_rises_with_the_gap_of_the_batch() -> None:
    loss = BetaDPO(beta=0.2, alpha=0.5)
    pairs = pairs_with([3.0, 2.0], [0.0, 0.0])
    beta = loss.at(mean_of(1.0)).batch_beta(pairs)
    torch.testing.assert_close(beta, torch.tensor([0.2 * (1 + 0.5 * 1.5)], dtype=torch.float64))
    torch.testing.assert_close(loss.at(mean_of(1.0))(pairs), DPO(beta=beta.item())(pairs))


def test_beta_never_falls_below_its_minimum() -> None:
    loss = BetaDPO(beta=0.2, alpha=0.5, beta_min=0.05).at(mean_of(100.0))
    pairs = pairs_with([1.0], [0.0])
    assert loss.batch_beta(pairs).item() == 0.05
    assert loss.beta == 0.2


def test_no_gradient_flows_through_beta() -> None:
    pairs = pairs_with([1.0, 2.0], [0.5, -0.5])
    loss = BetaDPO(alpha=0.5).at(mean_of(0.0))
    fixed = DPO(beta=loss.batch_beta(pairs).item())
    ours = torch.autograd.grad(loss(pairs).sum(), pairs.chosen)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(fixed(pairs).sum(), pairs.chosen)[0])


def test_running_mean_is_the_exponential_average_of_batch_gaps() -> None:
    loss = BetaDPO(momentum=0.8)
    mean = mean_of(0.0)
    gaps = [2.0, -1.0, 0.5]
    for gap in gaps:
        before = mean.clone()
        new = loss.update(mean, pairs_with([gap + 1.0, gap - 1.0], [0.0, 0.0]))
        assert torch.equal(mean, before)
        mean = new
    expected = sum(0.2 * 0.8 ** (2 - k) * gap for k, gap in enumerate(gaps))
    assert mean.shape == (1,)
    assert not mean.requires_grad
    assert mean.item() == pytest.approx(expected, rel=1e-14)


def test_averaging_states_and_updating_commute() -> None:
    """Neighbours may gossip the running mean: it is linear in the states and the gaps."""
    loss = BetaDPO()
    first, second = pairs_with([2.0], [0.0]), pairs_with([-4.0], [0.0])
    both = pairs_with([2.0, -4.0], [0.0, 0.0])
    after = 0.5 * (loss.update(mean_of(1.0), first) + loss.update(mean_of(3.0), second))
    torch.testing.assert_close(after, loss.update(mean_of(2.0), both))


def test_unpaired_kto_of_each_kind_of_answer() -> None:
    ratio = torch.tensor([2.0, 2.0, -1.0, -1.0], dtype=torch.float64)
    desirable = torch.tensor([True, False, True, False])
    losses = UnpairedKTO(0.5, desirable_weight=2.0, undesirable_weight=3.0)(ratio, desirable, 1.0)

    def sigma(u: float) -> float:
        return 1 / (1 + math.exp(-u))

    expected = [2 * sigma(-0.5), 3 * sigma(0.5), 2 * sigma(1.0), 3 * sigma(-1.0)]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


def test_reference_point_is_a_mean_never_below_zero_and_without_gradient() -> None:
    ratios = torch.tensor([1.0, 4.0], requires_grad=True)
    assert reference_point(ratios).item() == 2.5
    assert reference_point(-ratios).item() == 0.0
    assert not reference_point(ratios).requires_grad


def test_paired_kto_measures_each_side_against_the_other() -> None:
    pairs = pairs_with([3.0, 1.0], [0.5, 2.5])
    answers = UnpairedKTO(0.3, 1.2, 0.8)

    def side(ratio: Tensor, desirable: bool, z0: float) -> Tensor:
        return answers(ratio, torch.full(ratio.shape, desirable), z0)

    expected = 0.5 * (
        side(pairs.chosen_ratio, True, 1.5) + side(pairs.rejected_ratio, False, 2.0)
    )
    torch.testing.assert_close(KTO(0.3, 1.2, 0.8)(pairs), expected)


def test_kto_keeps_the_digits_of_small_losses() -> None:
    """1 - sigma(u) would round to 0 here, and so would its gradient."""
    ratio = torch.tensor([500.0], dtype=torch.float32)
    loss = UnpairedKTO(beta=0.1)(ratio, torch.tensor([True]), 0.0)
    assert loss.item() == pytest.approx(math.exp(-50.0), rel=1e-4)
