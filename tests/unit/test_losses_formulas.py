"""Every loss against formulas written out in numpy, and what no loss may do."""

import dataclasses
import inspect
import itertools
import math
import re
import subprocess
import sys
from typing import Any, Callable

import numpy as np
import pytest
import torch

from decdpo.errors import ConfigError, DataError
from decdpo.losses.base import PairScores
from decdpo.losses.catalogue import LOSS_CLASSES
from decdpo.losses.names import LOSSES

Array = np.ndarray
COUNT = 64


def make_arrays(seed: int = 0) -> dict[str, Array]:
    """Return the fields of pairs whose margins lie on both sides of every kink and clip."""
    rng = np.random.default_rng(seed)
    fields: dict[str, Array] = {
        key: rng.uniform(-30.0, -0.5, COUNT)
        for key in ("chosen", "rejected", "ref_chosen", "ref_rejected")
    }
    close = np.arange(COUNT) < COUNT // 2
    fields["rejected"] = np.where(
        close, fields["chosen"] + rng.uniform(-0.45, 0.45, COUNT), fields["rejected"]
    ).clip(max=-0.1)
    fields["chosen_length"] = rng.integers(1, 40, COUNT)
    fields["rejected_length"] = rng.integers(1, 40, COUNT)
    fields["score_gap"] = rng.uniform(0.1, 3.0, COUNT)
    return fields


def to_pairs(fields: dict[str, Array], dtype: torch.dtype = torch.float64) -> PairScores:
    tensors = {
        key: torch.tensor(value) if "length" in key else torch.tensor(value, dtype=dtype)
        for key, value in fields.items()
    }
    tensors["chosen"].requires_grad_()
    tensors["rejected"].requires_grad_()
    return PairScores(**tensors)


def make_loss(name: str, **options: Any) -> Callable[[PairScores], torch.Tensor]:
    """Return the loss as a function of pairs alone; beta-DPO after a first batch."""
    loss = LOSS_CLASSES[name](**options)
    if name != "beta_dpo":
        return loss
    start = torch.zeros(1, dtype=torch.float64)
    return loss.at(loss.update(start, to_pairs(make_arrays(9))))


def value_and_gradients(loss: Any, pairs: PairScores) -> tuple[Array, Array, Array]:
    losses = loss(pairs)
    d_chosen, d_rejected = torch.autograd.grad(losses.sum(), (pairs.chosen, pairs.rejected))
    return losses.detach().numpy(), d_chosen.numpy(), d_rejected.numpy()


# The references take the two variables and, apart from them, the point ``p`` at which they are
# evaluated: what is not differentiated (weights, running means, reference points) is read off p.


def nls(z: Array) -> Array:
    """-log(1 / (1 + exp(-z)))."""
    return np.logaddexp(0.0, -z)


def ratios(c: Array, r: Array, p: dict[str, Array]) -> tuple[Array, Array]:
    return c - p["ref_chosen"], r - p["ref_rejected"]


def margin(c: Array, r: Array, p: dict[str, Array]) -> Array:
    return np.log(np.exp(c - p["ref_chosen"]) / np.exp(r - p["ref_rejected"]))


def smoothed(c: Array, r: Array, p: dict[str, Array], beta: float, eps: float) -> Array:
    z = beta * margin(c, r, p)
    return (1 - eps) * nls(z) + eps * nls(-z)


def robust(c: Array, r: Array, p: dict[str, Array], beta: float, eps: float) -> Array:
    z = beta * margin(c, r, p)
    return ((1 - eps) * nls(z) - eps * nls(-z)) / (1 - 2 * eps)


def ipo(c: Array, r: Array, p: dict[str, Array], beta: float) -> Array:
    h_w, h_l = ratios(c, r, p)
    return (h_w / p["chosen_length"] - h_l / p["rejected_length"] - 1 / (2 * beta)) ** 2


def ipo_sum(c: Array, r: Array, p: dict[str, Array], beta: float) -> Array:
    return (margin(c, r, p) - 1 / (2 * beta)) ** 2


def hinge(c: Array, r: Array, p: dict[str, Array], beta: float) -> Array:
    return np.maximum(0.0, 1 - beta * margin(c, r, p))


