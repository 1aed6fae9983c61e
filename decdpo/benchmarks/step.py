"""How long a step of a language model takes, and in how much memory, ingredient by ingredient.

One process measures one way of doing it, so that its peak of memory is its own; started by
``decdpo bench step`` as ``python -m decdpo.benchmarks.step SPEC OUT``. With ``"turns": true`` in
the specification it takes a step for each line of its standard input, and prints each: two
programs can then take turns.

    plain          two padded rows for each pair, logits of every token, the reference model beside
    head           logits of answers alone, a chunk at a time
    prefix         the prompt once for both answers
    packing        several pairs in one row
    reference      the reference's log-probabilities known beforehand
    bf16           arithmetic in bfloat16, parameters in float32
    checkpointing  activations computed again in the backward pass
    lora           adapters of the attention's projections trained, the model itself frozen
    compile        the model's layers compiled by torch
    graphs         on a GPU, the operations of a step recorded and begun at once
"""

import copy
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decdpo.benchmarks.rows import TwoRows
from decdpo.comm.device import take_gpu
from decdpo.data.index import ShardIndex
from decdpo.data.shard import SourceRows
from decdpo.losses.dpo import DPO
from decdpo.params.flat import FlatParams
from decdpo.params.optim import AdamW
from decdpo.policies.causal_lm import CausalLM, TokenShard
from decdpo.policies.lm.adapters.layers import LoraOptions
from decdpo.policies.lm.forward.packed import PackedLM
from decdpo.policies.lm.reference import FrozenReference
from decdpo.policies.lm.text.speller import TextRules
from decdpo.policies.lm.work import Sizes, known_peak, peak_memory, step_work
from decdpo.policies.objective import Objective
from decdpo.policies.tokens import TokenizedPairs, Truncation, tokenize

