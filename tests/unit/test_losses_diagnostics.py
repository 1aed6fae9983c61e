"""The quantities logged about a batch of pairs."""

import math

import torch

from decdpo.losses.balanced import NbDPO
from decdpo.losses.base import PairLogProbs
from decdpo.losses.diagnostics import (
    chosen_drift,
    imbalance_log_ratio,
    loss_imbalance_log_ratio,
    saturated,
)
from decdpo.losses.dpo import DPO


def make_pairs() -> PairLogProbs:
    lengths = torch.tensor([3, 4, 5])
    return PairLogProbs(
        chosen=torch.tensor([-2.0, -5.0, -1.0], dtype=torch.float64, requires_grad=True),
        rejected=torch.tensor([-3.0, -1.0, -60.0], dtype=torch.float64, requires_grad=True),
        ref_chosen=torch.tensor([-1.0, -5.5, -1.0], dtype=torch.float64),
        ref_rejected=torch.tensor([-3.0, -1.0, -1.0], dtype=torch.float64),
        chosen_length=lengths,
        rejected_length=lengths,
    )


def test_imbalance_is_that_of_the_gradients_on_the_probabilities() -> None:
    pairs = make_pairs()
    pi_w = pairs.chosen.detach().exp().requires_grad_()
    pi_l = pairs.rejected.detach().exp().requires_grad_()
    z = 0.1 * ((pi_w.log() - pairs.ref_chosen) - (pi_l.log() - pairs.ref_rejected))
    by_w, by_l = torch.autograd.grad(torch.log1p(torch.exp(-z)).sum(), (pi_w, pi_l))
    ratio = imbalance_log_ratio(pairs)
    torch.testing.assert_close(ratio, (by_w.abs() / by_l.abs()).log())
    assert ratio[0] < 0 < ratio[1]
    assert not ratio.requires_grad


def test_imbalance_of_a_loss_follows_its_own_gradients() -> None:
    pairs = make_pairs()
    for loss in (DPO(), NbDPO(clip=0.5)):
        grads = torch.autograd.grad(loss(pairs).sum(), (pairs.chosen, pairs.rejected))
        ratio = loss_imbalance_log_ratio(pairs, *grads)
        lam = loss.weight(pairs).detach() if isinstance(loss, NbDPO) else torch.ones(3)
        torch.testing.assert_close(ratio, imbalance_log_ratio(pairs) + lam.log())


def test_imbalance_of_a_flat_loss_is_finite() -> None:
    pairs = make_pairs()
    zero = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(loss_imbalance_log_ratio(pairs, zero, zero), imbalance_log_ratio(pairs))
    assert torch.isfinite(loss_imbalance_log_ratio(pairs, zero, zero + 1.0)).all()


def test_drift_is_the_change_of_the_chosen_answer() -> None:
    expected = torch.tensor([-1.0, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(chosen_drift(make_pairs()), expected)
    assert not chosen_drift(make_pairs()).requires_grad


def test_saturated_pairs_are_those_with_a_small_gradient() -> None:
    pairs = make_pairs()  # margins -1, 0.5 and 59 nats
    assert saturated(pairs, beta=0.1).tolist() == [False, False, True]
    edge = math.log(99.0)  # sigma(-z) = 0.01
    assert saturated(pairs, beta=0.999 * edge / 59.0).tolist() == [False, False, False]
    assert saturated(pairs, beta=0.1, threshold=0.4).tolist() == [False, False, True]
    assert saturated(pairs, beta=2.0, threshold=0.3).tolist() == [False, True, True]
