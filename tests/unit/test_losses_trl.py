"""Agreement with the numbers of TRL's own trainers, written by tools/trl_loss_figures.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from decdpo.losses.base import PairScores
from decdpo.losses.catalogue import LOSS_CLASSES
from decdpo.losses.kto import UnpairedKTO, reference_point

FIGURES = json.loads(
    (Path(__file__).parents[1] / "golden" / "trl_losses.json").read_text(encoding="utf-8")
)
CASES = FIGURES["cases"]


def figure_pairs(dtype: torch.dtype) -> PairScores:
    tensors = {
        key: torch.tensor(values, dtype=torch.int64 if "length" in key else dtype)
        for key, values in FIGURES["pairs"].items()
    }
    tensors["chosen"].requires_grad_()
    tensors["rejected"].requires_grad_()
    return PairScores(**tensors)


@pytest.mark.parametrize("case", CASES, ids=[f"{c['loss']}-{i}" for i, c in enumerate(CASES)])
def test_values_and_gradients_are_those_of_trl(case: dict[str, Any]) -> None:
    pairs = figure_pairs(torch.float64)
    losses = LOSS_CLASSES[case["loss"]](**case["options"])(pairs)
    grads = torch.autograd.grad(losses.sum(), (pairs.chosen, pairs.rejected))
    for ours, key in zip((losses.detach(), *grads), ("losses", "d_chosen", "d_rejected")):
        theirs = torch.tensor(case[key], dtype=torch.float64)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("case", FIGURES["kto"], ids=lambda case: f"kl={case['kl']}")
def test_kto_of_single_answers_is_that_of_trl(case: dict[str, Any]) -> None:
    pairs = figure_pairs(torch.float64)
    logps = torch.cat((pairs.chosen, pairs.rejected)).detach().requires_grad_()
    ratio = logps - torch.cat((pairs.ref_chosen, pairs.ref_rejected))
    desirable = torch.arange(len(ratio)) < len(pairs.chosen)
    z0 = reference_point(torch.tensor([case["kl"]], dtype=torch.float64))
    losses = UnpairedKTO(**case["options"])(ratio, desirable, z0)
    (d_logp,) = torch.autograd.grad(losses.sum(), logps)
    for ours, key in ((losses.detach(), "losses"), (d_logp, "d_logp")):
        theirs = torch.tensor(case[key], dtype=torch.float64)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


def test_figures_cover_every_loss_that_both_have() -> None:
    common = {"dpo", "robust", "ipo", "hinge", "cpo", "slic", "simpo"}
    assert {case["loss"] for case in CASES} == common
    assert FIGURES["versions"]["trl"].startswith("1.16")
