"""The constants of the theory, measured on the agents' own training pairs.

    L         smoothness of the global objective: the largest curvature
    L_max     the same of one agent's objective, the largest of all agents
    kappa^2   mean_i ||grad L_i(x) - grad L(x)||^2, heterogeneity at x
    zeta^2    mean_i E ||g_i(x) - grad L_i(x)||^2, noise of a batch's gradient at x
    Delta     L(x_0) - L*, what the loss can still fall

Everything is summed with ``World.sum``, so the agents may be spread over processes and no pair
leaves its own; every function here is collective.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.sparse.linalg import eigsh

from decdpo.comm.world import World
from decdpo.errors import NumericalError
from decdpo.losses.dpo import DPO, RobustDPO
from decdpo.losses.ipo import IPO, SummedIPO
from decdpo.params.flat import FlatParams
from decdpo.policies.curvature import CurvedPass
from decdpo.policies.encoded import EncodedShard
from decdpo.policies.loglinear import FeatureShard
from decdpo.policies.objective import Objective
from decdpo.theory.bounds import Problem
from decdpo.theory.curvature import (
    CHUNK,
    ROUGH,
    PairLosses,
    agent_hessian,
    constant_loss,
    largest_eigenvalue,
    mean_gradient,
)

_DENSE = 600


@dataclass(frozen=True)
class Constants:
    """The measured constants; units: nats for losses, nats per unit of x for gradients.

    smoothness : L. smoothness_max : L_max. smoothness_is : how both were found. loss : L(x).
    optimum : L*, None where it is not known. optimum_is : how L* was found. gradient_sq :
    ||grad L(x)||^2. kappa_sq, zeta_sq : at x, zeta_sq for batches of ``batch_size``.
    pair_variance : zeta^2 of a single pair. num_agents, num_params, num_pairs : n, P, training
    pairs looked at.
    """

    smoothness: float
    smoothness_max: float
    smoothness_is: str
    loss: float
    optimum: float | None
    optimum_is: str
    gradient_sq: float
    kappa_sq: float
    zeta_sq: float
    pair_variance: float
    batch_size: int
    num_agents: int
    num_params: int
    num_pairs: int

    @property
    def gap(self) -> float | None:
        """Delta = L(x) - L*, at least 0; None where L* is not known."""
        return None if self.optimum is None else max(self.loss - self.optimum, 0.0)

    def problem(self) -> Problem:
        """Return what the bounds need of these; ``ConfigError`` where L* is not known."""
        return Problem.of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the fields, and gap, as JSON values."""
        return {**asdict(self), "gap": self.gap}


def measure(
    world: World,
    objective: Objective,
    params: FlatParams,
    data: Mapping[int, EncodedShard],
    batch_size: int,
    *,
    max_pairs: int = 0,
    iterations: int = 200,
) -> Constants:
    """Measure every constant at x = ``params.data`` (P,). Collective.

    Parameters
    ----------
    data : the local agents' encoded shards.
    max_pairs : training pairs of an agent that are looked at, spread evenly; 0 is all.
    iterations : of the search for L*; 0 takes 0 as L*, below which no preference loss but rDPO
        falls. Policies without closed-form derivatives always do that.
    """
    constant_loss(objective)
    rows = {i: _spread(shard.num_train, max_pairs) for i, shard in data.items()}
    parts = {i: _gradients(objective, params, data[i], rows[i], batch_size) for i in data}
    mean = world.sum({i: p.gradient for i, p in parts.items()}) / world.num_agents
    sums = world.sum(
        {
            i: np.array(
                [p.loss, np.square(p.gradient - mean).sum(), p.variance, p.noise, len(rows[i])]
            )
            for i, p in parts.items()
        }
    )
    loss, kappa_sq, variance, noise, pairs = (sums / (*[world.num_agents] * 4, 1)).tolist()
    smooth, largest, how = smoothness(world, objective, params, data, rows)
    optimum, found = _optimum(world, objective, params, data, rows, iterations)
    return Constants(
        smoothness=smooth,
        smoothness_max=largest,
        smoothness_is=how,
        loss=loss,
        optimum=None if optimum is None else min(optimum, loss),
        optimum_is=found,
        gradient_sq=float(mean @ mean),
        kappa_sq=kappa_sq,
        zeta_sq=noise,
        pair_variance=variance,
        batch_size=batch_size,
        num_agents=world.num_agents,
        num_params=params.layout.size,
        num_pairs=int(pairs),
    )


