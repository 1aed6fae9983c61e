"""Causal language models from a Hugging Face folder as policies.

log pi(y | x) = sum_t log pi(y_t | x, y_<t) over the tokens of the answer, its end included.
"""

import copy
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from decdpo.data.shard import PreferenceShard
from decdpo.errors import PolicyError
from decdpo.losses.base import PairScores
from decdpo.losses.fedpdpo import RewardedScores
from decdpo.params.compute import ComputeView
from decdpo.params.flat import FlatParams
from decdpo.policies.base import Draw
from decdpo.policies.encoded import EncodedShard, require_text, shard_columns
from decdpo.policies.lm import hub
from decdpo.policies.lm.adapters.layers import LoraOptions
from decdpo.policies.lm.adapters.personal import PersonalOptions, personal_of
from decdpo.policies.lm.forward.choice import choose_scorer, probe
from decdpo.policies.lm.forward.compiled import compile_layers, compile_scorer
from decdpo.policies.lm.forward.graphed import graphed
from decdpo.policies.lm.forward.packing import packed_size
from decdpo.policies.lm.forward.plain import PlainLM
from decdpo.policies.lm.mapped import sharing
from decdpo.policies.lm.pace import Pace
from decdpo.policies.lm.passes import CausalLMPass
from decdpo.policies.lm.reference import CachedReference, FrozenReference, rounding
from decdpo.policies.lm.text.limit import MAX_LENGTH, length_limit
from decdpo.policies.lm.text.speller import Speller, TextRules
from decdpo.policies.lm.weights import AdaptedModel, WholeModel
from decdpo.policies.tokens import TokenizedPairs, tokenize

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

PROBE_LENGTH = 64
"""Tokens of the pairs by which machines that round differently are distinguished."""


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