def slic(c: Array, r: Array, p: dict[str, Array], beta: float, alpha: float) -> Array:
    return beta * np.maximum(0.0, 1 / beta - c + r) - alpha * c / p["chosen_length"]


def simpo(c: Array, r: Array, p: dict[str, Array], beta: float, gamma: float) -> Array:
    return nls(beta / p["chosen_length"] * c - beta / p["rejected_length"] * r - gamma)


def odpo(c: Array, r: Array, p: dict[str, Array], beta: float, alpha: float) -> Array:
    return nls(beta * margin(c, r, p) - alpha * p["score_gap"])


def odpo_log(c: Array, r: Array, p: dict[str, Array], beta: float, alpha: float) -> Array:
    return nls(beta * margin(c, r, p) - alpha * np.log(p["score_gap"]))


def rdpo_length(c: Array, r: Array, p: dict[str, Array], beta: float, alpha: float) -> Array:
    h_w, h_l = ratios(c, r, p)
    return nls(
        (beta * h_w + alpha * p["chosen_length"]) - (beta * h_l + alpha * p["rejected_length"])
    )


def beta_dpo(c: Array, r: Array, p: dict[str, Array], beta: float, alpha: float) -> Array:
    first = make_arrays(9)
    running = 0.1 * np.mean(margin(first["chosen"], first["rejected"], first))
    gap = np.mean(margin(p["chosen"], p["rejected"], p))
    return nls(beta * (1 + alpha * (gap - running)) * margin(c, r, p))


def kto(c: Array, r: Array, p: dict[str, Array], beta: float, good: float, bad: float) -> Array:
    z_w = max(0.0, float(np.mean(p["chosen"] - p["ref_chosen"])))
    z_l = max(0.0, float(np.mean(p["rejected"] - p["ref_rejected"])))
    h_w, h_l = ratios(c, r, p)
    chosen = good * (1 - 1 / (1 + np.exp(-beta * (h_w - z_l))))
    rejected = bad * (1 - 1 / (1 + np.exp(-beta * (z_w - h_l))))
    return (chosen + rejected) / 2


def cpo(c: Array, r: Array, p: dict[str, Array], beta: float, alpha: float) -> Array:
    return nls(beta * (c - r)) - alpha * c / p["chosen_length"]


def lam(c: Array, r: Array, low: float, high: float) -> Array:
    return 1 + np.minimum(np.maximum(c - r, low), high)


def nbdpo(c: Array, r: Array, p: dict[str, Array], beta: float, low: float, high: float) -> Array:
    """Eq. 25 as written: lam follows the variables, only h_w of the last term is frozen."""
    weight = lam(c, r, low, high)
    h_w, h_l = ratios(c, r, p)
    frozen = p["chosen"] - p["ref_chosen"]
    return nls(beta * weight * h_w - beta * h_l - beta * (weight - 1) * frozen)


def nbdpo_v2(c: Array, r: Array, p: dict[str, Array], beta: float, low: float) -> Array:
    h_w, h_l = ratios(c, r, p)
    return nls(beta * lam(c, r, low, 0.5) * h_w - beta * h_l)


def nbdpo_v2_constant(c: Array, r: Array, p: dict[str, Array], beta: float, low: float) -> Array:
    h_w, h_l = ratios(c, r, p)
    return nls(beta * lam(p["chosen"], p["rejected"], low, 0.5) * h_w - beta * h_l)


def bdpo(c: Array, r: Array, p: dict[str, Array], beta: float) -> Array:
    h_w, h_l = ratios(c, r, p)
    return nls(beta * (r / (c + r)) * h_w - beta * (c / (c + r)) * h_l)


def bdpo_constant(c: Array, r: Array, p: dict[str, Array], beta: float) -> Array:
    h_w, h_l = ratios(c, r, p)
    weight = p["rejected"] / (p["chosen"] + p["rejected"])
    return nls(beta * weight * h_w - beta * (1 - weight) * h_l)