WARM_UP = 1
"""Steps that are not counted: they make what is made once."""
ADAPTERS = LoraOptions(rank=8, alpha=16.0, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
"""What "lora" trains."""


def some_tokens(count: int, vocabulary: int, limit: int) -> TokenizedPairs:
    """Return ``count`` pairs of arbitrary tokens with lengths like those of short dialogues."""
    rng = np.random.default_rng(0)
    medians = np.array([limit / 3, limit / 8, limit / 8])
    lengths = (medians * np.exp(0.5 * rng.standard_normal((count, 3)))).astype(int)
    lengths = lengths.clip(2, [limit // 2, limit // 2, limit // 2])
    ends = np.cumsum(lengths).reshape(count, 3)
    edges = np.hstack((ends[:, :1] - lengths[:, :1], ends))
    ids = rng.integers(vocabulary, size=lengths.sum()).astype(np.int32)
    return TokenizedPairs(ids, edges, Truncation(count, limit))


def read_tokens(spec: dict[str, Any], policy: CausalLM) -> TokenizedPairs:
    """Return the pairs to train on: of a file of tokens, of shards, or made up."""
    count, limit = spec["pairs"], spec["max_length"]
    if spec.get("tokens"):
        held = np.load(spec["tokens"])
        return TokenizedPairs(held["ids"], held["edges"], Truncation(len(held["edges"]), limit))
    if not spec.get("data"):
        module: Any = policy.scorer.module
        return some_tokens(count, module.get_output_embeddings().weight.shape[0], limit)
    shard = ShardIndex.load(spec["data"]).open(0)
    rows = np.arange(min(shard.num_pairs, count))
    return tokenize(shard.pairs(rows), policy.speller, shard.prompt_format, limit)


class Bench:
    """A model, its pairs and an optimizer, ready to take steps.

    spec : ``model``, ``with`` (the ingredients switched on), ``batch``, ``pairs``, ``max_length``,
    ``tokens_at_once``, ``threads``, ``device``, ``lr``, and what ``read_tokens`` takes.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        on = set(spec["with"])
        torch.set_num_threads(spec["threads"])
        if spec["device"] == "cuda":
            take_gpu("cuda:0")
        self.policy = CausalLM(
            spec["model"],
            dtype="bfloat16" if "bf16" in on else "float32",
            device=spec["device"],
            max_length=spec["max_length"],
            gradient_checkpointing="checkpointing" in on,
            # Without adapters what scores by the reference is made below, once the way is chosen.
            cache_reference="reference" in on or "lora" not in on,
            tokens_at_once=spec["tokens_at_once"] if "packing" in on else 0,
            compiled="compile" in on,
            graphs="graphs" in on,
            rules=TextRules(chat_template=spec.get("chat_template", "")),
            lora=ADAPTERS if "lora" in on else None,
        )
        scorer = self.policy.scorer
        if "prefix" not in on:
            if isinstance(scorer, PackedLM):
                scorer.release()
            rows: Any = TwoRows(scorer.module, "head" not in on)
            scorer = self.policy.scorer = rows
        if not on & {"reference", "lora"}:
            frozen = copy.deepcopy(scorer.module).requires_grad_(False)
            self.policy.reference = FrozenReference(scorer.of(frozen))
        tokens = read_tokens(spec, self.policy)
        self.shared = isinstance(self.policy.scorer, PackedLM)
        self.sizes = Sizes.of(self.policy.scorer.module)
        self.params = FlatParams(self.policy.layout, self.policy.initial())
        self.data = self._data(tokens, "reference" in on)
        self.optimizer = AdamW()
        self.state = self.optimizer.init(self.params.data)
        self.objective = Objective(self.policy, DPO(beta=0.1))
        self.lr = float(spec["lr"])
        rows = np.arange(len(tokens.edges))
        size = min(spec["batch"], len(rows))
        self.batches = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]

    def _data(self, tokens: TokenizedPairs, cached: bool) -> TokenShard:
        count = len(tokens.edges)
        data = TokenShard(
            agent=0, num_train=count, num_heldout=0, weight=None, score_gap=None,
            source_rows=SourceRows(np.arange(count)), alike=tokens.alike, tallies=(), notes=(),
            tokens=tokens, lengths=torch.from_numpy(tokens.lengths).to(self.policy.device).float(),
            reference=torch.zeros(2, count, device=self.policy.device) if cached else None,
        )  # fmt: skip
        if cached:
            for part in self.policy.parts(data, np.arange(count)):
                scores = self.policy.forward(self.params, data, part, need_grad=False).scores
                assert data.reference is not None
                data.reference[0, part], data.reference[1, part] = scores.chosen, scores.rejected
        return data

    def step(self, number: int) -> dict[str, float]:
        """Take step ``number``; returns its loss, CPU and wall seconds, and its work."""
        rows = self.batches[number % len(self.batches)]
        cpu, wall = time.process_time(), time.perf_counter()
        stats = self.objective.gradient(self.params, self.data, rows)
        self.optimizer.step(self.params.data, self.state, self.params.grad, self.lr)
        gpu = self.policy.device.type == "cuda"
        if gpu:
            torch.cuda.synchronize()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        work = step_work(self.sizes, self.data.tokens, rows, shared=self.shared)
        return {
            "loss": stats.means()["loss"], "cpu": cpu, "wall": wall, "pairs": len(rows),
            "logical": work.logical, "physical": work.physical, "flops": work.flops,
            "peak": torch.cuda.max_memory_allocated() if gpu else peak_memory(),
        }  # fmt: skip


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of products of large matrices, the best of a few."""
    known = known_peak(device, dtype)
    if known is not None:
        return known
    # Of the shapes that a small model has; square ones of a CPU are no faster.
    a, b = torch.randn(512, 768).to(device, dtype), torch.randn(2048, 768).to(device, dtype).t()
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        if device.type == "cuda":
            (a @ b).sum().item()
        else:
            a @ b
        best = max(best, 2 * 512 * 768 * 2048 / (time.perf_counter() - began))
    return best


def profile(bench: Bench, number: int) -> list[dict[str, Any]]:
    """Return where a step's time goes: seconds and share of the operations that take most."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    gpu = bench.policy.device.type == "cuda"
    with record(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as found:
        bench.step(number)
    name = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = [(e.key, getattr(e, name) * 1e-6, e.count) for e in found.key_averages()]
    total = sum(seconds for _, seconds, _ in events) or 1.0
    events.sort(key=lambda event: -event[1])
    return [
        {"operation": name, "seconds": seconds, "share": seconds / total, "calls": calls}
        for name, seconds, calls in events[:12]
    ]


def turns(steps: int) -> Iterator[int]:
    """Yield a step's number for each line of standard input."""
    print(json.dumps({"ready": True}), flush=True)
    for number, _ in zip(range(steps), sys.stdin):
        yield number


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Take the steps of a specification; returns its record."""
    bench = Bench(spec)
    total = spec["steps"] + (0 if spec.get("turns") else WARM_UP)
    steps = []
    for number in turns(total) if spec.get("turns") else range(total):
        steps.append(bench.step(number))
        if spec.get("turns"):
            print(json.dumps(steps[-1]), flush=True)
    counted = steps[WARM_UP:] or steps
    peak = measured_peak(bench.policy.device, bench.policy.dtype)
    cpu, wall = (sum(step[key] for step in counted) for key in ("cpu", "wall"))
    # On a shared processor the seconds computed count; a GPU computes while the processor waits.
    seconds = wall if bench.policy.device.type == "cuda" else cpu / spec["threads"]
    return {
        "with": spec["with"],
        "losses": [step["loss"] for step in steps],
        "cpu_seconds": float(np.median([step["cpu"] for step in counted])),
        "wall_seconds": float(np.median([step["wall"] for step in counted])),
        "each_cpu_seconds": [step["cpu"] for step in counted],
        "pairs_per_second": sum(step["pairs"] for step in counted) / seconds,
        "tokens_per_second": sum(step["logical"] for step in counted) / seconds,
        "physical_tokens": sum(step["physical"] for step in counted) / len(counted),
        "flops": sum(step["flops"] for step in counted) / len(counted),
        "mfu": sum(step["flops"] for step in counted) / seconds / peak,
        "peak_flops": peak,
        "peak_memory_bytes": max(step["peak"] for step in steps),
        "notes": list(bench.policy.notes),
        "profile": profile(bench, total) if spec.get("profile") else None,
    }


def main() -> None:
    """Measure the JSON specification argv[1] and write the record to argv[2]."""
    Path(sys.argv[2]).write_text(json.dumps(measure(json.loads(sys.argv[1]))), encoding="utf-8")


if __name__ == "__main__":
    main()
