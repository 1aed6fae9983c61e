"""What is made again in the backward pass instead of kept, and what is kept of the rest."""

import gc
import weakref

import pytest
import torch

from decdpo.policies.lm.forward import remade


def kept_by(block):
    """Return what ``block`` computes, with weak references to what is kept of it, and the bytes."""
    refs, storages = [], {}

    def keep(tensor):
        found = remade.spare(tensor)
        refs.append(weakref.ref(found))
        for source in found.sources if isinstance(found, remade.Remade) else (found,):
            storage = source.tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return found

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda found: found.get()):
        result = block()
    return result, refs, sum(storages.values())


def test_the_gate_and_the_norms_of_a_layer_are_not_kept():
    torch.manual_seed(0)
    x, w = torch.randn(64, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    up, gate, down = (torch.randn(16, 16, requires_grad=True) for _ in range(3))

    def layer():
        r = (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        normed = w * (x * r)
        return (torch.nn.functional.silu(normed @ gate) * (normed @ up)) @ down

    _out, _, nbytes = kept_by(layer)
    # The input, its lengths, and what both matrices make of it; not the norm, the gate, the product
    of_tokens, of_matrices = 4 * 64 * (3 * 16 + 1), 4 * (3 * 16 * 16 + 16)
    assert nbytes == of_tokens + of_matrices


def test_a_view_of_what_is_made_again_is_that_view():
    x = torch.randn(4, 6, requires_grad=True)
    y = torch.randn(6, requires_grad=True)
    with remade.remade():
        total = ((x * y)[1:, ::2].t() @ torch.ones(3, 2, requires_grad=True)).square().sum()
    total.backward()
    slope, x.grad, y_grad = x.grad, None, y.grad
    y.grad = None
    ((x * y)[1:, ::2].t() @ torch.ones(3, 2)).square().sum().backward()
    assert x.grad.equal(slope) and y.grad.equal(y_grad)


def test_what_a_maker_remembers_is_made_of_its_sources():
    x = torch.randn(1, 3, 10, 4, requires_grad=True)
    w = torch.randn(1, 6, 4, 4, requires_grad=True)

    def twice(x):
        return x.repeat_interleave(2, 1)

    def some(source):
        all_of_it = remade.remember(twice(source), twice, source)
        # A part of it, and a part that is another copy.
        end = all_of_it[:, :, 4:].contiguous()
        picked = remade.remember(end, lambda x: twice(x)[:, :, 4:].contiguous(), source)
        return (all_of_it[:, :, :5] @ w).sum() + (picked @ w).square().sum()

    with remade.remembering():
        result, _, nbytes = kept_by(lambda: some(x.sin()))
    # What the sine is of, the sine, both factors w, what is squared.
    assert nbytes == 4 * (2 * x.numel() + w.numel() + 6 * 6 * 4)
    result.backward()
    found, x.grad = x.grad, None
    slope, w.grad = w.grad, None
    some(x.sin()).backward()
    assert x.grad.equal(found) and w.grad.equal(slope)


def test_a_kept_value_that_is_changed_in_place_is_an_error():
    x = torch.ones(3, requires_grad=True)
    with remade.remade():
        y = x + 0.0
        z = y.square().sum()
    with torch.no_grad():
        y.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()


def test_nothing_is_kept_once_the_result_is_gone():
    x = torch.ones(3, requires_grad=True)
    gc.disable()
    try:
        # Of the exponential the result is kept, which must not hold the operation that keeps it.
        result, refs, _ = kept_by(lambda: torch.nn.functional.silu(x * x).exp() * x)
        assert [ref() for ref in refs if ref() is None] == [] != refs
        del result
        assert [ref() for ref in refs if ref() is not None] == []
    finally:
        gc.enable()