CASES: list[tuple[str, dict[str, Any], Any]] = [
    ("dpo", {"beta": 0.3}, lambda c, r, p: smoothed(c, r, p, 0.3, 0.0)),
    (
        "dpo",
        {"beta": 0.3, "label_smoothing": 0.2},
        lambda c, r, p: smoothed(c, r, p, 0.3, 0.2),
    ),
    (
        "robust",
        {"beta": 0.2, "label_smoothing": 0.3},
        lambda c, r, p: robust(c, r, p, 0.2, 0.3),
    ),
    ("ipo", {"beta": 0.4}, lambda c, r, p: ipo(c, r, p, 0.4)),
    ("ipo_sum", {"beta": 0.4}, lambda c, r, p: ipo_sum(c, r, p, 0.4)),
    ("hinge", {"beta": 0.2}, lambda c, r, p: hinge(c, r, p, 0.2)),
    ("slic", {"beta": 0.5, "alpha": 0.3}, lambda c, r, p: slic(c, r, p, 0.5, 0.3)),
    ("simpo", {"beta": 2.5, "gamma": 0.7}, lambda c, r, p: simpo(c, r, p, 2.5, 0.7)),
    ("odpo", {"beta": 0.3, "alpha": 0.8}, lambda c, r, p: odpo(c, r, p, 0.3, 0.8)),
    ("odpo_log", {"beta": 0.3, "alpha": 0.8}, lambda c, r, p: odpo_log(c, r, p, 0.3, 0.8)),
    (
        "rdpo_length",
        {"beta": 0.3, "alpha": 0.05},
        lambda c, r, p: rdpo_length(c, r, p, 0.3, 0.05),
    ),
    ("beta_dpo", {"beta": 0.3, "alpha": 0.1}, lambda c, r, p: beta_dpo(c, r, p, 0.3, 0.1)),
    (
        "kto",
        {"beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.7},
        lambda c, r, p: kto(c, r, p, 0.2, 1.5, 0.7),
    ),
    ("cpo", {"beta": 0.3, "alpha": 0.6}, lambda c, r, p: cpo(c, r, p, 0.3, 0.6)),
    ("nbdpo", {"beta": 0.3, "clip": 0.5}, lambda c, r, p: nbdpo(c, r, p, 0.3, 0.0, 0.5)),
    (
        "nbdpo_symmetric",
        {"beta": 0.3, "clip": 0.25},
        lambda c, r, p: nbdpo(c, r, p, 0.3, -0.2, 0.25),
    ),
    ("nbdpo_v2", {"beta": 0.3}, lambda c, r, p: nbdpo_v2(c, r, p, 0.3, 0.0)),
    (
        "nbdpo_v2_symmetric",
        {"beta": 0.3},
        lambda c, r, p: nbdpo_v2(c, r, p, 0.3, -1.0 / 3.0),
    ),
    (
        "nbdpo_v2_symmetric",
        {"beta": 0.3, "constant_weight": True},
        lambda c, r, p: nbdpo_v2_constant(c, r, p, 0.3, -1.0 / 3.0),
    ),
    ("fedpdpo", {"beta": 0.3}, lambda c, r, p: smoothed(c, r, p, 0.3, 0.0)),
    ("bdpo", {"beta": 0.5}, lambda c, r, p: bdpo(c, r, p, 0.5)),
    (
        "bdpo",
        {"beta": 0.5, "constant_weight": True},
        lambda c, r, p: bdpo_constant(c, r, p, 0.5),
    ),
]
IDS = [f"{name}-{'-'.join(options)}" for name, options, _ in CASES]


def test_every_loss_has_a_formula_here() -> None:
    assert {name for name, _, _ in CASES} == set(LOSSES) == set(LOSS_CLASSES)


@pytest.mark.parametrize(("name", "options", "formula"), CASES, ids=IDS)
def test_value_is_the_formula(name: str, options: dict[str, Any], formula: Any) -> None:
    p = make_arrays()
    losses = make_loss(name, **options)(to_pairs(p))
    assert losses.shape == (COUNT,)
    expected = formula(p["chosen"], p["rejected"], p)
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("name", "options", "formula"), CASES, ids=IDS)
def test_gradient_is_that_of_the_formula(name: str, options: dict[str, Any], formula: Any) -> None:
    p = make_arrays()
    _, d_chosen, d_rejected = value_and_gradients(make_loss(name, **options), to_pairs(p))
    c, r, step = p["chosen"], p["rejected"], 1e-5
    by_chosen = (formula(c + step, r, p) - formula(c - step, r, p)) / (2 * step)
    by_rejected = (formula(c, r + step, p) - formula(c, r - step, p)) / (2 * step)
    np.testing.assert_allclose(d_chosen, by_chosen, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(d_rejected, by_rejected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "options", "formula"), CASES, ids=IDS)
