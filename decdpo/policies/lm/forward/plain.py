"""The plain way through a causal language model: prompt and answer as one, each answer anew.

It works with any model, and is what the fast way is compared with.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decdpo.policies.lm.foreign import foreign
from decdpo.policies.tokens import TokenizedPairs


@dataclass(frozen=True)
class Scored:
    """A prompt with one answer: ids (T,) int64 on the CPU, the last ``answer`` of them scored."""

    ids: Tensor
    answer: int


def answer_logps(module: nn.Module, sequences: Sequence[Scored]) -> Tensor:
    """Return (S,) float32 log-probabilities (nats), each summed over the tokens of one answer.

    Sequences of unequal length are padded on the right; masks
    come from lengths, never from ids, for many tokenizers pad with a token that means something.
    Logits are computed from the first scored position on, if the model can; the log-softmax is
    taken in float32 whatever the model's type.
    """
    device = next(module.parameters()).device
    ends = torch.tensor([len(s.ids) for s in sequences])[:, None]
    begins = ends - torch.tensor([s.answer for s in sequences])[:, None]
    position = torch.arange(int(ends.max()))
    first = int(begins.min()) - 1
    ids = torch.zeros(len(sequences), len(position), dtype=torch.long)
    for row, s in zip(ids, sequences):
        row[: len(s.ids)] = s.ids
    ids = ids.to(device)
    scored = ((position >= begins) & (position < ends))[:, first + 1 :].to(device)
    arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if int(ends.min()) < len(position):
        arguments["attention_mask"] = (position < ends).long().to(device)
    with foreign(f"the model {type(module).__name__} cannot score an answer", CANNOT_SCORE):
        if _keeps_logits(type(module).forward):
            logits = module(**arguments, logits_to_keep=position[first:-1].to(device)).logits
        else:
            logits = module(**arguments).logits[:, first:-1]
    targets = ids[:, first + 1 :]
    # Flat, because the loss over two dimensions is not deterministic on a GPU.
    each = -nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    ).view_as(targets)
    return each.mul(scored).sum(dim=1)


CANNOT_SCORE = "check that policy.model is a language model that transformers runs on this device"


@lru_cache
def _keeps_logits(forward: Callable[..., Any]) -> bool:
    """Say whether a model can compute the logits of chosen positions alone."""
    return "logits_to_keep" in inspect.signature(forward).parameters


class PlainLM:
    """Scores pairs with a causal language model, one answer after another.

    padded : whether the answers of a part are evaluated together, padded. One by one, the bits of
    an answer do not depend on its batch, and on a CPU it is also faster. pairs_at_once : of a part.
    """

    def __init__(self, module: nn.Module, padded: bool = False, pairs_at_once: int = 1) -> None:
        self.module = module
        self._padded = padded
        self._pairs_at_once = pairs_at_once

    def of(self, module: nn.Module) -> "PlainLM":
        """Return what scores with another module in the same way."""
        return PlainLM(module, self._padded, self._pairs_at_once)

    def parts(self, tokens: TokenizedPairs, rows: np.ndarray) -> list[np.ndarray]:
        """Split the pairs ``rows`` (B,) into what is scored at once."""
        step = self._pairs_at_once
        return [rows[i : i + step] for i in range(0, len(rows), step)]

    def scored(self, tokens: TokenizedPairs, rows: np.ndarray) -> Tensor:
        """Return what the call does: this way knows of no explicit rewards."""
        return self(tokens, rows)

    def __call__(self, tokens: TokenizedPairs, rows: np.ndarray) -> Tensor:
        """Return (2, B) float32 log-probabilities (nats) of chosen and rejected answers."""
        sequences: list[list[Scored]] = [[], []]
        for row in rows:
            prompt, *answers = tokens.parts(int(row))
            for side, answer in zip(sequences, answers):
                ids = torch.from_numpy(np.concatenate((prompt, answer)))
                side.append(Scored(ids.long(), len(answer)))
        flat = sequences[0] + sequences[1]
        if self._padded:
            logps = answer_logps(self.module, flat)
        else:
            logps = torch.cat([answer_logps(self.module, [one]) for one in flat])
        return logps.view(2, len(rows))
