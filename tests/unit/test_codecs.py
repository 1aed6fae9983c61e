"""Every codec: its bytes, its contraction, its chance, and what it refuses."""

import numpy as np
import pytest
import torch

from decdpo.codecs.cast import Cast
from decdpo.codecs.identity import Identity
from decdpo.codecs.quantize import Quantize
from decdpo.codecs.randomk import RandomK
from decdpo.codecs.topk import TopK
from decdpo.errors import NumericalError

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
MAKERS = {
    "identity": Identity,
    "cast": Cast,
    "topk": lambda m, d: TopK(m, d, max(1, m // 20)),
    "randomk": lambda m, d: RandomK(m, d, max(1, m // 20), seed=5),
    "int8": lambda m, d: Quantize(m, d, 8, seed=5),
    "int4": lambda m, d: Quantize(m, d, 4, seed=5),
}
codecs = pytest.mark.parametrize("name", list(MAKERS))


def decoded(codec, vector, round=0):
    code = torch.full((codec.nbytes,), 77, dtype=torch.uint8)
    codec.encode(vector, code, round)
    out = torch.zeros_like(vector)
    codec.add(code, out, round)
    return out


def vectors(size, dtype):
    made = torch.Generator().manual_seed(1)
    plain = torch.randn(size, generator=made, dtype=F64)
    flat = torch.ones(size, dtype=F64)
    flat[::2] = -1
    one = torch.zeros(size, dtype=F64)
    one[size // 3] = 3.0
    return [v.to(dtype) for v in (plain, plain**5, flat, one, 1e-12 * plain, torch.zeros(size))]


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "randomk"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_contraction_in_expectation(name, dtype, size):
    codec = MAKERS[name](size, dtype)
    assert (codec.size, codec.dtype) == (size, dtype) and 0 < codec.delta <= 1
    rounds = {"int8": 20, "int4": 20}.get(name, 1)
    slack = {"int8": 1.1, "int4": 1.1}.get(name, 1.0)
    eps = torch.finfo(dtype).eps ** 2
    for x in vectors(size, dtype):
        wide = x.double()
        errors = [(decoded(codec, x, t).double() - wide).square().sum() for t in range(rounds)]
        norm = float(wide.square().sum())
        assert float(np.mean(errors)) <= (slack * (1 - codec.delta) + eps) * norm
        if name == "identity":
            assert max(errors) == 0


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
@pytest.mark.parametrize("size, kept", [(1, 1), (7, 1), (8, 4), (1000, 50), (1000, 500)])
def test_randomk_leaves_out_one_minus_delta_of_the_square_on_average(size, kept, dtype):
    """Where k divides M the bound is an equation, and the spread about it is known."""
    codec, rounds = RandomK(size, dtype, kept, seed=5), 150
    assert (codec.size, codec.dtype, codec.delta) == (size, dtype, kept / size)
    for x in vectors(size, dtype):
        wide = x.double()
        errors = [(decoded(codec, x, t).double() - wide).square().sum() for t in range(rounds)]
        squares = wide.square().view(kept, -1)
        expected = (1 - codec.delta) * float(squares.sum())
        spread = float(squares.var(dim=1, correction=0).sum() / rounds) ** 0.5
        assert abs(float(np.mean(errors)) - expected) <= 5 * spread + 1e-12 * float(squares.sum())


def test_randomk_keeps_its_bound_where_the_runs_are_unequal():
    x = vectors(1000, F64)[0]
    codec, rounds = RandomK(1000, F64, 300, seed=5), 400
    mean = sum((decoded(codec, x, t) - x).square().sum() for t in range(rounds)) / rounds
    assert float(mean) <= (1 - codec.delta) * float(x.square().sum())


@codecs
def test_add_scales_and_adds(name):
    codec = MAKERS[name](300, F64)
    x = vectors(300, F64)[0]
    code = torch.empty(codec.nbytes, dtype=torch.uint8)
    codec.encode(x, code, 3)
    out = torch.ones(300, dtype=F64)
    codec.add(code, out, 3, -0.25)
    torch.testing.assert_close(out, 1 - 0.25 * decoded(codec, x, 3), rtol=0, atol=1e-15)


@codecs
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(name, bad):
    codec = MAKERS[name](100, F32)
    x = torch.ones(100)
    x[98] = bad
    with pytest.raises(NumericalError, match="1 NaN or infinite"):
        decoded(codec, x)


@pytest.mark.parametrize("name", ["cast", "int8", "int4"])
def test_what_does_not_fit_is_refused(name):
    with pytest.raises(NumericalError, match="beyond the range"):
        decoded(MAKERS[name](10, F64), torch.full((10,), 1e300, dtype=F64))


@codecs
def test_the_same_seed_and_round_give_the_same_code_and_others_do_not(name):
    x = vectors(1000, F32)[0]
    first, again = MAKERS[name](1000, F32), MAKERS[name](1000, F32)
    for t in (4, 9, 4):
        assert torch.equal(decoded(first, x, t), decoded(again, x, t))
    changes = name in ("randomk", "int8", "int4")
    assert torch.equal(decoded(first, x, 4), decoded(first, x, 5)) != changes


@pytest.mark.parametrize("bits", [8, 4])
def test_quantisation_is_unbiased(bits):
    codec = Quantize(200, F64, bits, seed=2)
    x = vectors(200, F64)[0]
    rounds = 2000
    mean = sum(decoded(codec, x, t) for t in range(rounds)) / rounds
    step = x.abs().max() / codec.limit
    assert (mean - x).abs().max() < 4.5 * 0.5 * step / rounds**0.5
    assert (decoded(codec, x) - x).abs().max() < step
    largest = int(x.abs().argmax())
    assert abs(float(decoded(codec, x)[largest] - x[largest])) < 1e-6


@pytest.mark.parametrize("bits", [8, 4])
def test_quantisation_is_its_formula(bits):
    codec = Quantize(130, F64, bits, seed=2)
    x = vectors(130, F64)[0]
    noise = codec._noise(6, x).numpy().astype(np.float64)
    blocks = np.zeros(noise.shape)
    blocks.reshape(-1)[:130] = x.numpy()
    scale = (np.abs(blocks).max(axis=1) / codec.limit).astype(np.float32).astype(np.float64)
    expected = scale[:, None] * np.clip(
        np.floor(blocks / scale[:, None] + noise), -codec.limit, codec.limit
    )
    np.testing.assert_array_equal(decoded(codec, x, 6).numpy(), expected.reshape(-1)[:130])


def test_topk_keeps_the_largest_and_of_equals_the_first():
    x = torch.tensor([1.0, -3.0, 2.0, 3.0, -2.0, 2.0, 0.0])
    assert decoded(TopK(7, F32, 3), x).tolist() == [0, -3, 2, 3, 0, 0, 0]
    assert decoded(TopK(7, F32, 4), x).tolist() == [0, -3, 2, 3, -2, 0, 0]
    assert torch.equal(decoded(TopK(7, F32, 7), x), x)


def test_topk_places_beyond_65536_survive():
    size = 3 * 65536 + 11
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    x[-2] = 9.0
    codec = TopK(size, F32, 5000)
    kept = np.argsort(-x.abs().numpy(), kind="stable")[:5000]
    expected = torch.zeros(size)
    expected[kept] = x[kept]
    assert torch.equal(decoded(codec, x), expected)
    assert {int(p) // 65536 for p in kept} == {0, 1, 2, 3}


def test_randomk_meets_every_value_equally_often():
    codec = RandomK(60, F32, 5, seed=1)
    x, rounds = torch.ones(60), 3000
    hits = sum(decoded(codec, x, t) for t in range(rounds))
    assert all(float(decoded(codec, x, t).sum()) == 5 for t in range(20))
    expected, spread = rounds / 12, (rounds / 12 * 11 / 12) ** 0.5
    assert (hits - expected).abs().max() < 4.5 * spread


@pytest.mark.parametrize("maker", [TopK.of_ratio, RandomK.of_ratio])
@pytest.mark.parametrize("size", [1000, 65536, 300_000])
@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_the_ratio_is_of_bytes(maker, size, dtype):
    plain = size * dtype.itemsize
    codec = maker(size, dtype, 1 / 16)
    assert 0.985 * plain / 16 - 8 < codec.nbytes <= plain / 16
    assert maker(4, dtype, 1 / 16).kept == 1
    assert maker(100, dtype, 1.0).kept <= 100


@pytest.mark.parametrize("size", [1, 65, 2048])
def test_bytes_of_the_fixed_codecs(size):
    assert Identity(size, F32).nbytes == 4 * size
    assert Cast(size, F32).nbytes == 2 * size
    assert Quantize(size, F32, 8).nbytes == -(-size // 1024) * 1028
    assert Quantize(size, F32, 4).nbytes == -(-size // 64) * 36


def test_wrong_constants_are_refused():
    for make in (
        lambda: TopK(5, F32, 0), lambda: RandomK(5, F32, 6), lambda: Quantize(5, F32, 3)
    ):
        with pytest.raises(ValueError):
            make()
