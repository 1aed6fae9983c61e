"""What the Balanced-DPO paper proves of its losses."""

import numpy as np
import pytest
import torch

from decdpo.losses.balanced import BDPO, NbDPO, NbDPOv2, SymmetricNbDPO, SymmetricNbDPOv2
from decdpo.losses.base import PairLoss, PairScores
from decdpo.losses.dpo import DPO

Array = np.ndarray


def make_pairs(chosen: Array, rejected: Array, at_reference: bool = False) -> PairScores:
    rng = np.random.default_rng(1)
    moved = 0.0 if at_reference else 1.0
    lengths = torch.ones(len(chosen), dtype=torch.int64)
    return PairScores(
        chosen=torch.tensor(chosen, requires_grad=True),
        rejected=torch.tensor(rejected, requires_grad=True),
        ref_chosen=torch.tensor(chosen + moved * rng.normal(size=len(chosen))),
        ref_rejected=torch.tensor(rejected + moved * rng.normal(size=len(chosen))),
        chosen_length=lengths,
        rejected_length=lengths,
    )


def random_pairs(at_reference: bool = False) -> PairScores:
    rng = np.random.default_rng(0)
    chosen = rng.uniform(-5.0, -1.0, 200)
    return make_pairs(chosen, chosen + rng.uniform(-0.9, 0.9, 200), at_reference)


def gradients(loss: PairLoss, pairs: PairScores) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss(pairs).sum(), (pairs.chosen, pairs.rejected))


@pytest.mark.parametrize("kind", [NbDPO, SymmetricNbDPO])
def test_naive_form_has_the_value_of_dpo_to_the_bit(kind: type) -> None:
    pairs = random_pairs()
    assert torch.equal(kind(beta=0.7)(pairs), DPO(beta=0.7)(pairs))


@pytest.mark.parametrize("kind", [NbDPO, SymmetricNbDPO])
def test_naive_form_scales_the_chosen_gradient_by_lam_alone(kind: type) -> None:
    pairs = random_pairs()
    loss = kind(beta=0.7, clip=0.4)
    d_chosen, d_rejected = gradients(loss, pairs)
    dpo_chosen, dpo_rejected = gradients(DPO(beta=0.7), pairs)
    lam = loss.weight(pairs).detach()
    assert ((lam > loss.clip_low + 1.0) & (lam < 1.4)).sum() > 40  # many are not clipped
    torch.testing.assert_close(d_chosen, lam * dpo_chosen, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(d_rejected, dpo_rejected, rtol=1e-13, atol=0.0)


def test_asymmetric_clip_never_takes_weight_off() -> None:
    gaps = np.array([-3.0, -0.2, 0.0, 0.2, 0.5, 3.0])
    pairs = make_pairs(gaps - 4.0, np.full(6, -4.0))
    expected = torch.tensor([1.0, 1.0, 1.0, 1.2, 1.5, 1.5], dtype=torch.float64)
    for kind in (NbDPO, NbDPOv2):
        torch.testing.assert_close(kind(clip=0.5).weight(pairs).detach(), expected)


def test_symmetric_clip_is_the_reciprocal_at_the_other_end() -> None:
    gaps = np.array([-3.0, -0.2, 0.0, 0.2, 0.5, 3.0])
    pairs = make_pairs(gaps - 4.0, np.full(6, -4.0))
    expected = torch.tensor([1.0 / 1.5, 0.8, 1.0, 1.2, 1.5, 1.5], dtype=torch.float64)
    for kind in (SymmetricNbDPO, SymmetricNbDPOv2):
        torch.testing.assert_close(kind(clip=0.5).weight(pairs).detach(), expected)


@pytest.mark.parametrize(("kind", "naive"), [(NbDPOv2, NbDPO), (SymmetricNbDPOv2, SymmetricNbDPO)])
def test_v2_moves_as_the_naive_form_at_the_reference(kind: type, naive: type) -> None:
    pairs = random_pairs(at_reference=True)
    for constant in (False, True):
        for value, expected in zip(
            gradients(kind(constant_weight=constant), pairs), gradients(naive(), pairs)
        ):
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("kind", [NbDPOv2, SymmetricNbDPOv2, BDPO])
def test_a_constant_weight_changes_the_gradient_and_not_the_value(kind: type) -> None:
    pairs = random_pairs()
    flowing, constant = kind(constant_weight=False), kind(constant_weight=True)
    assert torch.equal(flowing(pairs), constant(pairs))
    assert not torch.allclose(gradients(flowing, pairs)[0], gradients(constant, pairs)[0])


@pytest.mark.parametrize("constant", [False, True])
def test_balanced_form_has_the_ratio_of_eq_30_at_the_reference(constant: bool) -> None:
    pairs = random_pairs(at_reference=True)
    by_log_w, by_log_l = gradients(BDPO(constant_weight=constant), pairs)
    log_w, log_l = pairs.chosen.detach(), pairs.rejected.detach()
    pi_w, pi_l = log_w.exp(), log_l.exp()
    ratio = (by_log_w / pi_w) / (by_log_l / pi_l)
    expected = -(pi_l * log_l) / (pi_w * log_w)
    torch.testing.assert_close(ratio, expected, rtol=1e-12, atol=0.0)


def test_dpo_has_the_ratio_of_eq_2() -> None:
    pairs = random_pairs()
    by_log_w, by_log_l = gradients(DPO(), pairs)
    pi_w, pi_l = pairs.chosen.detach().exp(), pairs.rejected.detach().exp()
    torch.testing.assert_close((by_log_w / pi_w) / (by_log_l / pi_l), -pi_l / pi_w)


def test_balanced_weight_favours_the_likelier_answer() -> None:
    pairs = make_pairs(np.array([-1.0, -3.0, -2.0]), np.array([-3.0, -1.0, -2.0]))
    expected = torch.tensor([0.75, 0.25, 0.5], dtype=torch.float64)
    torch.testing.assert_close(BDPO().weight(pairs).detach(), expected)


def test_balanced_weight_of_two_certain_answers_is_a_half() -> None:
    pairs = make_pairs(np.array([0.0, -1e-12]), np.array([0.0, -1e-9]))
    assert torch.equal(BDPO().weight(pairs).detach(), torch.full((2,), 0.5, dtype=torch.float64))
