"""The objective: a policy and a preference loss, joined into a gradient and its statistics.

The loss sees nothing but the (B,) scores of the pairs. Its derivatives by their leaves, the
cotangents, are all that travels back into the policy, so any loss works with any policy.

A batch that the policy cannot hold at once is streamed: forward, loss and backward of one part
after another, so that the memory of one part is enough and every pair is scored once. Only a loss
that couples pairs must see them all first; it pays a second forward pass.

Batches of several agents are scored together where policy and loss allow it: with models as small
as the log-linear one, a thousand agents in one process would otherwise spend their time in a
thousand small calls. The bits are those of each batch scored alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from decdpo.errors import NumericalError, PolicyError
from decdpo.losses.base import Leaves, Metric, PairLoss, PairScores, RunningLoss, couples_pairs
from decdpo.params.cotangents import paired
from decdpo.params.flat import FlatParams
from decdpo.params.support import clear, descend, touched
from decdpo.params.threads import one_thread
from decdpo.policies.base import Draw, ForwardPass, Policy, is_noisy
from decdpo.policies.encoded import EncodedShard
from decdpo.policies.joint import (
    Apart,
    JointPass,
    Lanes,
    StepTogether,
    Together,
    filled,
    joined,
)
from decdpo.policies.stats import METRICS, Stats, summarize

LANES = 32
"""Every batch is filled up to a multiple of so many pairs before the loss sees it (``joint``)."""

GROUP_LANES = 4096
"""Pairs scored together at most, filled up. Far below the 32,768 values at which torch divides a
vector between threads, which would cut it elsewhere than at a multiple of ``LANES``."""


class Batch(NamedTuple):
    """Some pairs of one agent, to be scored by a model.

    params : the model. data : the agent's encoded shard. rows : (B,) shard rows. running : (1,) the
    agent's running statistic, for a loss that has one. draw : address of a local step's dropout.
    """

    params: FlatParams
    data: EncodedShard
    rows: np.ndarray
    running: Tensor | None = None
    draw: Draw | None = None


@dataclass(frozen=True)
class Objective:
    """A policy trained by a loss: L_i(theta) = E_{D_i}[loss(log pi_theta, log pi_ref)].

    policy : the model family. loss : a function of the scores of pairs.
    """

    policy: Policy
    loss: PairLoss | RunningLoss

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """What policy and loss have recorded beyond ``stats.METRICS``, by name."""
        found: dict[str, Metric] = {}
        for owner in (self.policy, self.loss):
            found.update(getattr(owner, "metrics", {}))
        return found

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all that is recorded of a batch."""
        return (*METRICS, *self.metrics)

    def no_stats(self) -> Stats:
        """Return the statistics of no pairs."""
        return Stats.zero(self.names)

    def gradient(self, params: FlatParams, data: EncodedShard, rows: np.ndarray) -> Stats:
        """Overwrite ``params.grad`` (P,) with the gradient of the batch's mean loss.

        rows : (B,) shard rows. Weighted pairs count by their weight over the mean weight of the
        training pairs, so that the batch gradient is unbiased. Returns the batch's statistics.

        Raises ``NumericalError`` naming agent and rows if a loss or log-probability is not finite.
        """
        return next(self.gradients([Batch(params, data, rows)]))

    def gradients(self, batches: Iterable[Batch]) -> Iterator[Stats]:
        """Do ``gradient`` for one batch after another, yielding after each.

        When a batch is yielded, its gradient is in its ``params.grad``, its running statistic is
        updated, and its parameters may be changed; batches may share the buffer of the gradient.
        Raises as ``gradient`` does.
        """
        for group in self._groups(batches):
            parts = self.policy.parts(group[0].data, group[0].rows)
            if len(parts) > 1:
                run = self._coupled if self._couples else self._streamed
                yield run(group[0], parts)
                continue
            # An overflow is reported with its rows, as an error: NumPy need not warn of it as well.
            with np.errstate(over="ignore", invalid="ignore"):
                forward = self._forward_all(group)
                cotangents, scored = self.score(group, forward.scores)
                gradients = forward.backward(cotangents)
            for batch, stats in zip(group, scored):
                clear(batch.params.grad)
                with np.errstate(over="ignore", invalid="ignore"):
                    next(gradients)
                if batch.running is not None:
                    self._run_on(batch, forward.scores)
                yield stats

    @property
    def steps_together(self) -> bool:
        """Whether the policy may take the plain steps of many models in few calls: ``steps``."""
        # Who scores batches one by one takes the steps along their gradients one by one.
        policy = self.policy
        able = all(getattr(policy, name, None) is not None for name in ("forward_all", "step_all"))
        return able and self._together and not isinstance(self.loss, RunningLoss)

    def steps(
        self, batches: Sequence[Batch], rates: Sequence[float]
    ) -> tuple[list[Stats], np.ndarray]:
        """Take the plain step x <- x - eta g of every batch along the gradient of its mean loss.

        Every batch has a model of its own. rates : (A,) the step sizes eta. Returns the statistics
        of every batch, and whether its gradient is finite, (A,) bool. The bits are those of
        ``gradients`` and ``params.support.descend``. Raises as ``gradient`` does.
        """
        together: StepTogether = getattr(self.policy, "step_all")
        joint = together([batch[:3] for batch in batches])
        if joint is None:
            return self._steps_apart(batches, rates)
        found: list[Stats] = []
        with np.errstate(over="ignore", invalid="ignore"):
            for group in self._groups(batches):
                scores = joint.scores(len(found), len(found) + len(group))
                cotangents, scored = self.score(group, scores)
                joint.backward(cotangents)
                found += scored
            return found, joint.descend(rates)

    def _steps_apart(
        self, batches: Sequence[Batch], rates: Sequence[float]
    ) -> tuple[list[Stats], np.ndarray]:
        """Do ``steps`` for one batch after another."""
        found, finite = [], []
        for batch, stats, rate in zip(batches, self.gradients(batches), rates):
            found.append(stats)
            finite.append(bool(touched(batch.params.grad).isfinite().all()))
            descend(batch.params.data, batch.params.grad, rate)
        return found, np.array(finite)

    def evaluate(
        self, params: FlatParams, data: EncodedShard, rows: np.ndarray, batch_size: int = 64
    ) -> Stats:
        """Return the statistics of the pairs ``rows`` (B,) without touching ``params.grad``.

        batch_size : pairs evaluated at once; a matter of memory only. Raises as ``gradient`` does.
        """
        return self.evaluations([Batch(params, data, rows)], batch_size)[0]

    def evaluations(self, batches: Sequence[Batch], batch_size: int = 64) -> list[Stats]:
        """Do ``evaluate`` for every batch; one without pairs has the statistics of none."""
        totals = [self.no_stats() for _ in batches]
        parts = [
            (place, batch._replace(rows=rows))
            for place, batch in enumerate(batches)
            for some in _parts(batch.rows, batch_size)
            for rows in self.policy.parts(batch.data, some)
        ]
        places = iter([place for place, _ in parts])
        for group in self._groups(part for _, part in parts):
            with np.errstate(over="ignore", invalid="ignore"):
                _, scored = self.score(group, self._forward_all(group, need_grad=False).scores)
            for stats in scored:
                totals[next(places)] += stats
        return totals

    def _streamed(self, batch: Batch, parts: list[np.ndarray]) -> Stats:
        """Do ``gradient`` part by part: forward, loss, backward, then the next part."""
        clear(batch.params.grad)
        total = self.no_stats()
        for rows in parts:
            part = batch._replace(rows=rows)
            forward = self._forward(part)
            cotangents, (stats,) = self.score([part], forward.scores, len(batch.rows))
            forward.backward(cotangents)
            total += stats
        return total

    def _coupled(self, batch: Batch, parts: list[np.ndarray]) -> Stats:
        """Do ``gradient`` for a loss that must see all pairs before any goes backward."""
        batch = batch._replace(rows=np.concatenate(parts))
        pieces = [batch._replace(rows=rows) for rows in parts]
        pairs = joined([self._forward(piece, need_grad=False).scores for piece in pieces])
        cotangents, (stats,) = self.score([batch], pairs)
        clear(batch.params.grad)
        start = 0
        for piece in pieces:
            some = slice(start, start + len(piece.rows))
            self._forward(piece).backward({name: c[some] for name, c in cotangents.items()})
            start = some.stop
        self._run_on(batch, pairs)
        return stats

    def _run_on(self, batch: Batch, pairs: PairScores) -> None:
        """Let the agent's running statistic, if the loss has one, take in the batch ``pairs``."""
        if batch.running is not None and isinstance(self.loss, RunningLoss):
            batch.running.copy_(self.loss.update(batch.running, pairs))

    def _groups(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """Put together the batches that are scored together."""
        group: list[Batch] = []
        lanes, width, together = 0, self._width, self._together
        for batch in batches:
            size = filled(len(batch.rows), width)
            if group and not (together and lanes + size <= GROUP_LANES):
                yield group
                group, lanes = [], 0
            group.append(batch)
            lanes += size
        if group:
            yield group

    @property
    def _couples(self) -> bool:
        return couples_pairs(self.loss)

    @property
    def _together(self) -> bool:
        """Whether batches may be scored together."""
        return self.policy.concurrent and not self._couples

    @property
    def _width(self) -> int:
        """What the size of every batch is filled up to a multiple of."""
        return LANES if self._together else 1

    def _forward(self, batch: Batch, need_grad: bool = True) -> ForwardPass:
        policy, (params, data, rows, _, draw) = self.policy, batch
        if draw is not None and is_noisy(policy):
            return policy.forward(params, data, rows, need_grad=need_grad, draw=draw)
        return policy.forward(params, data, rows, need_grad=need_grad)

    def _forward_all(self, group: list[Batch], need_grad: bool = True) -> JointPass:
        """Score a group, in one call where the policy can."""
        together: Together | None = getattr(self.policy, "forward_all", None)
        if together is not None and len(group) > 1:
            return together([batch[:3] for batch in group])
        passes = [self._forward(batch, need_grad) for batch in group]
        return Apart(passes, [len(batch.rows) for batch in group])

    def _loss(self, batch: Batch) -> PairLoss:
        """Return the loss that ``batch`` meets; the same for all where it does not run."""
        if not isinstance(self.loss, RunningLoss):
            return self.loss
        if batch.running is None:
            raise ValueError("a loss with a running statistic needs the agent's")
        return self.loss.at(batch.running)

    @one_thread()
    def score(
        self, group: list[Batch], scores: PairScores, count: int | None = None
    ) -> tuple[Leaves, list[Stats]]:
        """Return the cotangents (N,) of the mean loss of every batch of a group, by each leaf, and
        the statistics of every batch.

        scores : (N,) of all batches, end to end. count : pairs of the batch whose part this is; the
        cotangents are of its mean loss.
        """
        lanes = Lanes([len(batch.rows) for batch in group], self._width)
        pairs = lanes.fill(scores)
        weight = _weights(group)
        # d mean(losses) / d loss_b = w_b / B
        sizes = lanes.sizes if count is None else np.array([count])
        share = np.repeat(1.0 / sizes, lanes.sizes) * (1.0 if weight is None else weight)
        leaves = pairs.leaves()
        with torch.enable_grad():
            inputs = [tensor.requires_grad_() for tensor in leaves.values()]
            losses = self._loss(group[0])(pairs)
            total = paired(losses, lanes.spread(share, losses))
            found = torch.autograd.grad(total, inputs, allow_unused=True)
        # A loss may ignore one of the answers; its cotangent is then zero.
        slopes = [torch.zeros_like(losses) if slope is None else slope for slope in found]
        with torch.no_grad():
            own = [metric(pairs) for metric in self.metrics.values()]
        known = (pairs.chosen, pairs.rejected, pairs.ref_chosen, pairs.ref_rejected)
        other = [leaves[name] for name in leaves if name not in ("chosen", "rejected")]
        # The first seven rows are those of ``summarize``: both slopes lead, as the leaves do.
        stacked = lanes.drop(torch.stack((losses, *known, *slopes, *other, *own)).detach())
        values = stacked.to("cpu", torch.float64).numpy()
        if not np.isfinite(values).all():
            raise _not_finite(values, list(leaves), list(self.metrics), group, lanes.starts)
        stats = summarize(
            values[:7], lanes.starts, weight, self.loss.beta, values[len(values) - len(own) :]
        )
        cotangents = dict(zip(leaves, stacked[5 : 5 + len(slopes)]))
        return cotangents, [Stats(each, self.names) for each in stats]


def _weights(group: list[Batch]) -> np.ndarray | None:
    """Return the weights (N,) of all pairs of the group, None if they count alike."""
    if all(batch.data.weight is None for batch in group):
        return None
    weights = [
        np.ones(len(rows)) if data.weight is None else data.weight[rows]
        for _, data, rows, *_ in group
    ]
    return np.concatenate(weights)


def check_start(
    policy: Policy,
    data: EncodedShard,
    batch_size: int = 16,
    batches: int = 1,
    start: FlatParams | None = None,
) -> None:
    """Check that rewards are exactly 0 where training begins: the policy is the reference.

    Evaluates the first ``batches`` batches of the shard at ``start``, ``policy.initial()`` if that
    is not at hand. Where passes are not ``concurrent``, pairs are evaluated one by one, as their
    reference is. Raises ``PolicyError`` naming the first pair whose log-ratio is not zero.
    """
    params = FlatParams(policy.layout, policy.initial()) if start is None else start
    rows = np.arange(min(data.num_pairs, batch_size * batches))
    size = batch_size if policy.concurrent else 1
    for part in (p for some in _parts(rows, size) for p in policy.parts(data, some)):
        scores = policy.forward(params, data, part, need_grad=False).scores
        drift = torch.stack((scores.chosen_ratio, scores.rejected_ratio)).abs().amax(dim=0)
        wrong = torch.nonzero(~(drift == 0)).flatten().tolist()
        if wrong:
            raise PolicyError(
                f"agent {data.agent}: at step 0 the rewards must be 0, but the log-ratio of"
                f" {_name_rows(data, part[wrong[:1]])} is {drift[wrong[0]].item():.3g} nats",
                "remove reference.cache beside the shards: it was made by another reference, or "
                "where numbers are rounded differently",
            )


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _name_rows(data: EncodedShard, rows: np.ndarray) -> str:
    named = f"shard row {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}"
    return f"{named} (source row {data.source_rows.name(rows[:8])})"


def _not_finite(
    stacked: np.ndarray,
    leaves: list[str],
    metrics: list[str],
    group: list[Batch],
    starts: np.ndarray,
) -> NumericalError:
    """Make the error for the first batch with a value that is not finite.

    stacked : (K, N) the rows that ``Objective.score`` stacks. leaves, metrics : names of some.
    """
    pair = np.flatnonzero(~np.isfinite(stacked).all(axis=0))[0]
    place = int(np.searchsorted(starts, pair, side="right")) - 1
    _, data, rows, *_ = group[place]
    stacked = stacked[:, starts[place] : starts[place] + len(rows)]
    known = {"chosen": "log pi(chosen)", "rejected": "log pi(rejected)"}
    titles = [known.get(name, name) for name in leaves]
    values = [*titles[:2], "log pi_ref(chosen)", "log pi_ref(rejected)"]
    names = ["loss", *values, *(f"dloss/d{title}" for title in titles), *titles[2:], *metrics]
    bad = ~np.isfinite(stacked)
    # Scores come before the loss that is computed from them, and its slopes after it.
    scores = (*range(1, 5), *range(5 + len(leaves), 3 + 2 * len(leaves)))
    first = next(i for i in (*scores, 0, *range(len(names))) if bad[i].any())
    where = np.flatnonzero(bad[first])
    return NumericalError(
        f"agent {data.agent}: {names[first]} is {stacked[first, where[0]]} at"
        f" {_name_rows(data, rows[where])}",
        "lower optim.lr",
    )
