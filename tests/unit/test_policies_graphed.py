"""Rows filled up to few sizes, and passes that are recorded once and played again.

On a CPU a stand-in records: it does again what was recorded, at the same addresses.
"""

import numpy as np
import pytest
import torch
from model_families import FAMILIES, random_model
from random_model import SMALL, byte_tokenizer, write_random

from decdpo.benchmarks.step import Bench
from decdpo.errors import PolicyError
from decdpo.params.flat import FlatParams, Layout, flatten
from decdpo.policies.lm.forward import attention, graphed
from decdpo.policies.lm.forward.filled import LEAST, fill, up
from decdpo.policies.lm.forward.graphed import GraphedLM
from decdpo.policies.lm.forward.packed import PackedLM
from decdpo.policies.lm.forward.packing import pack
from decdpo.policies.lm.forward.plain import PlainLM
from decdpo.policies.tokens import TokenizedPairs, Truncation

transformers = pytest.importorskip("transformers")

VOCABULARY = 97
REPEATING = [family for family in FAMILIES if family != "soft caps"]


def tokens(count, seed=0, most=(30, 15, 15)):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, most, (count, 3))
    ends = np.cumsum(lengths).reshape(count, 3)
    edges = np.hstack((ends[:, :1] - lengths[:, :1], ends))
    ids = rng.integers(2, VOCABULARY, lengths.sum()).astype(np.int32)
    return TokenizedPairs(ids, edges, Truncation(count, 128))