def smoothness(
    world: World,
    objective: Objective,
    params: FlatParams,
    data: Mapping[int, EncodedShard],
    rows: Mapping[int, np.ndarray],
) -> tuple[float, float, str]:
    """Return L, the largest L_i, and how they were found. Collective.

    For DPO, cDPO and rDPO (beta^2/4) and IPO (2) with a choice between two answers, the smallest
    constant that holds for every theta:

        L = max_z l''(z) lambda_max(mean_i E_i[dphi dphi^T])

    In all other cases the largest curvature at ``params.data``, from products with the Hessian: a
    local constant. L_max costs about as many gradients as L, every agent's own again.
    """
    factor = _largest_second_derivative(objective)
    if factor is not None and all(isinstance(shard, FeatureShard) for shard in data.values()):
        return _log_linear_smoothness(world, factor, data, rows)
    hessians = {i: agent_hessian(objective, params, data[i], rows[i]) for i in data}
    size = params.layout.size

    def apply(vector: np.ndarray) -> np.ndarray:
        return world.sum({i: hessian(vector) for i, hessian in hessians.items()}) / world.num_agents

    exact = _is_curved(objective, params, data)
    tolerance = 1e-6 if exact else ROUGH
    smooth = largest_eigenvalue(apply, size, tolerance)
    how = "curvature at x, exact products" if exact else "curvature at x, gradient differences"
    own = {i: largest_eigenvalue(hessian, size, tolerance) for i, hessian in hessians.items()}
    # No mean has more curvature than all of its parts; the tolerance could have it so.
    return smooth, max(smooth, *world.collect(own).values()), how


def batch_noise(pair_variance: float, pairs: int, batch_size: int) -> float:
    """Return E ||g - grad L_i||^2 of batches as training draws them.

    pair_variance : (1/N) sum_b ||g_b - grad L_i||^2. pairs : N. A batch of B is cut from epochs of
    N pairs, each without replacement: whole epochs have no noise, and the B mod N other pairs have
    the variance of a sample without replacement (nearly so for a batch across two epochs).
    """
    rest = batch_size % pairs
    if rest == 0 or pairs == 1:
        return 0.0
    without = pair_variance / rest * (pairs - rest) / (pairs - 1)
    return without * (rest / batch_size) ** 2


@dataclass(frozen=True)
class _Parts:
    """Of one agent: mean loss, gradient (P,), variance of a pair's gradient, of a batch's."""

    loss: float
    gradient: np.ndarray
    variance: float
    noise: float


def _gradients(
    objective: Objective, params: FlatParams, data: EncodedShard, rows: np.ndarray, batch_size: int
) -> _Parts:
    loss, mean = mean_gradient(objective, params, data, rows, CHUNK)
    squares = _squared_norms(objective, params, data, rows)
    variance = max(squares / len(rows) - float(mean @ mean), 0.0)
    noise = batch_noise(variance, data.num_train, batch_size)
    return _Parts(loss, mean, variance, noise)


def _squared_norms(
    objective: Objective, params: FlatParams, data: EncodedShard, rows: np.ndarray
) -> float:
    """Return sum_b ||g_b||^2 over pairs, each a batch of its own."""
    if _is_curved(objective, params, {data.agent: data}):
        forward: Any = objective.policy.forward(params, data, rows, need_grad=False)
        slopes = PairLosses(objective, forward.scores, data, rows).slopes
        return float(forward.squared_norms(slopes[0], slopes[1]).sum(dtype=np.float64))
    total = 0.0
    for row in rows:
        objective.gradient(params, data, np.array([row]))
        total += float(params.grad.double().square().sum())
    return total


def _largest_second_derivative(objective: Objective) -> float | None:
    """Return max l'' as a function of the margin of two log-probabilities, if it is known."""
    loss = constant_loss(objective)
    if isinstance(loss, (DPO, RobustDPO)):
        return loss.beta**2 / 4
    return 2.0 if isinstance(loss, (IPO, SummedIPO)) else None


