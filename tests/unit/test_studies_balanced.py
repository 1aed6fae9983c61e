"""The toy experiment of Balanced-DPO and its weights, against definitions and limits."""

import numpy as np
import pytest

from decdpo.losses.dpo import DPO
from decdpo.studies.balanced.study import policy_heats
from decdpo.studies.balanced.toy import (
    MASKS,
    REWARDS,
    SIZE,
    TABLE_1,
    Toy,
    balanced_toy,
    claims,
    reward,
    toy_losses,
    wins,
)
from decdpo.studies.balanced.weights import figure_1, figure_claims, update_weights


def test_the_data_follow_the_utilities_and_leave_out_what_is_masked():
    toy = Toy(mask=0.4)
    share, seen = toy.weights(), toy.seen
    assert seen.sum() == round(0.6 * SIZE**2) and share.sum() == pytest.approx(1)
    assert share[~seen].sum() == 0 and share.swapaxes(1, 2)[~seen].sum() == 0
    x = 7
    a, b = np.flatnonzero(seen[x])[:2]
    u = np.exp(-0.6 * (np.array([a, b]) - x) ** 2.0)
    assert share[x, a, b] / (share[x, a, b] + share[x, b, a]) == pytest.approx(u[0] / u.sum())
    assert (Toy(0.4, seed=1).seen != seen).any() and Toy(0.0).seen.all()


def test_rewards_of_policies_whose_rewards_are_known():
    toy, best, flat = Toy(), np.eye(SIZE), np.full((SIZE, SIZE), 1 / SIZE)
    perfect = reward(toy, best, flat)
    assert set(perfect) == set(REWARDS)
    assert perfect["utility_sum"] == perfect["best_sum"] == perfect["greedy_sum"] == SIZE
    assert perfect["log_utility"] == 0 and reward(toy, flat, flat)["best_sum"] == pytest.approx(1)
    assert reward(toy, flat, flat)["win_rate"] == pytest.approx(0.5)
    assert perfect["win_rate"] == pytest.approx(wins(toy.log_utility)[0, 0].mean(), abs=0.05)
    assert perfect["normalised_sum"] < 10


def test_training_lowers_dpo_and_all_begin_at_the_reference():
    (short, long) = balanced_toy(Toy(0.2), lr=2.0, steps=(0, 20), reference_steps=10)
    assert set(short.rewards) == {"reference", *TABLE_1} == {"reference", *toy_losses()}
    for name in TABLE_1:
        assert short.rewards[name] == pytest.approx(short.rewards["reference"])
        assert short.losses[name] == pytest.approx(np.log(2))
        assert long.policies[name].sum(axis=1) == pytest.approx(np.ones(SIZE))
    assert long.losses["dpo"] < short.losses["dpo"]
    assert long.rewards["dpo"]["utility_sum"] > short.rewards["dpo"]["utility_sum"]


def test_enough_dpo_reaches_the_optimum():
    # Without a mask the minimum of exact DPO is pi ~ pi_ref u: the utility, from a uniform start.
    (found,) = balanced_toy(
        Toy(alpha=0.05), lr=100.0, steps=150, reference_steps=0, losses={"dpo": DPO(beta=1.0)}
    )
    utility = np.exp(Toy(alpha=0.05).log_utility)
    expected = utility / utility.sum(axis=1, keepdims=True)
    assert found.policies["dpo"] == pytest.approx(expected, abs=0.02)


def test_unseen_responses_keep_their_logits_in_a_table():
    # A masked response changes only through the normaliser: two of them keep their ratio.
    (found,) = balanced_toy(Toy(0.4), lr=2.0, steps=15, reference_steps=5)
    masked = ~Toy(0.4).seen
    for name in TABLE_1:
        for x in range(SIZE):
            values = found.policies[name][x, masked[x]]
            assert values == pytest.approx(np.full(len(values), values[0])), name


