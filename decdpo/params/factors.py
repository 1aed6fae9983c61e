"""Products of two factors, B A, that are mixed without being formed.

A layer's adapter is B A, with A (r, k) and B (d, r). Of agents j with weights w_j, sum_j w_j = 1,

    sum_j w_j B_j A_j - Bbar Abar = sum_j w_j (B_j - Bbar) (A_j - Abar)
                                  = 1/2 sum_jk w_j w_k (B_j - B_k) (A_j - A_k),          (1)

the interference: what mixing A and B apart misses of mixing B A. It is of second order in the
distances between the agents. The mixed product has rank r times their number; the best that any
product of rank r could do misses its singular values from the r-th on, the floor. Both need the
n r columns of all B and rows of all A side by side, and O(n^2 r^2 (d + k)) operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """Where the factors of one layer lie in the shared vector.

    a, b : of A (rank, inputs) and of B (outputs, rank).
    """

    a: slice
    b: slice
    rank: int
    inputs: int
    outputs: int

    def of(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return A (r, k) and B (d, r) in the shared vector (M,), as views."""
        a = vector[self.a].view(self.rank, self.inputs)
        return a, vector[self.b].view(self.outputs, self.rank)


@dataclass(frozen=True)
class Products:
    """A weighted sum of products, sum_j w_j B_j A_j (d, k), as its factors side by side.

    left : (d, n r) the columns w_j B_j. right : (n r, k) the rows A_j. Both in float64.
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(
        cls, weights: Sequence[float], vectors: Sequence[Tensor], factors: Factors
    ) -> "Products":
        """Join the factors of the shared ``vectors`` (M,) of n agents with their ``weights``."""
        both = [factors.of(vector) for vector in vectors]
        left = torch.cat([w * b.double() for w, (_, b) in zip(weights, both)], dim=1)
        return cls(left, torch.cat([a.double() for a, _ in both]))

    def norm(self) -> float:
        """Return the Frobenius norm."""
        return _norm(self.left, self.right)

    def decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return U (d, m), S (m,), V^T (m, k) of the singular value decomposition, m <= n r."""
        left, upper = torch.linalg.qr(self.left)
        right, lower = torch.linalg.qr(self.right.t())
        u, s, v = torch.linalg.svd(upper @ lower.t(), full_matrices=False)
        return left @ u, s, v @ right.t()


def interference(
    weights: Sequence[float], vectors: Sequence[Tensor], factors: Factors
) -> tuple[float, float, float]:
    """Return the norms of (1), of the floor, and of the mixed product, of one layer.

    weights : of n agents; they sum to one. vectors : (M,) the shared vectors.
    """
    mixed = Products.of(weights, vectors, factors)
    n, r = len(weights), factors.rank
    a = mixed.right.view(n, r, -1)
    b = torch.stack([factors.of(vector)[1].double() for vector in vectors])
    w = torch.tensor(weights, dtype=torch.float64, device=a.device)[:, None, None]
    # The deviations from the mean: their products do not cancel.
    left = w * (b - (w * b).sum(dim=0))
    right = a - (w * a).sum(dim=0)
    missed = _norm(left.permute(1, 0, 2).reshape(-1, n * r), right.reshape(n * r, -1))
    _, s, _ = mixed.decomposed()
    return missed, float(s[r:].norm()), float(s.norm())


def _norm(left: Tensor, right: Tensor) -> float:
    """Return the Frobenius norm of ``left`` (d, m) ``right`` (m, k), by their Gram matrices."""
    square = ((left.t() @ left) * (right @ right.t())).sum()
    return float(square.clamp(min=0).sqrt())


def truncated(
    products: Products, rank: int, frame: Tensor
) -> tuple[Tensor, Tensor]:
    """Return A (r, k) and B (d, r) whose product is the best of rank r; float64.

    frame : (r, k). Of all such factors, those with c orthonormal rows of A are taken that are
    nearest to it, c the root mean square length of its rows: A = c Q V^T, B = U S Q^T / c with the
    rotation Q. So all agents who share the frame have comparable factors, and no row of A fades.
    """
    u, s, v = products.decomposed()
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    frame = frame.double()
    scale = float(frame.norm()) / rank**0.5 or 1.0
    p, _, q = torch.linalg.svd(frame @ v.t())
    turn = p @ q
    return scale * (turn @ v), (u * s) @ turn.t() / scale
