"""Flat parameters and the optimizers on them."""

import pytest
import torch
from torch import nn

from decdpo.errors import PolicyError
from decdpo.params.compute import ComputeView
from decdpo.params.flat import FlatParams, Layout, Tag, flatten
from decdpo.params.optim import SGD, AdamW, Constant, Cosine, InverseSqrt, Warmup, clip


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_binding_makes_parameters_and_gradients_views():
    module = model()
    layout = Layout.of(module)
    params = FlatParams(layout, flatten(module, layout))
    params.bind(module)
    x = torch.randn(5, 3)
    expected = module(x)
    module(x).pow(2).sum().backward()
    assert params.grad.abs().sum() > 0
    assert torch.equal(params.grad[:12].view(4, 3), module[0].weight.grad)
    params.data.mul_(0)
    assert torch.equal(module(x), torch.zeros_like(expected))


def test_rebinding_switches_between_two_agents():
    module = model()
    layout = Layout.of(module)
    first = FlatParams(layout, flatten(module, layout))
    second = FlatParams(layout, first.data * 2)
    x = torch.randn(2, 3)
    first.bind(module)
    y = module(x)
    second.bind(module)
    assert not torch.equal(module(x), y)
    first.bind(module)
    assert torch.equal(module(x), y)


def test_personal_parameters_lie_behind_the_shared_ones():
    module = model()
    layout = Layout.of(module, personal=["0.bias", "0.weight"])
    assert layout.names == ("2.weight", "2.bias", "0.weight", "0.bias")
    assert layout.num_shared == 10 and layout.size == 26
    params = FlatParams(layout, flatten(module, layout))
    assert params.shared.data_ptr() == params.data.data_ptr() and params.shared.shape == (10,)
    assert layout.digest != Layout.of(module).digest


def test_mixed_types_and_frozen_models_are_refused():
    module = model()
    module[0].double()
    with pytest.raises(PolicyError, match="float32.*float64"):
        Layout.of(module)
    with pytest.raises(PolicyError, match="no trainable"):
        Layout.of(model().requires_grad_(False))


def test_a_vector_of_the_wrong_shape_is_refused():
    layout = Layout.of(model())
    for wrong in (torch.zeros(3), torch.zeros(layout.size, dtype=torch.float64)):
        with pytest.raises(ValueError, match="expected contiguous"):
            FlatParams(layout, wrong)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (SGD(), dict(momentum=0.0)),
        (SGD(momentum=0.9), dict(momentum=0.9)),
        (SGD(momentum=0.9, nesterov=True), dict(momentum=0.9, nesterov=True)),
        (SGD(momentum=0.5, weight_decay=0.1), dict(momentum=0.5, weight_decay=0.1)),
    ],
)
def test_sgd_follows_torch(ours, theirs):
    x, reference = torch.randn(50), nn.Parameter(torch.empty(50))
    reference.data.copy_(x)
    check_against(ours, torch.optim.SGD([reference], lr=0.1, **theirs), x, reference)


def test_adamw_follows_torch():
    x, reference = torch.randn(50), nn.Parameter(torch.empty(50))
    reference.data.copy_(x)
    ours = AdamW(beta1=0.8, beta2=0.95, weight_decay=0.1)
    torchs = torch.optim.AdamW([reference], lr=0.1, betas=(0.8, 0.95), weight_decay=0.1)
    check_against(ours, torchs, x, reference)


def check_against(ours, torchs, x, reference):
    state = ours.init(x)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        grad = torch.randn(50, generator=generator)
        reference.grad = grad.clone()
        torchs.step()
        ours.step(x, state, grad.clone(), 0.1)
        torch.testing.assert_close(x, reference.data, rtol=2e-6, atol=1e-7)
    assert int(state.steps) == 5


@pytest.mark.parametrize("optimizer", [SGD(), SGD(momentum=0.9), AdamW()])
def test_a_compute_view_follows_every_step(optimizer):
    module = model()
    layout = Layout.of(module)
    params = FlatParams(layout, flatten(module, layout))
    view = ComputeView(module, layout, torch.bfloat16)
    state = optimizer.init(params.data)
    for _ in range(3):
        optimizer.step(params.data, state, torch.ones(layout.size), 0.1)
        view.follow(params)
        assert torch.equal(module[0].weight.data.view(-1), params.data[:12].bfloat16())


def test_clipping_scales_only_long_gradients():
    grad = torch.tensor([3.0, 4.0])
    clip(grad, 10.0)
    assert grad.tolist() == [3.0, 4.0]
    clip(grad, 1.0)
    torch.testing.assert_close(grad, torch.tensor([0.6, 0.8]))


def test_schedules():
    assert Constant(0.1)(10**6) == 0.1
    cosine = Cosine(2.0, total=10, floor=0.1)
    assert cosine(0) == 2.0 and abs(cosine(5) - 1.1) < 1e-12
    assert abs(cosine(10) - 0.2) < 1e-12 and cosine(99) == cosine(10)
    assert abs(InverseSqrt(1.0)(3) - 0.5) < 1e-12
    warm = Warmup(4, Constant(1.0))
    assert [warm(k) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_tags_put_shared_parameters_first_personal_ones_last_and_frozen_ones_outside():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 1))
    tags = {"0.weight": Tag.FROZEN, "0.bias": Tag.PERSONAL, "1.weight": Tag.FROZEN}
    layout = Layout.tagged(module, tags)
    assert layout.names == ("1.bias", "2.weight", "2.bias", "0.bias")
    assert (layout.num_shared, layout.size, layout.has_personal) == (5, 8, True)
    assert not module[0].weight.requires_grad and module[0].bias.requires_grad
    assert [layout.tag(n) for n in ("1.bias", "0.bias", "0.weight")] == [*Tag]
    assert layout.place("0.bias") == slice(5, 8)
    with pytest.raises(ValueError, match="no parameter 'head'"):
        Layout.tagged(module, {"head": Tag.SHARED})