def test_the_claims_hold_of_the_source_itself():
    source = {name: dict(zip(MASKS, row)) for name, row in TABLE_1.items()}
    assert all(claims(source).values())
    worse = {**source, "nbdpo_symmetric": {0.0: 5.4, 0.2: 0.0, 0.4: 6.15}}
    found = claims(worse)
    assert not (found["symmetric_best"] or found["order"]) and found["v2_asymmetric_loses"]


def test_a_tie_of_the_source_asks_nothing_of_our_order():
    source = {name: dict(zip(MASKS, row)) for name, row in TABLE_1.items()}
    tied, mask = ("nbdpo_v2_symmetric", "bdpo"), 0.0
    assert source[tied[0]][mask] == source[tied[1]][mask]
    for name in tied:
        apart = {**source, name: {**source[name], mask: source[name][mask] + 0.01}}
        assert claims(apart)["order"], name
    # The same pair at another mask differs in the source, and then its order counts.
    swapped = {**source, "bdpo": {**source["bdpo"], 0.4: 4.83}}
    assert not claims(swapped)["order"]


def test_rewards_that_differ_by_next_to_nothing_are_in_no_order():
    source = {name: dict(zip(MASKS, row)) for name, row in TABLE_1.items()}
    best = {k: 1.0001 * max(row[k] for row in source.values()) for k in MASKS}
    close = {name: {k: best[k] / 1.0001 for k in MASKS} for name in source}
    found = claims({**close, "nbdpo_symmetric": best})
    wrong = ("symmetric_best", "most_beat_dpo", "v2_worse", "v2_asymmetric_loses", "order")
    assert not any(found[name] for name in wrong) and found["mask_does_not_hurt"]


def test_the_heat_map_of_figure_2_is_dpo_with_a_fifth_masked():
    heats = policy_heats(lr=1.0, steps=2)
    assert [heat.title for heat in heats] == ["dpo, mask 0.2", "target", "reference", *TABLE_1]
    figure, full = (
        np.array(heat.values) for heat in heats if heat.title in ("dpo, mask 0.2", "dpo")
    )
    masked = ~Toy(0.2).seen
    for x in range(SIZE):
        # From a uniform start, what is never seen of a prompt keeps one probability.
        if masked[x].sum() > 1:
            assert np.ptp(figure[x, masked[x]]) < 1e-12 < np.ptp(full[x, masked[x]])


def brute_force(mu_p, mu_q, shiftless):
    p, q = (np.exp(-((np.arange(100) - mu) ** 2) / 200) for mu in (mu_p, mu_q))
    p, q = p / p.sum(), q / q.sum()
    w = np.zeros(100)
    for i in range(100):
        for j in range(100):
            if i != j:
                # sum over both labels tau of tau (1 - kappa), kappa = sigma(log p_win - log p_lose)
                win, kappa = q[i] / (q[i] + q[j]), p[i] / (p[i] + p[j])
                change = win * (1 - kappa) - (1 - win) * kappa
                w[i] += change * (p[i] * p[j] if shiftless else 1.0)
    return w / np.abs(w).max(), w * p / np.abs(w * p).max()


@pytest.mark.parametrize("sampling", ["uniform", "shiftless"])
def test_weights_are_the_sums_over_labelled_pairs(sampling):
    found = update_weights(45, 55, sampling)
    dpo, balanced = brute_force(45, 55, sampling == "shiftless")
    assert found.dpo == pytest.approx(dpo, abs=1e-12)
    assert found.balanced == pytest.approx(balanced, abs=1e-12)


def test_the_figure_is_symmetric_and_its_claims_are_checked():
    panels = figure_1()
    assert len(panels) == 6
    for left in panels:
        # Mirror images: exchanging both means mirrors p and q, and turns the weights about.
        right = update_weights(99 - left.mu_p, 99 - left.mu_q, left.sampling)
        assert right.dpo[::-1] == pytest.approx(left.dpo, abs=1e-9)
    found = figure_claims(panels)
    assert all(found["dpo_peaks_outside"].values())
    assert all(found["less_out_of_distribution"].values())
    with pytest.raises(ValueError, match="sampling"):
        update_weights(1, 2, "other")
