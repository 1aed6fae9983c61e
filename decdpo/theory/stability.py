"""The largest step size with which local steps and mixing stay stable.

On a quadratic whose curvatures all lie in (0, L], E local steps multiply the component of curvature
a by c(a) = (1 - eta a)^E. Adapting before combining, x <- W (x - eta g), or averaging at a server,
the modes of one round are lambda c with lambda in [lambda_min, 1], the eigenvalues of W:

    |lambda c| < 1  for all   <=>   eta < 2 / L.                                   (1)

Combining while adapting, x <- W x - eta g, they are lambda - 1 + c, and stay in (-1, 1) if

    c(a) > -lambda_min  for all a   and   |c| < 1.                                 (2)

For E = 1 that is eta < (1 + lambda_min) / L: what the overlap costs. For E > 1 and lambda_min < 0
it is eta < (1 - |lambda_min|^(1/E)) / L, which is small: many local steps with overlap want lazy
weights (lambda_min >= 0), with which an even E reaches 2 / L again.

For symmetric W and equal quadratics on all agents this is exact. Of unlike quadratics, L is the
largest curvature of any one agent, max_i L_i: the steps of the others do not count where an agent
is on its own. The condition then suffices: local steps are a symmetric block-diagonal matrix C with
eigenvalues c(a) of the agents, ||W C|| <= ||W|| ||C||, and no eigenvalue of W - I + C lies below
lambda_min - 1 + min c. Where all agents take every step from a common model, E = 1, only the
objective's own curvature counts.
"""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import eigsh

from decdpo.rng import Stream, generator
from decdpo.topology.mixing import CompleteMatrix, MixingMatrix
from decdpo.topology.row import Schedule
from decdpo.topology.schedule import round_weights
from decdpo.topology.spectrum import DENSE


def largest_stable_step(
    smoothness: float, local_steps: int = 1, lambda_min: float | None = None
) -> float:
    """Return the eta below which (1) or (2) holds; infinity where there is no curvature.

    smoothness : L, for unlike agents the largest L_i. local_steps : E. lambda_min : smallest
    eigenvalue of W when combining while adapting; None when adapting before combining, eq. (1).
    """
    if smoothness <= 0:
        return float("inf")
    if lambda_min is None or (local_steps % 2 == 0 and lambda_min >= 0):
        return 2 / smoothness
    root = abs(lambda_min) ** (1 / local_steps)
    return (1 + root if lambda_min >= 0 else 1 - root) / smoothness


def smallest_eigenvalue(schedule: Schedule, num_agents: int, round: int = 0) -> float:
    """Return lambda_min of the symmetric matrix W of a round.

    Where W is not symmetric, 2 min_i w_ii - 1, below which no eigenvalue's real part lies
    (Gershgorin).
    """
    mixing = schedule.mixing(round)
    if isinstance(mixing, CompleteMatrix):
        # Its only other eigenvalue; the matrix itself would have n * n entries.
        return mixing.own - mixing.other if num_agents > 1 else 1.0
    if isinstance(mixing, MixingMatrix):
        weights = mixing.weights
    else:
        weights = round_weights(mixing, num_agents)
    if abs(weights - weights.T).max() > 1e-12:
        return float(2 * weights.diagonal().min() - 1)
    return _lowest(weights)


def _lowest(weights: csr_array) -> float:
    n = weights.shape[0]
    if n <= DENSE:
        return float(np.linalg.eigvalsh(weights.toarray())[0])
    start = generator(0, Stream.TOPOLOGY, agent=n).standard_normal(n)
    values = eigsh(weights, k=1, which="SA", v0=start, return_eigenvectors=False, tol=1e-8)
    return float(values[0])