def _log_linear_smoothness(
    world: World,
    factor: float,
    data: Mapping[int, EncodedShard],
    rows: Mapping[int, np.ndarray],
) -> tuple[float, float, str]:
    matrices, own = {}, {}
    for i, shard in data.items():
        assert isinstance(shard, FeatureShard)
        weight = np.ones(len(rows[i])) if shard.weight is None else shard.weight[rows[i]]
        scale = np.sqrt(weight / len(rows[i]))
        matrices[i] = (shard.differences.batch(rows[i]).matrix.astype(np.float64).T * scale).T
        matrices[i] = matrices[i].tocsr()
        own[i] = _largest_singular(matrices[i]) ** 2
    size = next(iter(matrices.values())).shape[1]

    def apply(vector: np.ndarray) -> np.ndarray:
        parts = {i: matrix.T @ (matrix @ vector) for i, matrix in matrices.items()}
        return world.sum(parts) / world.num_agents

    top = largest_eigenvalue(apply, size)
    largest = max(world.collect(own).values())
    return factor * top, factor * largest, "exact: max l'' lambda_max(E[dphi dphi^T]), every theta"


def _largest_singular(matrix: Any) -> float:
    """Return the largest singular value of a sparse (N, P) matrix."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    if gram.shape[0] <= _DENSE:
        return float(np.sqrt(max(np.linalg.eigvalsh(gram.toarray())[-1], 0.0)))
    start = np.ones(gram.shape[0])
    top = eigsh(gram, k=1, which="LM", v0=start, tol=1e-8, return_eigenvectors=False)
    return float(np.sqrt(max(top[0], 0.0)))


def _optimum(
    world: World,
    objective: Objective,
    params: FlatParams,
    data: Mapping[int, EncodedShard],
    rows: Mapping[int, np.ndarray],
    iterations: int,
) -> tuple[float | None, str]:
    """Return L* and how it was found: by L-BFGS on the global objective, or 0. Collective.

    rDPO pays -z eps / (1 - 2 eps) for a margin z without end: it has no least value but where the
    pairs contradict one another, and L* is None unless the search finds one.
    """
    loss = objective.loss
    eps = loss.label_smoothing if isinstance(loss, RobustDPO) else 0.0
    if not iterations or not _is_curved(objective, params, data):
        if eps:
            return None, "unknown: rDPO can fall below 0, and no least value was searched for"
        return 0.0, "0, the least that the loss can be"
    first: list[float] = []
    lowest = [np.inf, np.inf]

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        here = FlatParams(params.layout, torch.from_numpy(x).to(params.data))
        own = {}
        for i in data:
            try:
                stats = objective.gradient(here, data[i], rows[i])
                gradient = here.grad.double().numpy()
                own[i] = np.concatenate([[stats.values[2] / len(rows[i])], gradient])
            except NumericalError:
                own[i] = np.full(x.size + 1, np.nan)
        total = world.sum(own) / world.num_agents
        if not np.isfinite(total).all():
            return 1e30, np.zeros_like(x)
        norm = float(np.linalg.norm(total[1:]))
        first.append(norm)
        if total[0] < lowest[0]:
            lowest[:] = [float(total[0]), norm]
        return float(total[0]), total[1:]

    minimize(
        value,
        params.data.detach().double().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "ftol": 1e-14, "gtol": 1e-10},
    )
    # Where rDPO falls for ever, a share of about 2 eps of the first gradient stays.
    small = eps or 1.0
    if lowest[1] <= small * max(1e-3 * first[0], 1e-6):
        return lowest[0], "L-BFGS, converged"
    falling = f"still falling after {len(first)} gradients"
    if eps:
        return None, f"unknown: rDPO may have no least value, and L-BFGS was {falling}"
    return lowest[0], f"L-BFGS, {falling}"


def _is_curved(
    objective: Objective, params: FlatParams, data: Mapping[int, EncodedShard]
) -> bool:
    shard = next(iter(data.values()))
    forward = objective.policy.forward(params, shard, np.arange(1), need_grad=False)
    return isinstance(forward, CurvedPass)


def _spread(num_train: int, max_pairs: int) -> np.ndarray:
    """Return the rows of all training pairs, or of ``max_pairs`` of them spread evenly."""
    if not 0 < max_pairs < num_train:
        return np.arange(num_train)
    return np.arange(max_pairs) * num_train // max_pairs
