"""Passes of a language model recorded on a GPU, and played again for rows of the same size.

A step of a small model spends most of its time with beginning thousands of operations one by one.
A CUDA graph holds them all and is begun at once. It computes at fixed addresses, with fixed sizes:
rows are filled up to few sizes (``filled``), copied to where the graph reads, and what it has
recorded as the sums of log-probabilities is copied out. The gradient goes where it always goes.

A size is recorded when it comes for the second time; until then its operations are begun one by
one, with the same bits. All graphs share their memory, so that one pass has to be through, back
and forth, before the next begins.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.errors import PolicyError
from decdpo.params.flat import main_grad
from decdpo.policies.lm.forward import attention
from decdpo.policies.lm.forward.choice import AGREEMENT
from decdpo.policies.lm.forward.filled import Filled, fill
from decdpo.policies.lm.forward.packed import PackedLM
from decdpo.policies.lm.forward.packing import pack
from decdpo.policies.lm.forward.plain import PlainLM
from decdpo.policies.tokens import TokenizedPairs

TURN_OFF = "set policy.graphs = false"

ONE_BY_ONE = "a step begins its operations one by one, which is slow"

MOST = 64
"""Sizes that are recorded; others are begun one by one."""

SEEN = 1
"""How often a size comes before it is recorded: what is done for the first time needs time."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a function begins on the GPU, without doing it; returns what does it."""

Captures = Callable[[], Capture]
"""Begins anew with nothing recorded."""


def cuda_graphs() -> Capture:
    """Return what records CUDA graphs that share their memory, which goes with the last of them."""
    pool: Any = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads copy messages meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run()
        replay: Callable[[], None] = graph.replay
        return replay

    return capture


def graphed(
    scorer: PlainLM | PackedLM, tokens: TokenizedPairs, captures: Captures = cuda_graphs
) -> tuple[PlainLM | PackedLM, tuple[str, ...]]:
    """Return what records the passes of ``scorer``, or that and a note why it cannot.

    The pairs ``tokens`` are scored until they are recorded, and compared. What does not do the same
    for all rows of one size is returned as it is: it says so itself if that is slow.
    """
    if not isinstance(scorer, PackedLM) or not scorer.repeats:
        return scorer, ()
    found, rows = GraphedLM(scorer, captures), np.arange(len(tokens.edges))
    with torch.no_grad():
        expected = scorer(tokens, rows)
        try:
            for _ in range(SEEN + 1):
                gap = float(((found(tokens, rows) - expected).abs() / expected.abs()).max())
        except PolicyError as fault:
            return scorer, (f"{ONE_BY_ONE}: {fault.what}",)
    if not gap <= AGREEMENT[scorer.dtype]:
        why = f"recorded, log-probabilities would differ by {gap:.1g}, relatively"
        return scorer, (f"{ONE_BY_ONE}: {why}",)
    return found, ()


class Recorded:
    """A pass forward and, where one is wanted, back, for rows of one size.

    score : of a filled row, (P + 1,) sums. filled : a row of that size.
    """

    def __init__(
        self, score: Callable[[Filled], Tensor], filled: Filled, capture: Capture, back: bool
    ) -> None:
        self._score, self._filled = score, filled.anew()
        self._sums: Tensor | None = None
        self._slopes: Tensor | None = None
        self._forth = capture(self._go)
        self._back: Callable[[], None] | None = None
        if back:
            count = filled.sizes.answers + 1
            self._slopes = torch.zeros(count, device=filled.values.device)
            self._back = capture(self._return)

    def forward(self, filled: Filled) -> Tensor:
        """Return (P + 1,) the sums of a row."""
        self._filled.values.copy_(filled.values)
        self._forth()
        assert self._sums is not None
        return self._sums.detach().clone()

    def backward(self, slopes: Tensor) -> None:
        """Add the gradient of the last row to that of the parameters. slopes : (P + 1,)."""
        assert self._slopes is not None and self._back is not None
        self._slopes.copy_(slopes)
        self._back()

    def _go(self) -> None:
        self._sums = self._score(self._filled)

    def _return(self) -> None:
        assert self._sums is not None
        self._sums.backward(self._slopes)
        # Its graph would keep what adds up gradients on the stream of the recording.
        self._sums = self._sums.detach()


