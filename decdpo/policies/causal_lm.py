"""Causal language models from a Hugging Face folder as policies.

log pi(y | x) = sum_t log pi(y_t | x, y_<t) over the tokens of the answer, its end included.
"""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from decdpo.data.shard import PreferenceShard
from decdpo.errors import EnvironmentFault, PolicyError
from decdpo.losses.base import Leaves, PairScores
from decdpo.params.compute import ComputeView
from decdpo.params.cotangents import paired
from decdpo.params.flat import FlatParams, Layout, flatten
from decdpo.policies.encoded import EncodedShard, require_text, shard_columns
from decdpo.policies.lm import hub
from decdpo.policies.lm.choice import choose_scorer
from decdpo.policies.lm.pace import Pace
from decdpo.policies.lm.speller import Speller, TextRules
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
        slopes = torch.stack((cotangents["chosen"], cotangents["rejected"]))
        with torch.enable_grad():
            total = paired(self.graph, slopes)
        total.backward()
        self.graph = None


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
    cache_reference : compute the reference's log-probabilities once and keep them in the shard;
        otherwise a frozen second copy of the model computes them with each batch.
    tokens_at_once : the most tokens of a part; a larger batch is evaluated part by part, so that
        memory does not grow with the batch. 0 is one pair a part: then the bits of a pair do not
        depend on its batch.
    plain : score every answer by itself, prompt and all, the way that needs nothing of the model.
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
        min_prompt_length: int | None = None,
        gradient_checkpointing: bool = False,
        cache_reference: bool = True,
        allow_hub: bool = False,
        tokens_at_once: int = 0,
        plain: bool = False,
        rules: TextRules = TextRules(),
        pace: Pace | None = None,
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
        self.cache_reference, self._tokens_at_once = cache_reference, tokens_at_once
        self._pace = Pace() if pace is None else pace
        self._pace.begin("loading the model")
        module, self.tokenizer, self._config = hub.load(folder, torch.float32, allow_hub)
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
        self.layout = Layout.of(self._module)
        self._initial = flatten(self._module, self.layout)
        self._frozen = None
        if not cache_reference:
            self._frozen = copy.deepcopy(self._module).requires_grad_(False).to(DTYPES[dtype])
        if gradient_checkpointing:
            # Checkpointing is on in training mode only; with every dropout at 0 nothing else is.
            # transformers renamed the method in version 5.
            new = hasattr(module, "activation_checkpointing_enable")
            name = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
            getattr(module, name)({"use_reentrant": False})
            self._module.train()
        self.dtype = DTYPES[dtype]
        self._bound: FlatParams | None = None
        self._narrow: ComputeView | None = None
        self.scorer, why = choose_scorer(
            self._start(), self._vocabulary, self.max_length, tokens_at_once, plain=plain
        )
        self.notes = (*self.notes, *why)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """What a run was trained on besides weights and data: tokenizer, rules, configuration."""
        return {"tokenizer": self.speller.digest[:16], "model_config": self._config_digest[:16]}

    def initial(self) -> Tensor:
        """Return a new (P,) vector: the folder's weights."""
        return self._initial.clone()

    def bind(self, params: FlatParams) -> nn.Module:
        """Return the module with ``params`` as its parameters."""
        if self.dtype != self.layout.dtype:
            if self._narrow is None:
                self._narrow = ComputeView(self._module, self.layout, self.dtype)
            self._narrow.follow(params)
        elif self._bound is not params:
            params.bind(self._module)
            self._bound = params
        return self._module

    def parts(self, data: TokenShard, rows: np.ndarray) -> list[np.ndarray]:
        """Split the pairs ``rows`` (B,) into parts of at most ``tokens_at_once`` tokens."""
        return self.scorer.parts(data.tokens, rows)

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
                self.min_prompt_length,
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
        self.bind(params)
        where = torch.from_numpy(rows).to(self.device)
        with torch.set_grad_enabled(need_grad):
            logps = self._logps(data, rows)
        if data.reference is not None:
            reference = data.reference[:, where]
        else:
            reference = self._frozen_logps(data, rows)
        gap = None if data.score_gap is None else data.score_gap[where]
        chosen, rejected = logps.detach()
        ref_chosen, ref_rejected = reference
        length, other = data.lengths[:, where]
        pairs = PairScores(chosen, rejected, ref_chosen, ref_rejected, length, other, gap)
        return CausalLMPass(pairs, self, params, logps if need_grad else None)

    def _logps(self, data: TokenShard, rows: np.ndarray) -> Tensor:
        """Return (2, B) log-probabilities of both answers of ``rows`` (B,) by the bound module."""
        if not len(rows):
            return torch.zeros(2, 0, device=self.device)
        return self.scorer(data.tokens, rows)

    def _frozen_logps(self, data: TokenShard, rows: np.ndarray) -> Tensor:
        """Return (2, B) reference log-probabilities, by the frozen copy and scored alike."""
        assert self._frozen is not None
        with torch.no_grad():
            return self.scorer.of(self._frozen)(data.tokens, rows)

    def _start(self) -> nn.Module:
        """Return the module with the reference's weights, for scores without a gradient."""
        nothing = self._initial.new_zeros(1).expand_as(self._initial)
        return self.bind(FlatParams(self.layout, self._initial, nothing))

    def export(self, x: Tensor, out: str | os.PathLike[str]) -> Path:
        """Write the model with parameters ``x`` (P,) as a Hugging Face folder; returns its path.

        Raises ``PolicyError`` if ``out`` exists and is not an empty folder.
        """
        whole = FlatParams(self.layout, x.detach().to(self._initial).contiguous())
        whole.bind(self._module)
        self._bound = self._narrow = None
        return hub.save(self._module, self.tokenizer, copy.deepcopy(self._config), out)

    def _with_reference(self, shard: PreferenceShard, data: TokenShard) -> TokenShard:
        """Add the reference log-probabilities, from the shard's cache if it holds their bits."""
        self._start()

        def compute(rows: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                parts = [self._logps(data, part) for part in self.parts(data, rows)]
            found = torch.cat([torch.zeros(2, 0), *(part.cpu() for part in parts)], dim=1)
            return found.double().numpy().T

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
        way = f"{self.dtype}:{type(self.scorer).__name__}:{self._tokens_at_once}"
        return f"causal_lm:{sha.hexdigest()}:{self.layout.digest}:{self.max_length}:{way}"


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
