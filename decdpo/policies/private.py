"""DP-SGD on every agent: gradients that are clipped and noised before an algorithm sees them.

In every local step an agent draws a batch S in which each of its N training pairs is with
probability q = B / N, independently (``data.sampling.PoissonSampler``), and steps along

    g = 1/B (sum_{b in S} clip(g_b, C) + sigma C z),     z ~ N(0, I)                          (1)

with g_b the gradient of one pair's loss and clip(v, C) = min(1, C / ||v||) v. What leaves the
agent, whatever the algorithm sends, is a function of these g and of what others have sent: its
pairs enter nowhere else. So the messages of all rounds together are (epsilon, delta)-differentially
private with respect to one training pair added to the shard or taken from it
(``metrics.privacy``). A person with k pairs in the shard has the weaker protection of a group of k.

A language model has no cheap gradient of a single pair. There the mean gradient of the batch is
clipped as a whole, and as one pair more can turn it to anything of that length,

    g = clip(1/|S| sum_{b in S} g_b, C) + 2 sigma C z.                                        (2)

The unit is one pair as well, with the same epsilon for the same sigma, at 2 B times the noise of
(1). In return a batch is hidden as a whole: no more is revealed of all its pairs than of one.

This protects against those who receive messages, models or checkpoints, and cannot draw the batches
and the noise again: these follow from a secret of the agent's own (``privacy.secret``), or from
``run.seed``, which all agents know and which is in every checkpoint. The generator is made for
simulation, not for cryptography. Nothing is promised of what a run records (losses, accuracies), of
caches of tokens and reference values, nor of effects of rounding in floating point.

References: Abadi et al., "Deep learning with differential privacy", 2016, Algorithm 1, for (1);
Mironov, Talwar and Zhang, "Renyi differential privacy of the sampled Gaussian mechanism", 2019, for
any function of a sampled batch, hence for (2).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from decdpo.params.flat import FlatParams
from decdpo.params.support import clear
from decdpo.policies.curvature import CurvedPass
from decdpo.policies.encoded import EncodedShard
from decdpo.policies.objective import Batch, Objective
from decdpo.policies.stats import Stats
from decdpo.rng import Stream, generator


@dataclass(frozen=True)
class PrivateGradients:
    """Gradients (1), or (2) unless ``by_pair``.

    objective : of the agents. clip : C. noise : sigma. batch_size : B; the whole shard where that
    has fewer pairs. seed : what noise is drawn by.
    """

    objective: Objective
    clip: float
    noise: float
    batch_size: int
    seed: int
    by_pair: bool

    def gradients(self, batches: Iterable[Batch]) -> Iterator[Stats]:
        """Do as ``Objective.gradients`` does, with every gradient clipped; a batch may be empty."""
        for batch in batches:
            if not len(batch.rows):
                clear(batch.params.grad)
                yield self.objective.no_stats()
            elif self.by_pair:
                yield self._clipped_pairs(batch)
            else:
                yield self._clipped_batch(batch)

    def blur(self, params: FlatParams, data: EncodedShard, step: int) -> None:
        """Add the noise of local step ``step`` to ``params.grad`` (P,); data : of the agent."""
        grad = params.grad
        rng = generator(self.seed, Stream.PRIVACY, data.agent, step=step)
        drawn = torch.from_numpy(rng.standard_normal(grad.numel()))
        deviation = self.noise * self.clip
        deviation *= 1 / self._expected(data.num_train) if self.by_pair else 2
        grad.add_(drawn.mul_(deviation).to(grad))

    def _expected(self, num_pairs: int) -> int:
        """Return B, pairs of a batch in the mean."""
        return min(self.batch_size, num_pairs)

    def _clipped_pairs(self, batch: Batch) -> Stats:
        """Write 1/B sum_b clip(g_b, C) into the gradient."""
        forward = self.objective.policy.forward(batch.params, batch.data, batch.rows)
        assert isinstance(forward, CurvedPass)
        cotangents, (stats,) = self.objective.score([batch], forward.scores)
        size = len(batch.rows)
        # The cotangents are of the batch's mean loss: a pair's own gradient is ``size`` times that.
        squares = forward.squared_norms(cotangents["chosen"], cotangents["rejected"])
        lengths = size * torch.from_numpy(squares).double().sqrt()
        share = (self.clip / lengths.clamp_min(self.clip)) * size
        share /= self._expected(batch.data.num_train)
        clear(batch.params.grad)
        forward.backward({name: slope * share.to(slope) for name, slope in cotangents.items()})
        return stats

    def _clipped_batch(self, batch: Batch) -> Stats:
        """Write clip(1/|S| sum_b g_b, C) into the gradient."""
        stats = next(self.objective.gradients([batch]))
        grad = batch.params.grad
        length = float(torch.linalg.vector_norm(grad))
        if length > self.clip:
            grad.mul_(self.clip / length)
        return stats
