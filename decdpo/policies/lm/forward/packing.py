"""Pairs of one batch in one row of tokens: every prompt once, no padding.

A pair is one segment, [prompt | chosen | rejected], in which the answers do not see each other and
the positions of the rejected answer go on from the prompt's end, as those of the chosen one do. So
the model encodes the prompt once for both answers. The last token of an answer predicts nothing
that is scored and is not fed. Segments do not see one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decdpo.policies.tokens import TokenizedPairs


@dataclass(frozen=True)
class Segment:
    """One pair within a packed row.

    begin, chosen, rejected, end : where its prompt, chosen and rejected answer begin, and its end.
    """

    begin: int
    chosen: int
    rejected: int
    end: int

    def mask(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return (S, S) of ``dtype``: 0 where a token sees another one, -inf where it does not."""
        size, chosen, rejected = (at - self.begin for at in (self.end, self.chosen, self.rejected))
        seen = torch.ones(size, size, dtype=torch.bool, device=device).tril_()
        seen[rejected:, chosen:rejected] = False
        return torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)


@dataclass(frozen=True)
class PackedPairs:
    """B pairs in one row of T tokens, with A scored tokens in their 2 B answers.

    ids, positions : (T,) int64. sources : (A,) the token whose hidden state predicts a scored one.
    targets : (A,) ids of the scored tokens, answer after answer: those of pair 0's chosen answer,
    of its rejected one, of pair 1's chosen one, ... lengths : 2 B numbers of scored tokens.
    """

    ids: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    sources: Tensor
    targets: Tensor
    lengths: tuple[int, ...]


def packed_size(tokens: TokenizedPairs, rows: np.ndarray) -> np.ndarray:
    """Return (B,) the number of tokens that each of the pairs ``rows`` takes in a packed row."""
    lengths = np.diff(tokens.edges[rows], axis=1)
    sizes: np.ndarray = lengths.sum(axis=1) - (lengths[:, 1:] > 0).sum(axis=1)
    return sizes


def pack(tokens: TokenizedPairs, rows: Sequence[int] | np.ndarray) -> PackedPairs:
    """Put the pairs ``rows`` (B,) of a shard into one row, in the order given."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    sources: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    segments = []
    begin = 0
    for row in rows:
        prompt, *answers = tokens.parts(int(row))
        edges = [begin, begin + len(prompt)]
        ids.append(prompt)
        positions.append(np.arange(len(prompt)))
        for answer in answers:
            fed = answer[:-1]
            ids.append(fed)
            positions.append(len(prompt) + np.arange(len(fed)))
            # The prompt's last token predicts the first of an answer, each fed token the next one.
            first = [edges[1] - 1] if len(answer) else []
            sources.append(np.concatenate((first, edges[-1] + np.arange(len(fed)))))
            targets.append(answer)
            edges.append(edges[-1] + len(fed))
        segments.append(Segment(*edges))
        begin = edges[-1]
    return PackedPairs(
        ids=_long(ids),
        positions=_long(positions),
        segments=tuple(segments),
        sources=_long(sources),
        targets=_long(targets),
        lengths=tuple(len(answer) for answer in targets),
    )


def _long(pieces: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0), *pieces]).astype(np.int64))
