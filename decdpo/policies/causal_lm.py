"""Causal language models from a Hugging Face folder as policies.

log pi(y | x) = sum_t log pi(y_t | x, y_<t) over the tokens of the answer, its end included.
"""

import copy
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decdpo.data.shard import PreferenceShard
from decdpo.errors import EnvironmentFault, PolicyError
from decdpo.losses.base import Leaves, PairScores
from decdpo.params.flat import FlatParams, Layout, flatten
from decdpo.policies import hub
from decdpo.policies.encoded import EncodedShard, require_text, shard_columns
from decdpo.policies.foreign import foreign
from decdpo.policies.pace import Pace
from decdpo.policies.speller import Speller, TextRules
from decdpo.policies.tokens import TokenizedPairs, tokenize

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

MAX_LENGTH = 512
"""Tokens of a prompt and an answer together, unless said or the model is made for fewer."""

REFERENCE_BATCH = 16
"""Pairs of one batch of the cached reference; ``check_start`` takes the same, for equal bits."""


@dataclass(frozen=True)
class TokenShard(EncodedShard):
    """One agent's N pairs as tokens.

    tokens : ragged ids. lengths : (2, N) float32 number of tokens of the chosen and the rejected
    answers. reference : (2, N) float32 their reference log-probabilities, or None if those are
    computed with each batch.
    """

    tokens: TokenizedPairs
    lengths: Tensor
    reference: Tensor | None


@dataclass(frozen=True)
class Scored:
    """A prompt with one answer: ids (T,) int64 on the CPU, the last ``answer`` of them scored."""

    ids: Tensor
    answer: int


