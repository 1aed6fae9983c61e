"""A policy over finitely many states and actions: a table of logits, or a small network.

    pi(u | s) = softmax_u f(s, u; x)

with f(s, u; x) = x_su, one free logit for each state and action, or the output of a network with
one hidden layer, f(s, .; x) = V tanh(e_s + b) + c, e_s (hidden,) the embedding of state s. Answers
are trajectories as in ``decdpo.data.trajectories``; a single step "s:u" is the choice of response u
to prompt s, as in the 20 x 20 experiment of Ma et al., "Gradient Imbalance in Direct Preference
Optimization", Section 6.1. Whether the source used a table or a network it does not say.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decdpo.data.shard import PreferenceShard
from decdpo.data.trajectories import read_answers
from decdpo.errors import PolicyError
from decdpo.losses.base import Leaves, PairScores
from decdpo.params.cotangents import paired
from decdpo.params.flat import FlatParams, Layout
from decdpo.policies.arrays import (
    CPU,
    SideReference,
    pair_logps,
    parameter_dtype,
    reference_digest,
    reference_vector,
    write_npz,
)
from decdpo.policies.encoded import EncodedShard, require_text, shard_columns
from decdpo.policies.features import FeatureDifferences
from decdpo.policies.trajectory import count_visits
from decdpo.rng import Stream, generator


@dataclass(frozen=True)
class StepCounts:
    """One of the two answers of each of N pairs.

    counts : (N, S A) how often each step s A + u occurs, sparse. length : (N,) steps.
    reference : (N,) log pi_ref(y|x).
    """

    counts: FeatureDifferences
    length: Tensor
    reference: np.ndarray


@dataclass(frozen=True)
class TabularShard(EncodedShard):
    """One agent's N pairs."""

    chosen: StepCounts
    rejected: StepCounts


@dataclass
class TabularPass:
    """One batch: its log-probabilities, and the way back through the table of log pi(u|s)."""

    scores: PairScores
    params: FlatParams
    x: Tensor
    table: Tensor
    sides: tuple[FeatureDifferences, ...]

    def backward(self, cotangents: Leaves) -> None:
        """Add the gradient to ``params.grad``."""
        slope = np.zeros(self.table.numel(), dtype=self.table.detach().numpy().dtype)
        for counts, name in zip(self.sides, ("chosen", "rejected"), strict=True):
            counts.add_combination(cotangents[name].numpy(), slope)
        with torch.enable_grad():
            total = paired(self.table, torch.from_numpy(slope).view_as(self.table))
        (grad,) = torch.autograd.grad(total, self.x)
        self.params.grad.add_(grad)


