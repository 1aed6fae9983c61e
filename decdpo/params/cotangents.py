"""The way back from cotangents: one scalar whose gradient is that of a vector-Jacobian product."""

from torch import Tensor


def paired(outputs: Tensor, cotangents: Tensor) -> Tensor:
    """Return the scalar sum of ``outputs * cotangents``, both of one shape.

    Its gradient by ``outputs`` is ``cotangents`` to the bit, so ``backward`` and ``autograd.grad``
    need no ``grad_outputs``: for these torch imports its symbolic shapes, one second of each start.
    """
    return (outputs * cotangents).sum()