def test_float32_stays_float32(name: str, options: dict[str, Any], formula: Any) -> None:
    p = make_arrays()
    losses = make_loss(name, **options)(to_pairs(p, torch.float32))
    assert losses.dtype == torch.float32
    expected = formula(p["chosen"], p["rejected"], p)
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "options", "formula"), CASES, ids=IDS)
def test_extremes_are_finite(
    name: str, options: dict[str, Any], formula: Any, dtype: torch.dtype
) -> None:
    levels = (-1e4, -300.0, -1.0, -1e-30, 0.0)
    grid = np.array(list(itertools.product(levels, repeat=4)))
    # A zero log-probability throughout is an empty answer.
    fields = dict(zip(("chosen", "rejected", "ref_chosen", "ref_rejected"), grid.T))
    for side in ("chosen", "rejected"):
        empty = (fields[side] == 0.0) & (fields[f"ref_{side}"] == 0.0)
        fields[f"{side}_length"] = np.where(empty, 0, 50)
    fields["score_gap"] = np.full(len(grid), 2.0)
    for values in value_and_gradients(make_loss(name, **options), to_pairs(fields, dtype)):
        assert values.shape == (len(grid),)
        assert np.isfinite(values).all(), grid[~np.isfinite(values)][:3]


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"beta_dpo", "kto"}))
def test_a_pair_does_not_see_the_others(name: str) -> None:
    p = make_arrays()
    loss = make_loss(name)
    together = loss(to_pairs(p))[:8]
    alone = loss(to_pairs({key: value[:8] for key, value in p.items()}))
    assert torch.equal(together, alone)


LIMITS = [
    ("robust", {"label_smoothing": 0.0}),
    ("odpo", {"alpha": 0.0}),
    ("odpo_log", {"alpha": 0.0}),
    ("rdpo_length", {"alpha": 0.0}),
    ("beta_dpo", {"alpha": 0.0}),
]


@pytest.mark.parametrize(("name", "options"), LIMITS, ids=[name for name, _ in LIMITS])
def test_limit_is_dpo(name: str, options: dict[str, float]) -> None:
    pairs = to_pairs(make_arrays())
    ours = value_and_gradients(make_loss(name, beta=0.2, **options), pairs)
    dpo = value_and_gradients(make_loss("dpo", beta=0.2), pairs)
    for value, expected in zip(ours, dpo):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-15)


def test_equal_scores_make_odpo_dpo() -> None:
    pairs = to_pairs({**make_arrays(), "score_gap": np.zeros(COUNT)})
    assert torch.equal(make_loss("odpo")(pairs), make_loss("dpo")(pairs))


def test_equal_lengths_make_rdpo_dpo() -> None:
    p = make_arrays()
    pairs = to_pairs({**p, "chosen_length": p["rejected_length"]})
    assert torch.equal(make_loss("rdpo_length", alpha=0.3)(pairs), make_loss("dpo")(pairs))


def test_one_step_answers_make_both_ipos_one() -> None:
    ones = np.ones(COUNT, dtype=np.int64)
    pairs = to_pairs({**make_arrays(), "chosen_length": ones, "rejected_length": ones})
    torch.testing.assert_close(make_loss("ipo")(pairs), make_loss("ipo_sum")(pairs))


def test_robust_loss_is_unbiased_under_flipped_labels() -> None:
    p = make_arrays()
    flipped = {
        **p,
        "chosen": p["rejected"],
        "rejected": p["chosen"],
        "ref_chosen": p["ref_rejected"],
        "ref_rejected": p["ref_chosen"],
    }
    robust_loss = make_loss("robust", label_smoothing=0.3)
    mean = 0.7 * robust_loss(to_pairs(p)) + 0.3 * robust_loss(to_pairs(flipped))
    torch.testing.assert_close(mean, make_loss("dpo")(to_pairs(p)))