class CausalLM:
    """A causal language model that serves every agent of a process with one module.

    Parameters
    ----------
    folder : with config.json, *.safetensors and the tokenizer; a hub's name only if ``allow_hub``.
    dtype : "float32" or "bfloat16", of the arithmetic (log-softmax: float32 always). The parameters
        that are trained, sent and saved are float32 in any case.
    device : where it computes.
    max_length, min_prompt_length : limits in tokens, see ``tokens.tokenize``. 0 is 512, or what the
        model was made for if that is less.
    gradient_checkpointing : recompute activations in the backward pass to save memory.
    cache_reference : compute the reference's log-probabilities once and keep them beside the
        shard; otherwise a frozen second copy of the model computes them with each batch.
    tokens_at_once : the most tokens of a part; a larger batch is evaluated part by part, so that
        memory does not grow with the batch. 0 is one pair a part: then the bits of a pair do not
        depend on its batch.
    plain : score every answer by itself, prompt and all, the way that needs nothing of the model.
    compiled : let torch compile the model's layers, see ``lm.compiled``. graphs : on a GPU in
        bfloat16, record the operations of a pass and begin them at once, see
        ``lm.forward.graphed``; not with checkpointing, dropout or personal parts.
    rules : how pairs become text, and where answers end. pace : shows how far encoding is.
    lora : train adapters of the frozen model. adapter : the PEFT folder where they begin.
    personal : parts beside the adapters that are each agent's own, see ``lm.personal``.

    The reference is the folder's model, and where every agent begins; of an adapted one the model
    with the adapters of the start. Dropout is off but that of adapters.

    Memory, in bytes, for P parameters: the vector of the agent whose turn it is serves as the
    module's weights (4 P, its own anyway), in "bfloat16" beside a narrow copy (2 P). The folder's
    weights are held until the first ``initial()`` takes them over, and read again should they be
    needed later. Without the cache the frozen model stays beside all this (4 P or 2 P). With
    adapters the model is frozen and there once (4 P or 2 P), whatever agents share it, without the
    cache too, and once on a node if its file has ``dtype`` (``lm.mapped``); vectors have the size
    of the adapters.

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
        min_prompt_length: int | None = None,
        gradient_checkpointing: bool = False,
        cache_reference: bool = True,
        allow_hub: bool = False,
        tokens_at_once: int = 0,
        plain: bool = False,
        compiled: bool = False,
        graphs: bool = True,
        rules: TextRules = TextRules(),
        pace: Pace | None = None,
        lora: LoraOptions | None = None,
        adapter: Path | None = None,
        personal: PersonalOptions | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise PolicyError(f"dtype = {dtype!r}", "choose 'float32' or 'bfloat16'")
        least = 1 if min_prompt_length is None else min_prompt_length
        if not 0 < least < (max_length or MAX_LENGTH) or tokens_at_once < 0:
            raise PolicyError(
                f"max_length = {max_length}, min_prompt_length = {min_prompt_length},"
                f" tokens_at_once = {tokens_at_once} leave no room for an answer",
                "choose max_length >= 2, 0 < min_prompt_length < max_length, tokens_at_once >= 0",
            )
        self.device = torch.device(device)
        self._pace = Pace() if pace is None else pace
        self._pace.begin("loading the model")
        # What is trained is float32; what is frozen is of the type that it is computed with.
        kept = torch.float32 if lora is None else DTYPES[dtype]
        module, self.tokenizer, self._config = hub.load(folder, kept, allow_hub)
        self._config_digest = hub.config_digest(folder, allow_hub)
        self.speller = Speller(self.tokenizer, rules)
        self.max_length, self.notes = length_limit(max_length, hub.context(module.config), folder)
        self.min_prompt_length = min_prompt_length
        if gradient_checkpointing and not getattr(module, "supports_gradient_checkpointing", True):
            raise PolicyError(
                f"{folder}: {type(module).__name__} cannot recompute its activations",
                "turn activation checkpointing off",
            )
        self._module = module.to(self.device).eval()
        self._vocabulary = int(module.get_input_embeddings().weight.shape[0])
        self.dtype = DTYPES[dtype]
        self.weights = self._weights(folder, allow_hub, lora, adapter, personal)
        self.layout, self.digest = self.weights.layout, self.weights.digest
        self.factors, self.noisy = self.weights.factors, self.weights.dropout is not None
        frozen = None
        if isinstance(self.weights, WholeModel):
            if not cache_reference:
                frozen = copy.deepcopy(self._module).requires_grad_(False).to(self.dtype)
            self.weights.hold()
        if gradient_checkpointing:
            # Checkpointing is on in training mode only; with every dropout at 0 nothing else is.
            # transformers renamed the method in version 5.
            new = hasattr(module, "activation_checkpointing_enable")
            name = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
            getattr(module, name)({"use_reentrant": False})
            self._module.train()
        self._bound: FlatParams | None = None
        self._has_grad = False
        self._narrow: ComputeView | None = None
        self._begin()
        self.scorer, why = choose_scorer(
            self._module, self._vocabulary, self.max_length, tokens_at_once, plain=plain
        )
        self.notes = (*self.notes, *why)
        if lora is not None:
            still = [p for p in self._module.parameters() if not p.requires_grad]
            self.notes = (*self.notes, *sharing(still, dtype))
        if personal is not None and isinstance(self.scorer, PlainLM):
            raise PolicyError(
                f"{folder} cannot have personal parts: {', '.join(why) or 'plain was asked for'}",
                "choose a model whose pairs can be scored in one row, or remove [policy.personal]",
            )
        if self.noisy and isinstance(self.scorer, PlainLM):
            raise PolicyError(
                f"{folder} cannot have dropout: {', '.join(why) or 'plain was asked for'}",
                "choose a model whose pairs can be scored in one row, or leave dropout out",
            )
        if self.noisy and compiled:
            raise PolicyError(
                "policy.lora.dropout draws its masks outside of what policy.compile compiles",
                "remove one of them",
            )
        if compiled:
            self._pace.begin("compiling the model")
            compile_scorer(self.scorer, probe(self._vocabulary, self.max_length))
            if frozen is not None:
                compile_layers(frozen)
        if graphs and self.device.type == "cuda" and not (self.noisy or gradient_checkpointing):
            self.scorer, why = graphed(self.scorer, probe(self._vocabulary, self.max_length))
            self.notes = (*self.notes, *why)
        self.reference = self._reference(cache_reference, frozen)

    def _weights(
        self,
        folder: str | os.PathLike[str],
        allow_hub: bool,
        lora: LoraOptions | None,
        adapter: Path | None,
        personal: PersonalOptions | None,
    ) -> WholeModel | AdaptedModel:
        """Return what is trained of the module."""
        if lora is not None:
            where = os.path.abspath(folder) if os.path.isdir(folder) else os.fspath(folder)
            return AdaptedModel(
                self._module, lora, where, self._config_digest, adapter, personal
            )

        def read() -> nn.Module:
            with hub.quiet():
                module, _, _ = hub.load(folder, torch.float32, allow_hub)
            again: nn.Module = module.to(self.device)
            return again

        return WholeModel(self._module, folder, read, self._config, self._config_digest)

    def _reference(
        self, cached: bool, frozen: nn.Module | None
    ) -> CachedReference | FrozenReference:
        """Return what scores by the reference; frozen : a second model, if there is one."""
        if not cached:
            # Of an adapted model the reference is the model itself, with the start's adapters.
            score = self._score_start if frozen is None else self.scorer.of(frozen)
            return FrozenReference(score)
        way = f"{self.weights.reference_digest}:{self.dtype}:{type(self.scorer).__name__}"
        length = min(PROBE_LENGTH, hub.context(self._module.config) or PROBE_LENGTH)
        few = probe(self._vocabulary, length)
        return CachedReference(
            hashlib.sha256(way.encode()).hexdigest(), rounding(self.scorer, few)
        )

    def _score_start(self, tokens: TokenizedPairs, rows: np.ndarray) -> Tensor:
        """Return (2, B) log-probabilities of ``rows`` (B,) where every agent begins."""
        self._begin()
        return self.scorer(tokens, rows)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """What a run was trained on besides weights and data: tokenizer, rules, configuration."""
        return {"tokenizer": self.speller.digest[:16], "model_config": self._config_digest[:16]}

    def initial(self) -> Tensor:
        """Return a new (P,) vector: the folder's weights, or where adapters begin.

        Raises ``PolicyError`` if weights have to be read again and are others now.
        """
        return self.weights.take()

    def bind(self, params: FlatParams, need_grad: bool = False) -> nn.Module:
        """Return the module with ``params`` as its parameters, and their gradient if need be."""
        if self.dtype != self.layout.dtype:
            if self._narrow is None:
                self._narrow = ComputeView(self._module, self.layout, self.dtype)
            self._narrow.follow(params, need_grad)
        elif self._bound is not params or need_grad and not self._has_grad:
            params.bind(self._module, need_grad)
            self._bound, self._has_grad = params, need_grad
        return self._module

    def parts(self, data: TokenShard, rows: np.ndarray) -> list[np.ndarray]:
        """Split the pairs ``rows`` (B,) into parts of at most ``tokens_at_once`` tokens."""
        return self.scorer.parts(data.tokens, rows)

    def encode(self, shard: PreferenceShard) -> TokenShard:
        """Tokenize a shard and, if they are cached, find or compute its reference values.

        Tokens and values are kept beside the shard, see ``lm.token_cache`` and ``lm.reference``.

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
                self.min_prompt_length,
                source_rows=[shard.places[row] for row in range(shard.num_pairs)],
                where=where,
                progress=self._pace.step,
                cache=shard.tokens,
                known=self._pace.skip,
            )
        if len(tokens.ids) and tokens.ids.max() >= self._vocabulary:
            raise PolicyError(
                f"{where}the tokenizer gives id {tokens.ids.max()},"
                f" but the model has {self._vocabulary} tokens",
                "use the tokenizer the model was trained with",
            )
        columns = shard_columns(shard, torch.float32, self.device, tokens.alike, tokens.tallies)
        lengths = torch.from_numpy(tokens.lengths).to(self.device, torch.float32)
        data = TokenShard(**columns, tokens=tokens, lengths=lengths, reference=None)
        data = replace(data, notes=shard.tokens.notes)
        return self._with_reference(shard, data)

    def forward(
        self,
        params: FlatParams,
        data: TokenShard,
        rows: np.ndarray,
        *,
        need_grad: bool = True,
        draw: Draw | None = None,
    ) -> CausalLMPass:
        """Evaluate the pairs ``rows`` (B,) of ``data`` at ``params.data`` (P,).

        draw : address of the dropout of a local step; None has none.
        """
        self.end_draw()
        ref_chosen, ref_rejected = self.reference.scores(data, rows)
        # After the reference, which may need the same module.
        self.bind(params, need_grad)
        if self.weights.dropout is not None and draw is not None:
            self.weights.dropout.begin(draw, rows, packed_size(data.tokens, rows))
        where = torch.from_numpy(rows).to(self.device)
        with torch.set_grad_enabled(need_grad):
            scored = self._scored(data, rows)
        gap = None if data.score_gap is None else data.score_gap[where]
        chosen, rejected, *rewards = scored.detach()
        length, other = data.lengths[:, where]
        known = chosen, rejected, ref_chosen, ref_rejected, length, other, gap
        pairs = RewardedScores(*known, *rewards) if rewards else PairScores(*known)
        return CausalLMPass(pairs, self, params, scored if need_grad else None)

    def end_draw(self) -> None:
        """Score without dropout from now on: its masks lasted to the end of a backward pass."""
        if self.weights.dropout is not None:
            self.weights.dropout.end()

    def _scored(self, data: TokenShard, rows: np.ndarray) -> Tensor:
        """Return what the bound module says of both answers of ``rows`` (B,), a row a leaf.

        (2, B) log-probabilities, and (2, B) explicit rewards below them if it has such a head.
        """
        if not len(rows):
            own = personal_of(self._module)
            leaves = 2 if own is None or own.reward is None else 4
            return torch.zeros(leaves, 0, device=self.device)
        return self.scorer.scored(data.tokens, rows)

    def _begin(self) -> None:
        """Bind what every agent begins with, which is read again if an agent has taken it over."""
        start = self.weights.start()
        if self._bound is None or self._bound.data is not start:
            self.bind(FlatParams(self.layout, start))

    def export(self, x: Tensor, out: str | os.PathLike[str]) -> Path:
        """Write the model with parameters ``x`` (P,) as a Hugging Face folder; returns its path.

        Of an adapted model it is the adapter alone, as PEFT reads it.

        Raises ``PolicyError`` if ``out`` exists and is not an empty folder.
        """
        self._bound = self._narrow = None
        like = x.detach().to(self.device, self.layout.dtype)
        return self.weights.export(like.contiguous(), self.tokenizer, out)

    def _with_reference(self, shard: PreferenceShard, data: TokenShard) -> TokenShard:
        """Add the reference log-probabilities, if they are cached."""
        if not isinstance(self.reference, CachedReference):
            return data
        taken, before = self.weights.taken, self._bound

        def score(rows: np.ndarray) -> Tensor:
            self._begin()
            with torch.no_grad():
                return self._scored(data, rows)[:2]

        values, notes = self.reference.fill(shard, data.tokens, score, self._pace)
        if taken and not self.weights.taken:
            # What was read again shall not stay beside the policy.
            self.weights.forget()
            if before is not None:
                self.bind(before)
        found = torch.from_numpy(values).to(self.device, torch.float32)
        return replace(data, reference=found, notes=(*data.notes, *notes))
