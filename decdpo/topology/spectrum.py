"""Spectral gaps of sparse mixing matrices, to full relative precision even when they are tiny.

Small matrices are solved densely. For large ones Lanczos iterations on the matrix without its
known leading eigenvector are tried first: they converge at once when the second eigenvalue stands
apart. When they do not, the gap is small, hence the graph has small separators, hence a sparse
factorisation of I - W is cheap, and its inverse has the gap as a well-separated eigenvalue.
"""

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array, eye_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, LinearOperator, eigs, eigsh, splu

from decdpo.rng import Stream, generator

DENSE = 500
"""Up to this many agents the dense solvers are both faster and as precise."""

_Apply = Callable[[np.ndarray], np.ndarray]


def symmetric_gap(w: csr_array) -> float:
    """Return 1 - max(|lambda_2|, |lambda_n|) of a symmetric, connected, stochastic w (n, n)."""
    n = w.shape[0]
    if n <= DENSE:
        return _gap(np.abs(np.linalg.eigvalsh(w.toarray() - 1 / n)).max())
    top = _extreme(lambda x: w @ x - x.mean(), n)
    if top is not None:
        return _gap(top)
    gap = 1 / _must(_extreme(_inverse_laplacian(w), n))
    if 1 - 2 * w.diagonal().min() > 1 - gap:  # Gershgorin: lambda_n >= 2 min w_ii - 1
        signless = splu((eye_array(n) + w).tocsc())
        gap = min(gap, 1 / _must(_extreme(signless.solve, n)))
    return float(gap)


def doubly_stochastic_gap(w: csr_array) -> float:
    """Return 1 - sigma_2, by the second largest singular value of a doubly stochastic w (n, n).

    sigma_2 bounds the contraction of the consensus distance in one round; it is 1, and the gap 0,
    where some rounds may pass without progress.
    """
    n = w.shape[0]
    if n <= DENSE:
        return _gap(np.linalg.svd(w.toarray() - 1 / n, compute_uv=False)[0])
    top = _extreme(lambda x: w.T @ (w @ x) - x.mean(), n)
    if top is not None:
        return _gap(float(np.sqrt(max(top, 0.0))))
    squared = csr_array(w.T @ w)
    if connected_components(squared, directed=False)[0] > 1:
        return 0.0
    gap = 1 / _must(_extreme(_inverse_laplacian(squared), n))
    return float(gap / (1 + np.sqrt(1 - gap)))


def column_stochastic_gap(w: csr_array) -> float:
    """Return 1 - |lambda_2| of a column-stochastic w (n, n): the asymptotic rate of push-sum.

    Where Arnoldi iterations do not converge, lambda_2 is taken to be among the eight eigenvalues
    nearest to 1, which holds for slowly mixing matrices with positive own weights.
    """
    n = w.shape[0]
    if n <= DENSE:
        # w maps mean-free vectors to mean-free ones, and leaves 1 as its only other eigenvalue
        return _gap(np.abs(np.linalg.eigvals(w.toarray() - w.mean(axis=1)[:, None])).max())

    def mean_free(x: np.ndarray) -> np.ndarray:
        x = x.ravel()
        return w @ (x - x.mean())

    try:
        values = _eigs(mean_free, n, 1, 60)
    except ArpackError:
        values = 1 - 1 / _eigs(_inverse_laplacian(w), n, 8, 1000)
    return _gap(float(np.abs(values).max()))


def _gap(rho: float) -> float:
    """Return 1 - rho, free of rounding errors at both ends."""
    rho = float(rho)
    return 1.0 if rho < 1e-14 else max(0.0, 1 - rho) if rho < 1 - 1e-14 else 0.0


def _start(n: int) -> np.ndarray:
    """Return a fixed (n,) vector in general position, so that every run gives the same bits."""
    return generator(0, Stream.TOPOLOGY, agent=n).standard_normal(n)


def _extreme(apply: _Apply, n: int) -> float | None:
    """Return the largest modulus of an eigenvalue of a symmetric operator; None if unconverged."""
    operator = LinearOperator((n, n), matvec=lambda x: apply(x.ravel()), dtype=np.float64)
    try:
        values = eigsh(
            operator, k=1, which="LM", v0=_start(n), ncv=40, maxiter=60, tol=1e-12,
            return_eigenvectors=False,
        )  # fmt: skip
    except ArpackError:
        return None
    return float(abs(values[0]))


def _must(value: float | None) -> float:
    if value is None:  # the inverse's leading eigenvalue stands apart, so this is out of reach
        raise ArithmeticError("the spectral gap did not converge")
    return value


def _eigs(apply: _Apply, n: int, k: int, maxiter: int) -> np.ndarray:
    operator = LinearOperator((n, n), matvec=lambda x: apply(x.ravel()), dtype=np.float64)
    return eigs(
        operator, k=k, which="LM", v0=_start(n), ncv=40, maxiter=maxiter, tol=1e-12,
        return_eigenvectors=False,
    )  # fmt: skip


def _inverse_laplacian(w: csr_array) -> _Apply:
    """Return b -> x with (I - w) x = b - mean(b) and mean(x) = 0, for column-stochastic w (n, n).

    Agent 0 is grounded: without its row and column the matrix is regular, if w is irreducible.
    Adding a multiple of the null vector of I - w then makes x mean-free.
    """
    n = w.shape[0]
    laplacian = (eye_array(n) - w).tocsc()
    # symmetric pivoting keeps the fill low; I - w is diagonally dominant, so it needs no other
    lu = splu(
        laplacian[1:, 1:],
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    null = np.concatenate([[1.0], lu.solve(-laplacian[1:, [0]].toarray().ravel())])
    null /= null.sum()

    def apply(b: np.ndarray) -> np.ndarray:
        x = np.concatenate([[0.0], lu.solve((b - b.mean())[1:])])
        return x - x.sum() * null

    return apply