class Tabular:
    """A table of logits, or a network with one hidden layer, over S states and A actions.

    Parameters
    ----------
    num_states, num_actions : S and A.
    hidden : width of the hidden layer; 0 is a table.
    dtype : "float32" or "float64".
    seed : of the network's initial weights; a table begins uniform.
    reference : (P,) where every agent begins, if not there.

    Lives on the CPU. Raises ``PolicyError`` for arguments that make no policy.
    """

    concurrent = True
    identity: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()
    device = CPU

    def __init__(
        self,
        num_states: int = 20,
        num_actions: int = 20,
        hidden: int = 0,
        dtype: str = "float32",
        seed: int = 0,
        reference: np.ndarray | None = None,
    ) -> None:
        if num_states < 1 or num_actions < 2 or hidden < 0:
            raise PolicyError(
                f"{num_states} states, {num_actions} actions, hidden = {hidden} make no policy",
                "give at least 1 state, 2 actions and a width of 0 or more",
            )
        self.num_states, self.num_actions, self.hidden = num_states, num_actions, hidden
        names: tuple[str, ...] = ("logits",)
        shapes: tuple[tuple[int, ...], ...] = ((num_states, num_actions),)
        if hidden:
            names = ("embedding", "bias", "output", "output_bias")
            shapes = ((num_states, hidden), (hidden,), (hidden, num_actions), (num_actions,))
        self.layout = Layout(names, shapes, sum(map(prod, shapes)), parameter_dtype(dtype))
        self._dtype = np.dtype(dtype)
        start = self._weights(seed) if reference is None else reference
        self._reference = reference_vector(start, self.layout.size, dtype)
        self.reference = SideReference()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the reference's weights."""
        return reference_digest("tabular", self._reference, self.num_states, self.num_actions)

    def _weights(self, seed: int) -> np.ndarray:
        start = np.zeros(self.layout.size)
        if self.hidden:
            rng = generator(seed, Stream.INITIAL_MODEL)
            for i in (0, 2):
                lo, hi = self.layout.offsets[i : i + 2]
                fan_in = 1 if i == 0 else self.hidden
                start[lo:hi] = rng.standard_normal(hi - lo) / np.sqrt(fan_in)
        return start

    def initial(self) -> Tensor:
        """Return a new (P,) vector: the reference weights."""
        return torch.from_numpy(self._reference).clone()

    def log_table(self, x: Tensor) -> Tensor:
        """Return log pi(u|s), (S, A), at the parameters ``x`` (P,), differentiable in them."""
        offsets = self.layout.offsets
        parts = [
            x[lo:hi].view(shape) for lo, hi, shape in zip(offsets, offsets[1:], self.layout.shapes)
        ]
        if self.hidden:
            embedding, bias, output, output_bias = parts
            logits = torch.tanh(embedding + bias) @ output + output_bias
        else:
            (logits,) = parts
        return torch.log_softmax(logits, dim=1)

    def encode(self, shard: PreferenceShard) -> TabularShard:
        """Count the steps of a shard's answers, and evaluate the reference on them.

        Raises ``DataError`` for a text that is no trajectory over these states and actions.
        """
        table = self.log_table(torch.from_numpy(self._reference)).numpy().reshape(-1)
        sides = []
        for steps, lengths in read_answers(shard, self.num_states, self.num_actions):
            rows = np.repeat(np.arange(len(lengths)), lengths)
            places = steps[:, 0] * self.num_actions + steps[:, 1]
            counts = count_visits(rows, places, len(lengths), table.size, self._dtype)
            length = torch.from_numpy(lengths.astype(self._dtype))
            sides.append(StepCounts(counts, length, counts.margins(table)))
        require_text(
            shard,
            'policy.kind = "tabular"',
            'set policy.kind = "loglinear" and policy.features = "columns"',
        )
        columns = shard_columns(shard, self.layout.dtype, CPU)
        return TabularShard(**columns, chosen=sides[0], rejected=sides[1])

    def parts(self, data: TabularShard, rows: np.ndarray) -> list[np.ndarray]:
        """Return the pairs ``rows`` (B,) in one part: their scores take little memory."""
        return [rows]

    def forward(
        self, params: FlatParams, data: TabularShard, rows: np.ndarray, *, need_grad: bool = True
    ) -> TabularPass:
        """Evaluate the pairs ``rows`` (B,) of ``data`` at x = ``params.data`` (P,)."""
        x = params.data.detach().requires_grad_(need_grad)
        with torch.set_grad_enabled(need_grad):
            table = self.log_table(x)
        flat = table.detach().numpy().reshape(-1)
        both = (data.chosen, data.rejected)
        sides = tuple(side.counts.batch(rows) for side in both)
        chosen, rejected = (counts.margins(flat) for counts in sides)
        scores = pair_logps(self.reference, data, rows, chosen, rejected)
        return TabularPass(scores, params, x, table, sides)

    def export(self, x: Tensor, out: str | os.PathLike[str]) -> Path:
        """Write ``x`` by the names of its parts, and log_table (S, A), to ``out`` (.npz)."""
        x = x.detach().cpu()
        offsets, layout = self.layout.offsets, self.layout
        parts = {
            name: x[lo:hi].view(shape).numpy()
            for name, shape, lo, hi in zip(layout.names, layout.shapes, offsets, offsets[1:])
        }
        return write_npz(out, {"log_table": self.log_table(x).numpy(), **parts})
