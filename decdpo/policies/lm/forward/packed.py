"""The fast way through a causal language model: packed rows, and a head for scored tokens alone."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decdpo.policies.lm.adapters.personal import personal_of
from decdpo.policies.lm.foreign import foreign
from decdpo.policies.lm.forward import attention
from decdpo.policies.lm.forward.head import token_logps
from decdpo.policies.lm.forward.packing import pack, packed_size
from decdpo.policies.lm.forward.plain import CANNOT_SCORE
from decdpo.policies.lm.forward.remade import remade
from decdpo.policies.lm.forward.vocabulary import Vocabulary, VocabularyGradient
from decdpo.policies.tokens import TokenizedPairs


class PackedLM:
    """Scores pairs with a causal language model of transformers, a packed row at a time.

    module : the model. Until ``release`` its attention is ``attention.SEGMENTS``, for with
        activation checkpointing it is computed again in the backward pass.
    tokens_at_once : the most tokens of a row, but for a pair that alone has more. 0 is one pair a
        row: then the bits of an answer do not depend on its batch.
    embeds : hand the model the states of its tokens instead of their ids, which spares memory and
        time in the backward pass; some models want the ids.
    attend : how the tokens of a row attend, see ``attention``.

    What a model does to its logits after the head is known for a factor (Cohere's
    ``logit_scale``, Granite's ``logits_scaling``) and a soft cap (Gemma 2); for whatever else a
    model may do, compare with the plain way before use.
    """

    def __init__(
        self,
        module: Any,
        tokens_at_once: int = 0,
        embeds: bool = True,
        attend: attention.Way = attention.Masked.of,
    ) -> None:
        attention.register()
        configs = [part.config for part in module.modules() if hasattr(part, "config")]
        self._before = [(config, config._attn_implementation) for config in configs]
        for config in configs:
            config._attn_implementation = attention.SEGMENTS
        self.module = module
        self._personal = personal_of(module)
        self._vocabulary = Vocabulary(module, embeds)
        self._embeds = embeds
        self._tokens_at_once = tokens_at_once
        self._attend = attend
        config = module.config
        self._softcap = getattr(config, "final_logit_softcapping", None)
        scale = getattr(config, "logit_scale", None)
        self._scale = scale or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)

    def attend_apart(self, apart: Callable[[attention.Way], attention.Way]) -> None:
        """Attend by what ``apart`` makes of the way to attend, unless that is one call a row."""
        if self._attend != attention.Varlen.of:
            self._attend = apart(self._attend)

    @property
    def repeats(self) -> bool:
        """Whether it does the same for all rows of one size, but with other numbers."""
        return self._attend == attention.Varlen.of and self._vocabulary.plain and (
            self._personal is None
        )

    def release(self) -> None:
        """Give the model its own attention back."""
        for config, name in self._before:
            config._attn_implementation = name

    def of(self, module: Any) -> "PackedLM":
        """Return what scores with another module in the same way."""
        return PackedLM(module, self._tokens_at_once, self._embeds, self._attend)

    def parts(self, tokens: TokenizedPairs, rows: np.ndarray) -> list[np.ndarray]:
        """Split the pairs ``rows`` (B,), in order, by the tokens that a packed row may have."""
        sizes = packed_size(tokens, rows)
        parts, begin, size = [], 0, 0
        for i, more in enumerate(sizes.tolist()):
            if i > begin and size + more > self._tokens_at_once:
                parts.append(rows[begin:i])
                begin, size = i, 0
            size += more
        return [*parts, rows[begin:]] if len(rows) else []

    def __call__(self, tokens: TokenizedPairs, rows: np.ndarray) -> Tensor:
        """Return (2, B) float32 log-probabilities (nats) of chosen and rejected answers."""
        return self.scored(tokens, rows)[:2]

    def scored(self, tokens: TokenizedPairs, rows: np.ndarray) -> Tensor:
        """Return them, and below them the (2, B) explicit rewards if the model has such a head."""
        row = pack(tokens, rows)
        of_head, of_embedding = self._vocabulary.gradients()
        fed = self._vocabulary.fed(row.ids, of_embedding)
        states = self._states(fed, row.positions, self._attend(row, self.dtype, self.device))
        states = states[row.sources.to(self.device)]
        own, rewards, added = self._personal, None, None
        weight: Tensor = self._vocabulary.head.weight
        if own is not None:
            states = own.bent(states)
            rewards = own.rewards(states, row.lengths) if own.reward is not None else None
        if self._scale != 1.0:
            states = states * self._scale
        if own is not None:
            added = own.lowered(states)
            if own.head is not None:
                weight, of_head = own.head, None
        logps = self._logps(states, row.targets.to(self.device), of_head, weight, added)
        answers = _sums(logps, row.lengths).view(len(rows), 2).t()
        return answers if rewards is None else torch.cat((answers, rewards.view(len(rows), 2).t()))

    @property
    def dtype(self) -> torch.dtype:
        """The type of what is computed."""
        found: torch.dtype = self._vocabulary.head.weight.dtype
        return found

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        found: torch.device = self._vocabulary.head.weight.device
        return found

    def _states(
        self, fed: dict[str, Tensor], positions: Tensor, segments: attention.Attend
    ) -> Tensor:
        """Return (T, H) the last hidden states of the tokens of a row.

        fed : what the model is given of them. positions : (T,). segments : how they attend.
        """
        name = type(self.module).__name__
        # On a GPU memory is read as slowly as it is computed with: there all is kept.
        spared = remade() if self.device.type == "cpu" else nullcontext()
        with foreign(f"the model {name} cannot score an answer", CANNOT_SCORE), spared:
            states: Tensor = self.module.base_model(
                **fed,
                position_ids=positions[None].to(self.device),
                use_cache=False,
                segments=segments,
            ).last_hidden_state[0]
        return states

    def _logps(
        self,
        states: Tensor,
        targets: Tensor,
        gradient: VocabularyGradient | None,
        weight: Tensor,
        added: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return (A,) the log-probabilities of ``targets`` (A,) by scaled ``states`` (A, H).

        gradient, weight, added : see ``token_logps``.
        """
        bias = getattr(self._vocabulary.head, "bias", None)
        return token_logps(
            states, weight, targets, bias, self._softcap, gradient=gradient, added=added
        )


def _sums(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return (N,) the sums of N consecutive parts of ``values`` (A,)."""
    if values.device.type == "cpu":
        return torch.stack([part.sum() for part in values.split(list(lengths))])
    # A GPU would take longer to begin so many sums than to make them.
    part = torch.repeat_interleave(torch.tensor(lengths)).to(values.device)
    return values.new_zeros(len(lengths)).index_add(0, part, values)