def answer_logps(module: nn.Module, sequences: Sequence[Scored]) -> Tensor:
    """Return (S,) float32 log-probabilities (nats), each summed over the tokens of one answer.

    The one primitive of this policy. Sequences of unequal length are padded on the right; masks
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
    with foreign(f"the model {type(module).__name__} cannot score an answer", _CANNOT_SCORE):
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


_CANNOT_SCORE = "check that policy.model is a language model that transformers runs on this device"


@lru_cache
def _keeps_logits(forward: Callable[..., Any]) -> bool:
    """Say whether a model can compute the logits of chosen positions alone."""
    return "logits_to_keep" in inspect.signature(forward).parameters


@dataclass
class CausalLMPass:
    """One batch: its log-probabilities and the way back through the model.

    graph : (2, B) log-probabilities with their autograd graph; None if it was not wanted, or used.
    """

    scores: PairScores
    policy: "CausalLM"
    params: FlatParams
    graph: Tensor | None

    def backward(self, cotangents: Leaves) -> None:
        """Add the gradient to ``params.grad``; once only."""
        if self.graph is None:
            raise ValueError("this pass was made without a gradient, or has given it already")
        self.policy.bind(self.params)
        self.graph.backward(torch.stack((cotangents["chosen"], cotangents["rejected"])))
        self.graph = None


class CausalLM:
    """A causal language model that serves every agent of a process with one module.

    Parameters
    ----------
    folder : with config.json, *.safetensors and the tokenizer; a hub's name only if ``allow_hub``.
    dtype : "float32" or "bfloat16", of weights and arithmetic (log-softmax: float32 always). To
        train is for float32: small steps are lost in bfloat16 weights.
    device : where it computes.
    max_length, max_prompt_length : limits in tokens, see ``tokens.tokenize``. 0 is 512, or what the
        model was made for if that is less.
    gradient_checkpointing : recompute activations in the backward pass to save memory.
    cache_reference : compute the reference's log-probabilities once and keep them in the shard;
        otherwise a frozen second copy of the model computes them with each batch.
    padded : evaluate a batch's answers together, padded; by default only on a GPU. One by one, the
        bits of an answer do not depend on its batch, and on a CPU it is also faster.
    pairs_at_once : the most pairs of a part; a larger batch is evaluated part by part, so that
        memory does not grow with the batch.
    rules : how pairs become text, and where answers end. pace : what is told how far encoding is.

    The reference is the folder's model, and where every agent begins. Dropout is off.

    Raises ``PolicyError`` for a model or an argument that cannot be used, ``EnvironmentFault``
    without transformers.
    """

    concurrent = False

    def __init__(
        self,
        folder: str | os.PathLike[str],
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        max_length: int = 0,
        max_prompt_length: int | None = None,
        gradient_checkpointing: bool = False,
        cache_reference: bool = True,
        allow_hub: bool = False,
        padded: bool | None = None,
        pairs_at_once: int = 32,
        rules: TextRules = TextRules(),
        pace: Pace | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise PolicyError(f"dtype = {dtype!r}", "choose 'float32' or 'bfloat16'")
        least = 1 if max_prompt_length is None else max_prompt_length
        if not 0 < least < (max_length or MAX_LENGTH) or pairs_at_once < 1:
            raise PolicyError(
                f"max_length = {max_length}, max_prompt_length = {max_prompt_length},"
                f" pairs_at_once = {pairs_at_once} leave no room for an answer",
                "choose max_length >= 2, 0 < max_prompt_length < max_length, pairs_at_once >= 1",
            )
        self.device = torch.device(device)
        self.cache_reference, self.pairs_at_once = cache_reference, pairs_at_once
        self.padded = self.device.type != "cpu" if padded is None else padded
        self._pace = Pace() if pace is None else pace
        self._pace.begin("loading the model")
        module, self.tokenizer, self._config = hub.load(folder, DTYPES[dtype], allow_hub)
        self.speller = Speller(self.tokenizer, rules)
        self.max_length, self.notes = length_limit(max_length, hub.context(module.config), folder)
        self.max_prompt_length = max_prompt_length
        if gradient_checkpointing and not getattr(module, "supports_gradient_checkpointing", True):
            raise PolicyError(
                f"{folder}: {type(module).__name__} cannot recompute its activations",
                "turn activation checkpointing off",
            )
        self._module = module.to(self.device).eval()
        self._vocabulary = int(module.get_input_embeddings().weight.shape[0])
        self.layout = Layout.of(self._module)
        self._initial = flatten(self._module, self.layout)
        self._frozen = None
        if not cache_reference:
            self._frozen = copy.deepcopy(self._module).requires_grad_(False)
        if gradient_checkpointing:
            # Checkpointing is on in training mode only; with every dropout at 0 nothing else is.
            # transformers renamed the method in version 5.
            new = hasattr(module, "activation_checkpointing_enable")
            name = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
            getattr(module, name)({"use_reentrant": False})
            self._module.train()
        self._bound: FlatParams | None = None

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """What a run was trained on besides weights and data: the tokenizer and its rules."""
        return {"tokenizer": self.speller.digest[:16]}

    def initial(self) -> Tensor:
        """Return a new (P,) vector: the folder's weights."""
        return self._initial.clone()

    def bind(self, params: FlatParams) -> nn.Module:
        """Return the module with ``params`` as its parameters."""
        if self._bound is not params:
            params.bind(self._module)
            self._bound = params
        return self._module

    def parts(self, data: TokenShard, rows: np.ndarray) -> list[np.ndarray]:
        """Split the pairs ``rows`` (B,) into parts of at most ``pairs_at_once``."""
        return [rows[i : i + self.pairs_at_once] for i in range(0, len(rows), self.pairs_at_once)]

    def encode(self, shard: PreferenceShard) -> TokenShard:
        """Tokenize a shard and, if they are cached, find or compute its reference values.

        Cached values are kept in the shard, under a key of reference weights, tokens, dtype and
        length limit. A cache is used only if it reproduces the bits of the first batch here: other
        machines round otherwise, and rewards must start at exactly 0.

        Raises ``PolicyError`` if the tokenizer's ids do not fit the model, or the tokenizer or its
        template cannot take a pair, ``DataError`` if a pair has no text.
        """
        require_text(
            shard,
            "a language model",
            'set policy.kind = "loglinear" and policy.features = "columns"',
        )
        where = f"agent {shard.agent}: "
        self._pace.begin("making tokens")
        with hub.quiet():
            tokens = tokenize(
                shard.pairs(np.arange(shard.num_pairs)),
                self.speller,
                shard.prompt_format,
                self.max_length,
                self.max_prompt_length,
                source_rows=[shard.places[row] for row in range(shard.num_pairs)],
                where=where,
                progress=self._pace.step,
            )
        if len(tokens.ids) and tokens.ids.max() >= self._vocabulary:
            raise PolicyError(
                f"{where}the tokenizer gives id {tokens.ids.max()},"
                f" but the model has {self._vocabulary} tokens",
                "use the tokenizer the model was trained with",
            )
        data = TokenShard(
            **shard_columns(shard, torch.float32, self.device, tokens.alike, tokens.tallies),
            tokens=tokens,
            lengths=torch.from_numpy(tokens.lengths).to(self.device, torch.float32),
            reference=None,
        )
        return self._with_reference(shard, data) if self.cache_reference else data

    def forward(
        self, params: FlatParams, data: TokenShard, rows: np.ndarray, *, need_grad: bool = True
    ) -> CausalLMPass:
        """Evaluate the pairs ``rows`` (B,) of ``data`` at ``params.data`` (P,)."""
        module = self.bind(params)
        where = torch.from_numpy(rows).to(self.device)
        with torch.set_grad_enabled(need_grad):
            logps = self.pair_logps(module, data, rows)
        if data.reference is not None:
            reference = data.reference[:, where]
        else:
            assert self._frozen is not None
            with torch.no_grad():
                reference = self.pair_logps(self._frozen, data, rows)
        gap = None if data.score_gap is None else data.score_gap[where]
        chosen, rejected = logps.detach()
        ref_chosen, ref_rejected = reference
        length, other = data.lengths[:, where]
        pairs = PairScores(chosen, rejected, ref_chosen, ref_rejected, length, other, gap)
        return CausalLMPass(pairs, self, params, logps if need_grad else None)

    def pair_logps(self, module: nn.Module, data: TokenShard, rows: np.ndarray) -> Tensor:
        """Return (2, B) log-probabilities of the chosen and rejected answers of ``rows`` (B,)."""
        if not len(rows):
            return torch.zeros(2, 0, device=self.device)
        sequences: list[list[Scored]] = [[], []]
        for row in rows:
            prompt, *answers = data.tokens.parts(row)
            for side, answer in zip(sequences, answers):
                ids = torch.from_numpy(np.concatenate((prompt, answer)))
                side.append(Scored(ids.long(), len(answer)))
        flat = sequences[0] + sequences[1]
        if self.padded:
            logps = answer_logps(module, flat)
        else:
            logps = torch.cat([answer_logps(module, [one]) for one in flat])
        return logps.view(2, len(rows))

    def export(self, x: Tensor, out: str | os.PathLike[str]) -> Path:
        """Write the model with parameters ``x`` (P,) as a Hugging Face folder; returns its path.

        Raises ``PolicyError`` if ``out`` exists and is not an empty folder.
        """
        module = self.bind(FlatParams(self.layout, x.detach().to(self._initial).contiguous()))
        return hub.save(module, self.tokenizer, copy.deepcopy(self._config), out)

    def _with_reference(self, shard: PreferenceShard, data: TokenShard) -> TokenShard:
        """Add the reference log-probabilities, from the shard's cache if it holds their bits."""
        # Nothing flows back, so the gradient needs no memory.
        nothing = self._initial.new_zeros(1).expand_as(self._initial)
        module = self.bind(FlatParams(self.layout, self._initial, nothing))

        def compute(rows: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return self.pair_logps(module, data, rows).cpu().double().numpy().T

        self._pace.begin("reference log-probabilities")
        batches = np.split(
            np.arange(data.num_pairs), range(REFERENCE_BATCH, data.num_pairs, REFERENCE_BATCH)
        )
        key = f"{self._reference_key}:{data.tokens.digest}"
        values, first = shard.reference(key), compute(batches[0])
        if values is None or not np.array_equal(values[: len(first)], first):
            self._pace.step(len(first))
            found = [first]
            for rows in batches[1:]:
                found.append(compute(rows))
                self._pace.step(len(rows))
            values = np.concatenate(found)
            try:
                shard.save_reference(key, values)
            except EnvironmentFault as fault:
                note = f"agent {data.agent}: reference not kept for the next run: {fault.what}"
                data = replace(data, notes=(*data.notes, note))
        reference = torch.from_numpy(values.T.copy()).to(self.device, torch.float32)
        return replace(data, reference=reference)

    @cached_property
    def _reference_key(self) -> str:
        """What the reference's log-probabilities depend on, besides the tokens."""
        config = self._config.to_dict()
        config.pop("_name_or_path", None)
        sha = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for values in (self._initial, *self._module.buffers()):
            sha.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return f"causal_lm:{sha.hexdigest()}:{self.layout.digest}:{self.max_length}"


def length_limit(
    asked: int, context: int | None, folder: str | os.PathLike[str]
) -> tuple[int, tuple[str, ...]]:
    """Return the limit in tokens, and notes; ``asked`` 0 is the usual one, or the context if less.

    Raises ``PolicyError`` if more is asked for than the model was made for.
    """
    if context is not None and asked > context:
        raise PolicyError(
            f"max_length = {asked}, but {folder} was made for {context} tokens",
            f"set max_length = {context} or less, or leave it out",
        )
    if context is not None and not asked and context < MAX_LENGTH:
        note = f"max_length = {context}, not {MAX_LENGTH}: {folder} was made for {context} tokens"
        return context, (note,)
    return asked or MAX_LENGTH, ()
