"""From a configuration to what one agent does: its loss, its steps and its algorithm."""

from dataclasses import fields
from typing import Any

import torch

from decdpo.algorithms.base import Algorithm
from decdpo.algorithms.catalogue import ALGORITHMS
from decdpo.algorithms.gossip.choco import Choco
from decdpo.algorithms.server.outer_momentum import OuterMomentum
from decdpo.algorithms.wrappers.fragments import Fragments
from decdpo.codecs.base import Codec
from decdpo.codecs.cast import Cast
from decdpo.codecs.identity import Identity
from decdpo.codecs.quantize import Quantize
from decdpo.codecs.randomk import RandomK
from decdpo.codecs.topk import TopK
from decdpo.config import algorithms as sections
from decdpo.config import schema
from decdpo.config.algorithms import AlgorithmSection
from decdpo.errors import ConfigError
from decdpo.losses.base import PairLoss, RunningLoss
from decdpo.losses.catalogue import LOSS_CLASSES
from decdpo.params.flat import Layout
from decdpo.params.optim import (
    SGD,
    AdamW,
    Constant,
    Cosine,
    InverseSqrt,
    LearningRate,
    Optimizer,
    Warmup,
)


def make_loss(section: schema.Loss) -> PairLoss | RunningLoss:
    """Return the loss of the section ``[loss]``."""
    loss: PairLoss | RunningLoss = LOSS_CLASSES[section.kind](**section.constants())
    return loss


def make_optimizer(section: schema.Optim) -> Optimizer:
    """Return the optimizer of the section ``[optim]``."""
    common = {"weight_decay": section.weight_decay, "max_norm": section.clip_norm}
    if isinstance(section, schema.Sgd):
        return SGD(momentum=section.momentum, nesterov=section.nesterov, **common)
    beta1, beta2 = section.betas
    return AdamW(beta1=beta1, beta2=beta2, eps=section.eps, **common)


def make_learning_rate(section: schema.StepSizes, total_steps: int) -> LearningRate:
    """Return the step sizes of the section ``[optim]`` over ``total_steps`` local steps."""
    warmup = section.warmup_steps
    if section.schedule == "cosine":
        rate: LearningRate = Cosine(section.lr, total_steps - warmup)
    elif section.schedule == "inverse_sqrt":
        rate = InverseSqrt(section.lr)
    else:
        rate = Constant(section.lr)
    return Warmup(warmup, rate) if warmup else rate


def make_codec(section: sections.Choco, size: int, dtype: torch.dtype, seed: int) -> Codec:
    """Return the codec of the section ``[algorithm]`` for vectors of ``size`` values."""
    if section.codec == "topk":
        return TopK.of_ratio(size, dtype, section.ratio)
    if section.codec == "randomk":
        return RandomK.of_ratio(size, dtype, section.ratio, seed)
    if section.codec in ("int8", "int4"):
        return Quantize(size, dtype, int(section.codec[3:]), seed)
    return Cast(size, dtype) if section.codec == "bf16" else Identity(size, dtype)


def make_algorithm(
    section: AlgorithmSection, optimizer: Optimizer, layout: Layout, seed: int = 0
) -> Algorithm[Any]:
    """Return the algorithm of the section ``[algorithm]``; ``seed`` is of a codec's chances."""
    shared = layout.num_shared
    if section.fragments > shared:
        raise ConfigError(
            f"algorithm.fragments = {section.fragments}, but only {shared} parameters are shared",
            f"set algorithm.fragments to {shared} or less",
        )
    clips = optimizer.max_norm > 0
    if isinstance(section, sections.Centralized) and layout.has_personal and clips:
        raise ConfigError(
            "optim.clip_norm with algorithm.kind = 'centralized' and personal parameters would "
            "scale the shared gradient by each agent's own: the agents would part",
            "remove optim.clip_norm",
        )
    if isinstance(section, sections.FedAvg) and section.server_momentum:
        return OuterMomentum(optimizer, shared, SGD(momentum=section.server_momentum))
    if isinstance(section, sections.OuterMomentum):
        outer = SGD(momentum=section.outer_momentum, nesterov=section.nesterov)
        cls: type[OuterMomentum] = ALGORITHMS[section.kind]
        return cls(optimizer, shared, outer, section.outer_lr)
    if isinstance(section, sections.Choco):
        # Parts of the vector may differ by one value.
        largest, smallest = -(-shared // section.fragments), shared // section.fragments
        codec, below = (make_codec(section, m, layout.dtype, seed) for m in (largest, smallest))
        gamma = section.gamma or min(codec.delta, below.delta)
        return Choco(optimizer, shared, codec, gamma, codec_below=below)
    return plain_algorithm(section, optimizer, shared)


def in_fragments(algorithm: Algorithm[Any], count: int, num_shared: int) -> Algorithm[Any]:
    """Return the algorithm, a part of whose vector travels in a round if ``count`` is above 1."""
    if count == 1:
        return algorithm
    assert algorithm.needs.in_parts, "its section has no such key otherwise"
    inner: Any = algorithm
    return Fragments(inner, num_shared, count)


def plain_algorithm(
    section: AlgorithmSection, optimizer: Optimizer, num_shared: int
) -> Algorithm[Any]:
    """Return an algorithm whose further fields are keys of its section ``[algorithm]``."""
    cls = ALGORITHMS[section.kind]
    given = {"optimizer": optimizer, "num_shared": num_shared, **vars(section)}
    algorithm: Algorithm[Any] = cls(**{f.name: given[f.name] for f in fields(cls)})
    return algorithm