def test_reference_free_losses_ignore_the_reference() -> None:
    p = make_arrays()
    moved = {**p, "ref_chosen": p["ref_chosen"] - 3.0}
    for name in ("slic", "simpo", "cpo"):
        assert torch.equal(make_loss(name)(to_pairs(p)), make_loss(name)(to_pairs(moved)))


def test_start_of_a_run_is_log_two() -> None:
    p = make_arrays()
    start = to_pairs({**p, "ref_chosen": p["chosen"], "ref_rejected": p["rejected"]})
    for name in ("dpo", "robust", "beta_dpo", "nbdpo", "nbdpo_v2", "nbdpo_symmetric", "bdpo"):
        losses = make_loss(name)(start).detach().numpy()
        np.testing.assert_allclose(losses, math.log(2.0), rtol=1e-15)


def test_odpo_without_scores_names_the_remedy() -> None:
    pairs = dataclasses.replace(to_pairs(make_arrays()), score_gap=None)
    for name in ("odpo", "odpo_log"):
        assert LOSSES[name].needs_score
        with pytest.raises(DataError, match="score of each answer"):
            make_loss(name)(pairs)


def test_odpo_refuses_scores_that_are_not_finite() -> None:
    p = make_arrays()
    p["score_gap"][3] = np.nan
    for name in ("odpo", "odpo_log"):
        with pytest.raises(DataError, match="pair 3 "):
            make_loss(name)(to_pairs(p))


def test_log_odpo_names_the_pair_without_a_gap() -> None:
    p = make_arrays()
    p["score_gap"][[5, 7]] = 0.0, -1.0
    with pytest.raises(DataError, match=r"pair 5 .* gap of 0.* 2 of 64 pairs") as caught:
        make_loss("odpo_log")(to_pairs(p))
    assert "odpo" in caught.value.remedy


OUT_OF_RANGE = [
    *((name, "beta", value) for name in LOSSES for value in (0.0, -1.0, math.nan, math.inf)),
    ("dpo", "label_smoothing", 0.5),
    ("dpo", "label_smoothing", -0.1),
    ("robust", "label_smoothing", 0.5),
    ("slic", "alpha", -1.0),
    ("simpo", "gamma", -0.5),
    ("odpo", "alpha", math.inf),
    ("odpo_log", "alpha", -1.0),
    ("rdpo_length", "alpha", -0.1),
    ("beta_dpo", "alpha", -0.1),
    ("beta_dpo", "momentum", 1.0),
    ("beta_dpo", "beta_min", 0.0),
    ("beta_dpo", "beta_min", 0.2),
    ("kto", "desirable_weight", -1.0),
    ("kto", "undesirable_weight", math.nan),
    ("cpo", "alpha", -1.0),
    ("nbdpo", "clip", 0.0),
    ("nbdpo_symmetric", "clip", -0.5),
    ("nbdpo_v2", "constant_weight", 1),
    ("bdpo", "constant_weight", "yes"),
    ("dpo", "beta", True),
    ("dpo", "beta", "0.1"),
]


@pytest.mark.parametrize(("name", "key", "value"), OUT_OF_RANGE)
def test_constant_out_of_range_is_named(name: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        LOSS_CLASSES[name](**{key: value})
    assert f"loss.{key} = {value!r}" in caught.value.what
    assert f"loss.{key}" in caught.value.remedy


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_names_list_the_options_of_the_class(name: str) -> None:
    fields = [(f.name, f.default) for f in dataclasses.fields(LOSS_CLASSES[name])]
    assert [(o.name, o.default) for o in LOSSES[name].options] == fields
    assert LOSSES[name].has_state == hasattr(LOSS_CLASSES[name], "update")
    with pytest.raises(dataclasses.FrozenInstanceError):
        LOSS_CLASSES[name]().beta = 1.0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_default_stands_in_one_place(name: str) -> None:
    source = inspect.getsource(sys.modules[LOSS_CLASSES[name].__module__])
    for option in LOSSES[name].options:
        declared = re.findall(rf"^    {option.name}: (?:float|bool) = (.*)$", source, re.MULTILINE)
        assert declared and all(text.startswith("LOSSES[") for text in declared)
    with pytest.raises(KeyError):
        LOSSES[name].number("no_such_option")


def test_names_import_nothing_heavy() -> None:
    code = "import sys, decdpo.losses.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
