"""The weights of a language model: which of them are trained, and where every agent begins."""

import copy
import ctypes
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from decdpo.errors import PolicyError
from decdpo.params.factors import Factors
from decdpo.params.flat import FlatParams, Layout, Tag, flatten
from decdpo.policies.lm import hub
from decdpo.policies.lm.adapters import folder as adapter_folder
from decdpo.policies.lm.adapters import layers as adapters
from decdpo.policies.lm.adapters.dropout import Dropout
from decdpo.policies.lm.adapters.layers import LoraOptions
from decdpo.policies.lm.adapters.personal import PersonalOptions, attach, personal_of


class Weights(Protocol):
    """What is trained of a model.

    layout : of the vector. digest : of all that scores depend on and the layout does not hold.
    reference_digest : of what the reference's scores depend on. factors : see ``AdaptedModel``.
    """

    layout: Layout
    digest: str
    reference_digest: str
    factors: tuple[Factors, ...]

    @property
    def taken(self) -> bool:
        """Whether ``start`` has to read the vector again."""
        ...

    def start(self) -> Tensor:
        """Return the (P,) vector where every agent begins, for looking at."""
        ...

    def take(self) -> Tensor:
        """Return it as a vector of the caller's own."""
        ...

    def forget(self) -> None:
        """Keep nothing that can be read again."""
        ...

    def export(self, x: Tensor, tokenizer: Any, out: str | os.PathLike[str]) -> Path:
        """Write the model with parameters ``x`` (P,) as a folder; return its path."""
        ...


class WholeModel:
    """All weights of a folder, as one vector.

    folder : of the model. read : loads its module again. config : of the folder; config_digest :
    the digest of what it computes.

    The weights are held until the first ``take``, and read again should they be needed later; then
    ``PolicyError`` is raised if they are others.
    """

    factors: tuple[Factors, ...] = ()
    dropout: Dropout | None = None

    def __init__(
        self,
        module: nn.Module,
        folder: str | os.PathLike[str],
        read: Callable[[], nn.Module],
        config: Any,
        config_digest: str,
    ) -> None:
        self.layout = Layout.of(module)
        self._module, self._folder, self._read, self._config = module, folder, read, config
        self._config_digest = config_digest
        self.digest = self.reference_digest = self._digest(module)
        self._fresh: Tensor | None = None

    def hold(self) -> None:
        """Take the weights out of the module, into the vector."""
        self._fresh = unload(self._module, self.layout)

    @property
    def taken(self) -> bool:
        return self._fresh is None

    def start(self) -> Tensor:
        """Return the folder's weights (P,), which are read again if somebody has taken them."""
        if self._fresh is None:
            module = self._read()
            if self._digest(module) != self.digest:
                raise PolicyError(
                    f"{self._folder} holds other weights than it did when this process began",
                    "leave the folder of the model as it is while a run uses it",
                )
            self._fresh = unload(module, self.layout)
        return self._fresh

    def take(self) -> Tensor:
        """Return the folder's weights (P,), which the caller changes as it likes."""
        start = self.start()
        self._fresh = None
        return start

    def forget(self) -> None:
        """Drop the vector; it is read again if it is needed."""
        self._fresh = None

    def _digest(self, module: nn.Module) -> str:
        return model_digest(module, self._config_digest, self.layout)

    def export(self, x: Tensor, tokenizer: Any, out: str | os.PathLike[str]) -> Path:
        """Write a Hugging Face folder. Raises ``PolicyError`` if ``out`` is not a new one."""
        FlatParams(self.layout, x).bind(self._module)
        return hub.save(self._module, tokenizer, copy.deepcopy(self._config), out)


