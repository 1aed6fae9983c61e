"""A narrow copy of the parameters to compute with, beside float32 masters to train.

    w = cast(x),        g += dL/dw,        x <- x - eta g

Steps far below the spacing of bfloat16 values are not lost, for they are taken by x in float32.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from decdpo.params.flat import FlatParams, Layout, set_main_grad


class ComputeView:
    """A module whose parameters are a narrow copy of a float32 vector.

    module : its trainable parameters become views of one (P,) buffer of type ``dtype``, made once.
    Their gradients are added to the float32 gradient of the vector one by one, as soon as each is
    known, so that no second gradient of the whole model exists.
    """

    def __init__(self, module: nn.Module, layout: Layout, dtype: torch.dtype) -> None:
        parameters = dict(module.named_parameters())
        first = parameters[layout.names[0]]
        self._cast = torch.empty(layout.size, dtype=dtype, device=first.device)
        self._params: FlatParams | None = None
        self._grad: Tensor | None = None
        self._seen: tuple[Any, int] = (lambda: None, -1)
        self._parameters: list[tuple[nn.Parameter, int, int]] = []
        offsets = layout.offsets
        for name, shape, lo, hi in zip(layout.names, layout.shapes, offsets, offsets[1:]):
            parameter = parameters[name]
            parameter.data = self._cast[lo:hi].view(shape)
            parameter.grad = None
            self._parameters.append((parameter, lo, hi))
            parameter.register_post_accumulate_grad_hook(self._collect(lo, hi))

    def follow(self, params: FlatParams, need_grad: bool = True) -> None:
        """Compute with ``params`` from now on, cast in one pass if they are new or have changed.

        Without ``need_grad`` no gradient is made room for.
        """
        # A tensor counts the operations that changed it, also those through a view. Another one may
        # have the address of one that is gone.
        data, (last, version) = params.data, self._seen
        if last() is not data or version != data._version:
            self._cast.copy_(data)
            self._seen = weakref.ref(data), data._version
        if need_grad and self._grad is not params.grad:
            self._grad = params.grad
            for parameter, lo, hi in self._parameters:
                set_main_grad(parameter, params.grad[lo:hi].view(parameter.shape))
        self._params = params

    def _collect(self, lo: int, hi: int) -> Any:
        def collect(parameter: Tensor) -> None:
            assert self._params is not None
            if parameter.grad is None:
                # It was added to the main gradient by who computed it.
                return
            self._params.grad[lo:hi].add_(parameter.grad.view(-1))
            parameter.grad = None

        return collect