def varlen_on_a_cpu(q, k, v, queries, keys, longest, scale):
    """Do what the kernel of GPUs does, of sequences without tokens as well."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    found = []
    for a, b, c, d in zip(queries, queries[1:], keys, keys[1:]):
        assert b - a <= longest[0] and b - a <= d - c <= longest[1]
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * scale
        late = torch.ones(b - a, d - c, dtype=torch.bool).triu(d - c - (b - a) + 1)
        weights = scores.masked_fill(late, -torch.inf).softmax(-1)
        found.append(torch.einsum("hqk,khd->qhd", weights, v[c:d]))
    assert b == len(q) and d == len(k)
    return torch.cat(found)


class Recorder:
    """Counts what is recorded, and does it again when it is played."""

    def __init__(self):
        self.recorded = 0

    def __call__(self, run):
        self.recorded += 1
        return run


@pytest.fixture(autouse=True)
def on_a_cpu(request, monkeypatch):
    if "cuda" not in request.node.name:
        monkeypatch.setattr(attention, "varlen", varlen_on_a_cpu)


def trained(family):
    """Return a model whose gradient goes into a vector, and the vector."""
    model = random_model(family, VOCABULARY)
    layout = Layout.of(model)
    params = FlatParams(layout, flatten(model, layout))
    params.bind(model)
    return model, params


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_sizes_are_few_and_not_far_above_what_is_needed(steps):
    sizes = [up(count, steps) for count in range(1, 20000)]
    assert all(count <= size for count, size in enumerate(sizes, 1))
    assert all(size - count < max(LEAST, count / steps) for count, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert len({size for size in sizes if 1024 < size <= 2048}) == steps


@pytest.mark.parametrize("count", [1, 2, 7, 40, 150])
def test_what_is_filled_in_keeps_to_itself(count):
    pairs = tokens(count, seed=count)
    row = pack(pairs, np.arange(count))
    filled = fill(row)
    sizes = filled.sizes
    found = map(np.asarray, filled.parts)
    ids, positions, gather, uses, sources, targets, answers, queries, keys = found
    size, scored = len(row.ids), len(row.targets)
    assert (len(ids), len(sources), len(gather)) == (sizes.tokens, sizes.scored, sizes.keys)
    assert len(queries) == len(keys) == sizes.sequences + 1
    assert ids[:size].tolist() == row.ids.tolist() and ids.max() < VOCABULARY
    assert positions[:size].tolist() == row.positions.tolist()
    assert positions.max() == row.positions.max() or positions.max() < 64
    assert targets[:scored].tolist() == row.targets.tolist()
    assert np.bincount(answers[:scored], minlength=2 * count).tolist() == list(row.lengths)
    assert set(answers[scored:].tolist()) <= {sizes.answers} and 2 * count <= sizes.answers
    # The sequences of the row come first, as they are; no other has any of its queries.
    own = attention.Sequences.of(row)
    assert queries[: len(own.queries)].tolist() == own.queries
    assert keys[: len(own.keys)].tolist() == own.keys
    assert gather[: len(own.gather)].tolist() == own.gather.tolist()
    # Each token is every key that may have a gradient once.
    assert uses.shape == (sizes.tokens, 3) and uses[:size].tolist() == own.uses.tolist()
    used = uses[uses >= 0]
    assert len(set(used.tolist())) == len(used) and set(range(own.keys[-1])) <= set(used.tolist())
    assert (gather[used] == np.nonzero(uses >= 0)[0]).all()
    assert (uses[size:] >= 0).sum(axis=1).tolist() == [1] * (sizes.tokens - size)
    asked, seen = np.diff(queries), np.diff(keys)
    assert queries[-1] == sizes.tokens and keys[-1] == sizes.keys
    assert (asked <= seen).all() and asked.max() <= sizes.queries and seen.max() <= sizes.seen
    assert ((asked > 0) | (seen == 0)).all()
    assert own.queries[-1] == size < sizes.tokens
    for at, begin in zip(keys[1:][asked > 0], queries[1:][asked > 0]):
        assert gather[at - 1] == begin - 1


@pytest.mark.parametrize("family", REPEATING)
def test_played_passes_give_what_the_model_gives(family):
    model, params = trained(family)
    plain = PlainLM(model)
    recorder = Recorder()
    scorer = GraphedLM(PackedLM(model, attend=attention.Varlen.of), lambda: recorder)
    pairs = tokens(12)
    for rows in ([3, 0, 4], [5, 1, 2], [7, 8, 6], [9, 11, 10], [3, 0, 4]):
        rows = np.array(rows)
        weights = torch.linspace(-1, 1, 2 * len(rows)).view(2, -1)
        found = []
        for way in (plain, scorer):
            params.grad.zero_()
            logps = way(pairs, rows)
            (logps * weights).sum().backward()
            found.append((logps.detach(), params.grad.clone()))
        (expected, slope), (logps, grad) = found
        assert logps.numpy() == pytest.approx(expected.numpy(), rel=1e-6)
        assert float((grad - slope).norm() / slope.norm()) < 1e-5
        with torch.no_grad():
            assert torch.equal(scorer(pairs, rows), logps)
    # Forth, back, and without a gradient, of at most two sizes.
    assert 3 <= recorder.recorded <= 6


def test_an_answer_of_a_row_does_not_depend_on_whether_it_was_recorded(monkeypatch):
    model, params = trained("grouped heads")
    pairs, rows = tokens(12), np.arange(6)
    found = []
    for most in (0, 64):
        monkeypatch.setattr(graphed, "MOST", most)
        recorder = Recorder()
        scorer = GraphedLM(PackedLM(model, attend=attention.Varlen.of), lambda: recorder)
        for _ in range(3):
            params.grad.zero_()
            logps = scorer(pairs, rows)
            logps.sum().backward()
        assert recorder.recorded == (2 if most else 0)
        found.append((logps.detach(), params.grad.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_what_is_recorded_for_other_addresses_is_dropped():
    model, params = trained("grouped heads")
    pairs, rows = tokens(6), np.arange(4)
    recorder = Recorder()
    scorer = GraphedLM(PackedLM(model, attend=attention.Varlen.of), lambda: recorder)
    for _ in range(3):
        scorer(pairs, rows).sum().backward()
    assert recorder.recorded == 2
    other = FlatParams(params.layout, 2 * params.data)
    other.bind(model)
    for _ in range(3):
        other.grad.zero_()
        scorer(pairs, rows).sum().backward()
    assert recorder.recorded == 4
    expected = PlainLM(model)(pairs, rows)
    found = scorer(pairs, rows).detach().numpy()
    assert found == pytest.approx(expected.detach().numpy(), rel=1e-6)
    assert float(other.grad.norm()) > 0


def test_a_pass_that_another_one_has_overwritten_does_not_go_back():
    model, _ = trained("grouped heads")
    scorer = GraphedLM(PackedLM(model, attend=attention.Varlen.of), Recorder)
    pairs, rows = tokens(6), np.arange(4)
    for _ in range(2):
        scorer(pairs, rows).sum().backward()
    first = scorer(pairs, rows).sum()
    scorer(pairs, rows)
    with pytest.raises(RuntimeError, match="another pass has overwritten"):
        first.backward()


def test_the_padding_token_does_not_learn():
    model, params = trained("grouped heads")
    embedding = model.get_input_embeddings()
    pairs, rows = tokens(6), np.arange(4)
    embedding.padding_idx = int(pairs.ids[0])
    head = model.get_output_embeddings().weight
    assert head is not embedding.weight
    scorer = GraphedLM(PackedLM(model, attend=attention.Varlen.of), Recorder)
    for _ in range(3):
        params.grad.zero_()
        scorer(pairs, rows).sum().backward()
    assert float(embedding.weight.grad[embedding.padding_idx].abs().max()) == 0
    assert float(embedding.weight.grad.abs().max()) > 0


def test_what_was_recorded_keeps_no_graph_of_autograd():
    model, _ = trained("grouped heads")
    scorer = GraphedLM(PackedLM(model, attend=attention.Varlen.of), Recorder)
    pairs, rows = tokens(6), np.arange(4)
    for _ in range(3):
        scorer(pairs, rows).sum().backward()
    (recorded,) = scorer._recorded.values()
    assert recorded._sums is not None and recorded._sums.grad_fn is None


def test_what_cannot_be_recorded_is_told_at_the_start_or_ends_the_run():
    model, _ = trained("grouped heads")
    packed = PackedLM(model, attend=attention.Varlen.of)
    pairs = tokens(2)

    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    found, notes = graphed.graphed(packed, pairs, lambda: refuse)
    assert found is packed
    (note,) = notes
    assert note == (
        "a step begins its operations one by one, which is slow: policy.graphs: what "
        "LlamaForCausalLM does on the GPU cannot be recorded: operation not permitted when stream "
        "is capturing"
    )
    scorer = GraphedLM(packed, lambda: refuse)
    scorer(pairs, np.arange(2)).sum().backward()
    with pytest.raises(PolicyError, match="cannot be recorded: operation not permitted") as fault:
        scorer(pairs, np.arange(2))
    assert fault.value.remedy == "set policy.graphs = false"


def test_only_what_does_the_same_for_a_size_is_recorded():
    model, _ = trained("grouped heads")
    pairs = tokens(2)
    masked = PackedLM(model)
    assert graphed.graphed(masked, pairs, Recorder) == (masked, ())
    plain = PlainLM(model)
    assert graphed.graphed(plain, pairs, Recorder) == (plain, ())
    packed = PackedLM(model, attend=attention.Varlen.of)
    found, notes = graphed.graphed(packed, pairs, Recorder)
    assert isinstance(found, GraphedLM) and notes == ()
    with torch.no_grad():
        assert isinstance(found.of(model), GraphedLM)


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_give_the_bits_of_operations_begun_one_by_one(monkeypatch, tmp_path):
    sizes = {**SMALL, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    write_random(tmp_path, byte_tokenizer(), "bfloat16", **sizes)
    spec = {
        "with": ["head", "prefix", "packing", "reference", "bf16", "graphs"],
        "model": str(tmp_path), "batch": 4, "pairs": 16, "max_length": 128, "lr": 1e-3,
        "tokens_at_once": 4096, "threads": 1, "device": "cuda", "chat_template": "none",
    }  # fmt: skip
    found = []
    for most in (0, 64):
        monkeypatch.setattr(graphed, "MOST", most)
        bench = Bench(spec)
        losses = [bench.step(number)["loss"] for number in range(16)]
        scorer = bench.policy.scorer
        assert bench.policy.notes == () and isinstance(scorer, GraphedLM)
        assert (len(scorer._recorded) > 0) == (most > 0)
        found.append((losses, bench.params.data.clone()))
    (losses, data), (others, other) = found
    assert losses == others and torch.equal(data, other)
    assert losses[-1] < losses[0]
