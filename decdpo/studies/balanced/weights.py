"""Figure 1 of Balanced-DPO: the weights of DPO's and of balanced updates, on 100 responses.

The model believes p ~ N(mu_p, sigma^2) over responses 0 ... 99, preferences follow
P(i over j) = q_i / (q_i + q_j) with q ~ N(mu_q, sigma^2) (eq. 15-17). Theorem 2: one epoch changes
log p_i by an amount proportional to w_i for DPO, to w_i p_i for balanced losses (both up to a
common shift), with (Lemma 2, for D_ij = 1)

    w_i = sum_{j != i} D_ij (q_i / (q_i + q_j) - p_i / (p_i + p_j)),

D_ij the probability that the pair is in the data: constant ("uniform"), or proportional to p_i p_j
("shiftless": the data are drawn from the model).

Reference: Q. Ma et al., "Gradient Imbalance in Direct Preference Optimization", Section 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MEANS = ((45.0, 55.0), (30.0, 70.0), (48.0, 52.0))
"""(mu_p, mu_q) of the three rows of the figure."""

SAMPLINGS = ("uniform", "shiftless")
FEWER = 0.05
"""Least share by which updates that are called fewer are fewer."""


@dataclass(frozen=True)
class Weights:
    """One panel of the figure; all arrays are (100,).

    p, q : the model's and the preferred distribution. dpo : w_i. balanced : w_i p_i. Both are
    scaled to a largest modulus of 1, for only their shapes are compared.
    """

    mu_p: float
    mu_q: float
    sampling: str
    p: np.ndarray
    q: np.ndarray
    dpo: np.ndarray
    balanced: np.ndarray

    @property
    def peaks(self) -> tuple[int, int]:
        """Where dpo and balanced are largest."""
        return int(self.dpo.argmax()), int(self.balanced.argmax())

    @property
    def outside(self) -> tuple[float, float]:
        """Share of sum |w| more than two sigma from both means, for dpo and balanced: OOD updates.

        sigma is read off p.
        """
        y = np.arange(len(self.p))
        sigma = float(np.sqrt((self.p * (y - self.mu_p) ** 2).sum() / self.p.sum()))
        far = np.minimum(np.abs(y - self.mu_p), np.abs(y - self.mu_q)) > 2 * sigma
        shares = [float(np.abs(w[far]).sum() / np.abs(w).sum()) for w in (self.dpo, self.balanced)]
        return shares[0], shares[1]


def update_weights(
    mu_p: float,
    mu_q: float,
    sampling: str = "uniform",
    *,
    variance: float = 100.0,
    responses: int = 100,
) -> Weights:
    """Return one panel: w_i and w_i p_i on the responses 0 ... ``responses`` - 1.

    Raises ``ValueError`` for another ``sampling`` than ``SAMPLINGS``.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling = {sampling!r} is not in {SAMPLINGS}")
    y = np.arange(responses)
    log_p, log_q = (-((y - mu) ** 2) / (2 * variance) for mu in (mu_p, mu_q))
    p, q = (np.exp(v) / np.exp(v).sum() for v in (log_p, log_q))
    data = np.outer(p, p) if sampling == "shiftless" else np.ones((responses, responses))
    np.fill_diagonal(data, 0.0)
    w = (data * (_beats(log_q) - _beats(log_p))).sum(axis=1)
    scaled = [v / np.abs(v).max() if v.any() else v for v in (w, w * p)]
    return Weights(mu_p, mu_q, sampling, p, q, scaled[0], scaled[1])


def figure_1(variance: float = 100.0) -> list[Weights]:
    """Return the six panels, row by row."""
    return [update_weights(*m, s, variance=variance) for m in MEANS for s in SAMPLINGS]


def figure_claims(panels: list[Weights]) -> dict[str, Mapping[tuple[float, float], bool]]:
    """Say which claims of Section 4.2 and Theorem 3 hold, for each pair of means.

    dpo_peaks_outside : with uniform data the largest w lies beyond mu_q (Theorem 3, first item).
    balanced_peaks_closer : the largest w p lies nearer to mu_q than that of w (uniform data).
    less_out_of_distribution : with uniform data, updates of the balanced loss fall less, by
    ``FEWER`` at least, on responses far from both means. alike_without_shift : with shiftless data
    the peaks of both are no more than sigma apart.
    """
    by = {(w.mu_p, w.mu_q, w.sampling): w for w in panels}
    found: dict[str, dict[tuple[float, float], bool]] = {}
    for mu_p, mu_q in {(w.mu_p, w.mu_q): None for w in panels}:
        uniform, same = by[mu_p, mu_q, "uniform"], by[mu_p, mu_q, "shiftless"]
        y = np.arange(len(same.p))
        sigma = float(np.sqrt((same.p * (y - mu_p) ** 2).sum()))
        dpo, balanced = uniform.peaks
        outside = uniform.outside
        for name, holds in (
            ("dpo_peaks_outside", dpo > mu_q),
            ("balanced_peaks_closer", abs(balanced - mu_q) < abs(dpo - mu_q)),
            ("less_out_of_distribution", outside[1] < (1 - FEWER) * outside[0]),
            ("alike_without_shift", abs(same.peaks[0] - same.peaks[1]) <= sigma),
        ):
            found.setdefault(name, {})[mu_p, mu_q] = bool(holds)
    return dict(found)


def _beats(log_values: np.ndarray) -> np.ndarray:
    """Return v_i / (v_i + v_j), (n, n), from log v."""
    return 1 / (1 + np.exp(np.clip(log_values[None, :] - log_values[:, None], -700, 700)))
