"""The usual way through a language model, where the benchmark begins: two rows for each pair."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decdpo.policies.lm.forward.head import token_logps
from decdpo.policies.tokens import TokenizedPairs


class TwoRows:
    """Scores pairs by rows of prompt and answer, padded to the longest of a batch.

    all_logits : form the logits of every token, as most trainers do; otherwise only of answers, a
    chunk at a time.
    """

    def __init__(self, module: Any, all_logits: bool) -> None:
        self.module = module
        self._all_logits = all_logits

    def of(self, module: nn.Module) -> "TwoRows":
        """Return what scores with another module in the same way."""
        return TwoRows(module, self._all_logits)

    def parts(self, tokens: TokenizedPairs, rows: np.ndarray) -> list[np.ndarray]:
        """Return the pairs ``rows`` (B,) as one part."""
        return [rows]

    def scored(self, tokens: TokenizedPairs, rows: np.ndarray) -> Tensor:
        """Return what a call does: such a model has no head beside the usual one."""
        return self(tokens, rows)

    def __call__(self, tokens: TokenizedPairs, rows: np.ndarray) -> Tensor:
        """Return (2, B) float32 log-probabilities (nats) of chosen and rejected answers."""
        pairs = [tokens.parts(int(row)) for row in rows]
        answers = [pair[side] for side in (1, 2) for pair in pairs]
        prompts = [pair[0] for pair in pairs] * 2
        texts = [np.concatenate(both) for both in zip(prompts, answers)]
        width = max(map(len, texts))
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for i, (text, prompt) in enumerate(zip(texts, prompts)):
            ids[i, : len(text)] = torch.from_numpy(text)
            mask[i, : len(text)] = 1
            scored[i, len(prompt) : len(text)] = True
        device = self.module.get_output_embeddings().weight.device
        fed = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
        # The state before a token predicts it.
        targets, scored = ids[:, 1:].to(device), scored[:, 1:].to(device)
        if self._all_logits:
            logits = self.module(**fed).logits[:, :-1].float()
            each = logits.log_softmax(dim=-1).gather(2, targets[..., None])[..., 0]
            return (each * scored).sum(dim=1).view(2, len(rows))
        hidden = self.module.base_model(**fed).last_hidden_state[:, :-1]
        weight = self.module.get_output_embeddings().weight
        each = token_logps(hidden[scored], weight, targets[scored])
        sums = each.new_zeros(len(texts)).index_add(0, scored.nonzero()[:, 0], each)
        return sums.view(2, len(rows))