class AdaptedModel:
    """The adapters of a model, as one vector; its own weights are frozen, and shared by all agents.

    options : of the adapters. start : the PEFT folder they begin from, None for B = 0. model : the
    folder's name, which an exported adapter says.

    personal : which parts of its own each agent has besides; they go last in the vector.

    The reference is where every agent begins: the base model, or the adapter of ``start``.
    factors : where in the vector the factors of each layer lie, if both travel.
    """

    taken = False

    def __init__(
        self,
        module: Any,
        options: LoraOptions,
        model: str,
        config_digest: str,
        start: Path | None = None,
        personal: PersonalOptions | None = None,
    ) -> None:
        self.options, self._module, self._model = options, module, model
        dtype = next(module.parameters()).dtype
        base = base_digest(module, config_digest)
        self.dropout = Dropout(options.dropout, options.seed) if options.dropout else None
        tags = adapters.adapt(module, options, self.dropout)
        if personal is not None:
            head = module.get_output_embeddings().weight
            tags |= dict.fromkeys(attach(module, personal, head), Tag.PERSONAL)
        self.layout = Layout.tagged(module, tags)
        adapters.begin(module, options)
        self.reference_digest = base
        if start is not None:
            adapter_folder.read(module, start)
            self.reference_digest = _joined(base, str(options.scaling), adapters_digest(module))
        frozen = [p for p in module.parameters() if not p.requires_grad]
        for parameter in frozen:
            # Frames are found in float64; what is frozen is computed with as it is.
            parameter.data = parameter.data.to(dtype)
        kept = adapters_digest(module, frozen=True)
        said = f"{options.mix}:{options.scaling}"
        if start is not None and options.dropout:
            # The folder says it, and not the configuration, which is compared by itself.
            said += f":dropout {options.dropout}"
        if personal is not None:
            said += ":" + json.dumps(personal.words, sort_keys=True)
        self.digest = _joined(self.reference_digest, said, kept, self.layout.digest)
        self.factors = tuple(self._factors()) if options.mix in ("factors", "svd") else ()
        self._start = flatten(module, self.layout)

    def _factors(self) -> Iterator[Factors]:
        """Yield where the factors lie that both travel."""
        for name, layer in adapters.layers(self._module):
            a, b = (self.layout.place(f"{name}.{part}") for part in (adapters.A, adapters.B))
            yield Factors(a, b, layer.rank, layer.in_features, layer.out_features)

    def start(self) -> Tensor:
        """Return where the adapters begin (P,)."""
        return self._start

    def take(self) -> Tensor:
        """Return a copy of where the adapters begin (P,)."""
        return self._start.clone()

    def forget(self) -> None:
        """Keep what is small."""

    def export(self, x: Tensor, tokenizer: Any, out: str | os.PathLike[str]) -> Path:
        """Write a PEFT folder. Raises ``PolicyError`` if ``out`` is not a new one."""
        FlatParams(self.layout, x).bind(self._module, need_grad=False)
        own = personal_of(self._module)
        return adapter_folder.write(self._module, self.options, self._model, tokenizer, out, own)


def adapters_digest(module: nn.Module, frozen: bool = False) -> str:
    """Return the SHA-256 of the values of all adapters, or of what of them is frozen."""
    sha = hashlib.sha256()
    for name, layer in adapters.layers(module):
        for part in (adapters.A, adapters.B, adapters.CORE):
            values = getattr(layer, part)
            if values is not None and not (frozen and values.requires_grad):
                _add(sha, f"{name}.{part}", values)
    return sha.hexdigest()


def base_digest(module: nn.Module, config_digest: str) -> str:
    """Return the digest of a module that is to be frozen: in one type, what it has as a whole."""
    named = dict(module.named_parameters())
    shapes = tuple(tuple(p.shape) for p in named.values())
    total = sum(p.numel() for p in named.values())
    first = next(iter(named.values()))
    return model_digest(module, config_digest, Layout(tuple(named), shapes, total, first.dtype))


def model_digest(module: nn.Module, config_digest: str, layout: Layout) -> str:
    """Return the SHA-256 of all weights, those of ``layout`` leading, and of the configuration.

    Buffers that are not saved follow from the configuration, and are left out.
    """
    sha = hashlib.sha256(f"causal_lm:{config_digest}:{layout.digest}".encode())
    first = layout.names
    parameters = dict(module.named_parameters())
    saved = module.state_dict(keep_vars=True)
    buffers = {name: value for name, value in module.named_buffers() if name in saved}
    rest = sorted(set(parameters) - set(first))
    for name in (*first, *rest, *sorted(buffers)):
        _add(sha, name, parameters[name] if name in parameters else buffers[name])
    return sha.hexdigest()


def _add(sha: Any, name: str, values: Tensor) -> None:
    raw = values.detach().cpu().contiguous().view(-1).view(torch.uint8)
    sha.update(f"{name}:{values.dtype}:{len(raw)}\n".encode())
    sha.update(raw.numpy().data)


def _joined(*parts: str) -> str:
    return hashlib.sha256(":".join(parts).encode()).hexdigest()


def unload(module: nn.Module, layout: Layout) -> Tensor:
    """Move the parameters of ``module`` into a new (P,) vector in the order of ``layout``.

    The module is left without them until it is bound, so that they are never there twice.
    """
    parameters = dict(module.named_parameters())
    first = parameters[layout.names[0]]
    vector = torch.empty(layout.size, dtype=layout.dtype, device=first.device)
    for name, lo, hi in zip(layout.names, layout.offsets, layout.offsets[1:]):
        vector[lo:hi] = parameters[name].detach().view(-1)
        parameters[name].data = vector[lo:hi].view(parameters[name].shape)
    give_back()
    return vector


def give_back() -> None:
    """Return to the system the memory that this process has freed and its allocator keeps.

    Threads have loaded the weights, and what one thread has freed others do not use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