class GraphedLM(PackedLM):
    """Scores pairs as a packed model does whose pairs attend in one call a row.

    packed : that model. captures : makes what records.
    """

    def __init__(self, packed: PackedLM, captures: Captures = cuda_graphs) -> None:
        # It is the same model, with all that has been made of it.
        vars(self).update(vars(packed))
        self._packed = packed
        self._captures, self._capture = captures, captures()
        self._recorded: dict[Any, Recorded] = {}
        self._seen: Counter[Any] = Counter()
        self._place: tuple[int, ...] = ()
        self._turn = 0

    def of(self, module: Any) -> "GraphedLM":
        """Return what scores with another module in the same way."""
        return GraphedLM(self._packed.of(module), self._captures)

    def scored(self, tokens: TokenizedPairs, rows: np.ndarray) -> Tensor:
        """Return (2, B) float32 log-probabilities (nats) of chosen and rejected answers."""
        filled = fill(pack(tokens, rows)).on(self.device)
        return self._sums(filled)[: 2 * len(rows)].view(len(rows), 2).t()

    def _sums(self, filled: Filled) -> Tensor:
        """Return (P + 1,) sums, recorded if the size has come before."""
        back, place = torch.is_grad_enabled(), self._addresses()
        if place != self._place:
            # Graphs that compute elsewhere are of no more use.
            self._recorded.clear()
            self._seen.clear()
            self._place, self._capture = place, self._captures()
        self._turn += 1
        key = filled.sizes, back
        recorded = self._recorded.get(key)
        if recorded is None:
            self._seen[key] += 1
            if self._seen[key] <= SEEN or len(self._recorded) >= MOST:
                return self._score(filled)
            recorded = self._recorded[key] = self._record(filled, back)
        sums = recorded.forward(filled)
        if not back:
            return sums
        anchor = torch.empty(0, device=sums.device, requires_grad=True)
        found: Tensor = _Played.apply(anchor, sums, self, self._turn, recorded)
        return found

    def check_turn(self, turn: int) -> None:
        """Raise ``RuntimeError`` if another pass has begun since pass number ``turn``."""
        if turn != self._turn:
            raise RuntimeError("another pass has overwritten what this one needs to go back")

    def _record(self, filled: Filled, back: bool) -> Recorded:
        try:
            return Recorded(self._score, filled, self._capture, back)
        except PolicyError as fault:
            raise PolicyError(f"policy.graphs: {fault.what}", TURN_OFF) from fault
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as fault:
            first = (str(fault).splitlines() or [""])[0]
            name = type(self.module).__name__
            raise PolicyError(
                f"policy.graphs: what {name} does on the GPU cannot be recorded: {first}", TURN_OFF
            ) from fault

    def _addresses(self) -> tuple[int, ...]:
        """Return where the parameters and their gradient lie; each is one piece of memory."""
        first = next((p for p in self.module.parameters() if p.requires_grad), None)
        if first is None:
            return (self._vocabulary.head.weight.data_ptr(),)
        grad = main_grad(first)
        return first.data_ptr(), 0 if grad is None else grad.data_ptr()

    def _score(self, filled: Filled) -> Tensor:
        """Return (P + 1,) sums of the log-probabilities of answers, the last of what is filled in.

        Whatever it does depends on the sizes alone.
        """
        ids, positions, gather, uses, sources, targets, answers, queries, keys = filled.parts
        sizes = filled.sizes
        of_head, of_embedding = self._vocabulary.gradients()
        ends = queries.to(torch.int32), keys.to(torch.int32)
        attend = attention.Varlen(*ends, gather, uses, (sizes.queries, sizes.seen))
        fed = {"inputs_embeds": self._vocabulary.looked_up(ids, of_embedding)[None]}
        states = self._states(fed, positions, attend)[sources]
        if self._scale != 1.0:
            states = states * self._scale
        logps = self._logps(states, targets, of_head, self._vocabulary.head.weight)
        return logps.new_zeros(sizes.answers + 1).index_add(0, answers, logps)


class _Played(torch.autograd.Function):
    """Hands over what was recorded, and goes back through what was recorded."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, sums: Tensor, scorer: GraphedLM, turn: int, recorded: Recorded
    ) -> Tensor:
        ctx.scorer, ctx.turn, ctx.recorded = scorer, turn, recorded
        return sums

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, ...]:
        ctx.scorer.check_turn(ctx.turn)
        ctx.recorded.backward(slopes[0])
        return (None,) * 5
