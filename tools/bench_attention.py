"""Ways for the tokens of packed pairs to attend: one layer, forward and backward, same row.

    python tools/bench_attention.py --device cuda --json out.json

masked   a mask for each pair, pair after pair      row    one mask for the whole row
varlen   one call of a kernel for many sequences    flex   FlexAttention, compiled, a block mask

Short pairs are like those of HH-RLHF, long ones have about 900 tokens. `error` is the relative
difference of the gradients from the first way's, `same` whether a second call gives the same bits.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.comm.device import take_gpu
from decdpo.policies.lm.forward import attention
from decdpo.policies.lm.forward.packing import PackedPairs, pack
from decdpo.policies.tokens import TokenizedPairs, Truncation

HEADS, GROUPS, WIDTH = 9, 3, 64
"""Those of SmolLM2-135M."""
REGIMES = {"short": ([90, 45, 45], [160, 90, 90]), "long": ([250, 330, 330], [500, 520, 520])}
"""Medians and limits of the tokens of prompt, chosen and rejected answer."""
BLOCK = 128
"""What a row is filled up to a multiple of for FlexAttention, so that it is compiled once."""


def row_of(pairs: int, regime: str, seed: int) -> PackedPairs:
    """Return a packed row of pairs of arbitrary tokens."""
    rng = np.random.default_rng(seed)
    medians, limits = REGIMES[regime]
    lengths = np.array(medians) * np.exp(0.5 * rng.standard_normal((pairs, 3)))
    lengths = lengths.astype(int).clip(4, limits)
    ends = np.cumsum(lengths).reshape(pairs, 3)
    edges = np.hstack((ends[:, :1] - lengths[:, :1], ends))
    ids = np.zeros(lengths.sum(), np.int32)
    return pack(TokenizedPairs(ids, edges, Truncation(pairs, 2048)), np.arange(pairs))


class Flex:
    """FlexAttention with a block mask of the row, compiled for rows of any length."""

    compiled: Any = None

    def __init__(self, row: PackedPairs, device: torch.device) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        if Flex.compiled is None:
            Flex.compiled = torch.compile(flex_attention, dynamic=True)
        self._size = len(row.ids)
        self._more = -self._size % BLOCK
        pair = torch.full((self._size + self._more,), -1)
        answer = torch.zeros_like(pair)
        for number, s in enumerate(row.segments):
            pair[s.begin : s.end] = number
            answer[s.chosen : s.rejected] = 1
            answer[s.rejected : s.end] = 2
        pair, answer = pair.to(device), answer.to(device)

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            blind = (answer[q] == 2) & (answer[k] == 1)
            return (pair[q] == pair[k]) & (q >= k) & ~blind

        size = self._size + self._more
        self._mask = create_block_mask(sees, None, None, size, size, device=str(device))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
        """Return (1, T, heads, D)."""
        q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, self._more)) for x in (q, k, v))
        out: Tensor = Flex.compiled(q, k, v, block_mask=self._mask, enable_gqa=True)
        return out[:, :, : self._size].transpose(1, 2)


def ways(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[PackedPairs], Any]]:
    """Return what makes each way of a row."""
    made: dict[str, Callable[[PackedPairs], Any]] = {
        "masked": lambda row: attention.Masked.of(row, dtype, device),
        "row": lambda row: attention.MaskedRow.of(row, dtype, device),
    }
    if device.type == "cuda":
        made["varlen"] = lambda row: attention.Varlen.of(row, dtype, device)
    return {**made, "flex": lambda row: Flex(row, device)}


def measure(
    make: Callable[[PackedPairs], Any], row: PackedPairs, args: argparse.Namespace, first: Any
) -> dict[str, Any]:
    """Time one way; first : what the first way gave, for the error."""
    device, dtype = torch.device(args.device), args.dtype
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, heads, len(row.ids), WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    q, k, v = (torch.randn(s, generator=draw).to(device, dtype).requires_grad_() for s in shapes)
    slope = torch.randn(shapes[0], generator=draw).to(device, dtype).transpose(1, 2)

    def step() -> list[Tensor]:
        out = way(q, k, v, None, None)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), slope)]

    began = time.perf_counter()
    way = make(row)
    found = step()
    wait()
    start, seconds, computed = time.perf_counter() - began, [], []
    again = step()
    for _ in range(args.steps):
        began, cpu = time.perf_counter(), time.process_time()
        step()
        wait()
        seconds.append(time.perf_counter() - began)
        computed.append(time.process_time() - cpu)
    errors = [
        float((a.float() - b.float()).norm() / b.float().norm())
        for a, b in zip(found, found if first is None else first)
    ]
    return {
        "found": found, "first_seconds": start, "seconds": float(np.median(seconds)),
        "cpu_seconds": float(np.median(computed)), "error": max(errors),
        "same": all(torch.equal(a, b) for a, b in zip(found, again)),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Measure every way on every row, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a GPU")
    parser.add_argument("--rows", default="short:1,short:8,short:32,long:8", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="that are timed (%(default)s)")
    parser.add_argument("--ways", help="of masked, row, varlen, flex; all without")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    args.dtype = getattr(
        torch, args.dtype or {"cpu": "float32", "cuda": "bfloat16"}[args.device]
    )
    if args.device == "cuda":
        take_gpu("cuda:0")
    made = ways(torch.device(args.device), args.dtype)
    names = args.ways.split(",") if args.ways else list(made)
    cells: list[dict[str, Any]] = []
    for number, text in enumerate(args.rows.split(",")):
        regime, _, count = text.partition(":")
        row = row_of(int(count), regime, number)
        first = None
        for name in names:
            try:
                found = measure(made[name], row, args, first)
            except Exception as fault:  # A way that fails here is what one wants to know.
                said = str(fault).splitlines() or [""]
                found = {"failed": f"{type(fault).__name__}: {said[0][:200]}"}
            first = found.pop("found", None) if first is None else first
            found.pop("found", None)
            cells.append({"row": text, "tokens": len(row.ids), "way": name, **found})
            print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
            if args.json is not None:
                args.json.write_text(json.dumps(cells, indent=1) + "\n")
    print(f"{'row':<10}{'tokens':>7}  {'way':<8}{'ms':>9}{'CPU ms':>9}{'error':>10}  same")
    for c in cells:
        line = f"{c['row']:<10}{c['tokens']:>7}  {c['way']:<8}"
        if "failed" in c:
            print(f"{line} {c['failed']}")
            continue
        numbers = f"{1e3 * c['seconds']:>9.2f}{1e3 * c['cpu_seconds']:>9.2f}{c['error']:>10.1e}"
        print(f"{line}{numbers}  {c['same']}")


if __name__ == "__main__":
    main()
