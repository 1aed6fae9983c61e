"""The checker of what an algorithm needs: it reads what the class declares, and names none.

The classes are imported only where a configuration has something that an algorithm may refuse, so
that a plain one is read without them.
"""

from typing import TYPE_CHECKING, NamedTuple

from decdpo.config.policies import CausalLM
from decdpo.config.schema import Sgd
from decdpo.errors import ConfigError
from decdpo.topology.names import DIRECTED, TIME_VARYING

if TYPE_CHECKING:
    from decdpo.algorithms.base import Needs
    from decdpo.config import Config

ONE_WAY = (*DIRECTED, "one_peer_exponential")
"""Graphs on which agents receive from others that they do not send to."""


class Traits(NamedTuple):
    """What a configuration has that some algorithms refuse."""

    adaptive: bool
    clipped: bool
    momentum: bool
    changing: bool
    pushing: bool
    weighing: bool
    one_way: bool


def check_needs(config: "Config") -> None:
    """Raise ``ConfigError`` for what makes the algorithm unsound, or what it would ignore."""
    config.algorithm.check()
    _check_fragments(config)
    traits = _traits(config)
    if not any(traits):
        return
    from decdpo.algorithms.catalogue import needs_of

    needs = needs_of(config.algorithm.kind)
    if needs.equal_steps:
        _check_steps(config, traits, needs)
    if needs.momentum and (traits.adaptive or traits.momentum):
        raise ConfigError(
            f"{_name(config)} brings its own momentum, and has no place for that of optim",
            f"use optim.kind = 'sgd' with optim.momentum = 0, and set algorithm.{needs.momentum}",
        )
    _check_weights(config, traits, needs)


def _traits(config: "Config") -> Traits:
    optim, topology = config.optim, config.topology
    return Traits(
        adaptive=not isinstance(optim, Sgd),
        clipped=optim.clip_norm > 0,
        momentum=isinstance(optim, Sgd) and optim.momentum > 0,
        changing=config.graph in TIME_VARYING,
        pushing=topology is not None and topology.weights == "push",
        weighing=topology is not None and topology.weights == "pairs",
        one_way=config.graph in ONE_WAY,
    )


def _check_steps(config: "Config", traits: Traits, needs: "Needs") -> None:
    """Refuse steps that agents rescale each by themselves."""
    name, optim = _name(config), config.optim
    if traits.adaptive:
        raise ConfigError(
            f"{name} is not exact with optim.kind = {optim.kind!r}: every agent rescales its "
            "gradient by its own history, so that the fixed point is not the optimum of the "
            "average loss",
            f"use optim.kind = 'sgd'{_instead(needs)}",
        )
    if traits.clipped:
        raise ConfigError(
            f"{name} is not exact with optim.clip_norm = {optim.clip_norm}: every agent clips its "
            "own gradient, so that the fixed point is not the optimum of the average loss",
            f"remove optim.clip_norm, and {needs.smaller_steps} if need be{_instead(needs)}",
        )


def _check_weights(config: "Config", traits: Traits, needs: "Needs") -> None:
    """Refuse a graph or a rule whose mixing matrix is not what the algorithm needs."""
    name = _name(config)
    if needs.fixed_weights and traits.changing:
        raise ConfigError(
            f"{name} cannot use topology.graph = {config.graph!r}, whose "
            "weights change: an agent adds up what its neighbours send, under fixed weights, and "
            "would miss what is sent while they are not its neighbours",
            f"choose a graph that stays the same{_instead(needs)}",
        )
    if needs.weights != "column" and traits.pushing:
        from decdpo.algorithms.catalogue import ALGORITHMS, needs_of

        suited = [kind for kind in ALGORITHMS if needs_of(kind).weights == "column"]
        raise ConfigError(
            "topology.weights = 'push' is only column-stochastic: with "
            f"{name} the agents would not converge to the mean",
            "choose doubly stochastic weights, such as uniform, or algorithm.kind = "
            + " or ".join(map(repr, suited)),
        )
    if traits.weighing and not needs.pair_weights:
        from decdpo.algorithms.catalogue import ALGORITHMS, needs_of

        suited = [kind for kind in ALGORITHMS if needs_of(kind).pair_weights]
        raise ConfigError(
            f"topology.weights = 'pairs' is not doubly stochastic, which {name} needs",
            "choose other weights, or algorithm.kind = " + " or ".join(map(repr, suited)),
        )
    if needs.weights == "symmetric" and traits.one_way:
        raise ConfigError(
            f"topology.graph = {config.graph!r} is directed: {name} is known to converge "
            "with symmetric weights only",
            f"use an undirected graph{_instead(needs)}",
        )


def _check_fragments(config: "Config") -> None:
    """Raise ``ConfigError`` where parts of the vector cannot be mixed one at a time."""
    if config.algorithm.fragments == 1:
        return
    name, policy = f"algorithm.fragments = {config.algorithm.fragments}", config.policy
    late = config.staleness.kind
    if late != "none":
        raise ConfigError(
            f"{name} does not suit staleness.kind = {late!r}: a message of an earlier round holds "
            "another part of the vector",
            "remove algorithm.fragments, or remove [staleness]",
        )
    if isinstance(policy, CausalLM) and policy.lora.mix == "svd":
        raise ConfigError(
            f"{name} does not suit policy.lora.mix = 'svd': a product needs both of its factors, "
            "which need not be in one part",
            "remove algorithm.fragments, or choose another rule",
        )
    if config.graph == "one_peer_exponential" and config.faults.on_loss != "abort":
        raise ConfigError(
            f"{name} with topology.graph = 'one_peer_exponential' does not suit faults.on_loss = "
            f"{config.faults.on_loss!r}: with fewer agents the graph may repeat after as many "
            "rounds as the parts do, and would leave a part unmixed",
            'choose another graph, or set faults.on_loss = "abort"',
        )


def check_late(config: "Config") -> None:
    """Raise ``ConfigError`` for late messages where they break the algorithm, or there are none."""
    kind, late = config.algorithm.kind, config.staleness
    if late.kind == "none":
        return
    from decdpo.algorithms.catalogue import ALGORITHMS, needs_of

    needs = needs_of(kind)
    if needs.meets != "neighbours" or needs.every_message:
        if needs.meets != "neighbours":
            why = "its agents have no neighbours whose messages could be late"
        else:
            why = "its sums are right only if every message of every round enters them once"
        others = ((name, needs_of(name)) for name in ALGORITHMS)
        suited = [n for n, o in others if o.meets == "neighbours" and not o.every_message]
        raise ConfigError(
            f"staleness.kind = {late.kind!r} does not suit algorithm.kind = {kind!r}: {why}",
            "choose algorithm.kind = " + " or ".join(map(repr, suited)),
        )
    if config.graph in TIME_VARYING:
        raise ConfigError(
            f"staleness.kind = {late.kind!r} does not suit topology.graph = "
            f"{config.graph!r}: a neighbour of this round has sent no older messages",
            "choose a graph that stays the same",
        )
    if late.kind == "arrival" and config.comm.transport == "window":
        raise ConfigError(
            "comm.transport = 'window' is not used by staleness.kind = 'arrival', whose messages "
            "travel as messages",
            "remove comm.transport",
        )


def check_faults(config: "Config") -> None:
    """Raise ``ConfigError`` if the others cannot go on where one is lost, but shall."""
    if config.faults.on_loss == "abort":
        return
    asked, kind = f"faults.on_loss = {config.faults.on_loss!r}", config.algorithm.kind
    from decdpo.algorithms.catalogue import ALGORITHMS, needs_of

    if needs_of(kind).on_loss == "refuses":
        suited = [name for name in ALGORITHMS if needs_of(name).on_loss != "refuses"]
        raise ConfigError(
            f"{asked} does not suit algorithm.kind = {kind!r}: without a lost agent its result "
            "would be another one (the class of the algorithm says why)",
            'set faults.on_loss = "abort", or choose algorithm.kind = '
            + " or ".join(map(repr, suited)),
        )
    if config.staleness.kind != "none":
        raise ConfigError(
            f"{asked} does not suit staleness.kind = {config.staleness.kind!r}: messages that may "
            "be late are not sent anew",
            'set faults.on_loss = "abort", or remove [staleness]',
        )
    if config.faults.on_loss == "adopt":
        _check_adoption(config)
    if config.comm.transport == "window":
        raise ConfigError(
            f"{asked} does not suit comm.transport = 'window': whether the other side of shared "
            "memory is alive cannot be seen in it",
            "remove comm.transport: messages are sent",
        )


def _check_adoption(config: "Config") -> None:
    """Refuse adoption where a state is more than the checkpoint of one agent can bring back."""
    if config.algorithm.has_outer_momentum:
        raise ConfigError(
            "faults.on_loss = 'adopt' does not suit a server's momentum, which an adopted agent "
            "would not know",
            'use faults.on_loss = "survive"',
        )


def check_newcomers(config: "Config") -> None:
    """Raise ``ConfigError`` where an agent that comes anew cannot begin at a mean of models."""
    from decdpo.algorithms.catalogue import needs_of

    kind, remedy = config.algorithm.kind, "take as many agents as were saved, or start anew"
    if needs_of(kind).on_loss == "refuses":
        raise ConfigError(
            f"algorithm.kind = {kind!r} takes no new agents: with others its result would be "
            "another one (the class of the algorithm says why)",
            remedy,
        )
    if config.algorithm.has_outer_momentum:
        raise ConfigError(
            f"algorithm.kind = {kind!r} takes no new agents here: they would not know the "
            "momentum that all agents hold in common",
            remedy,
        )
    if config.staleness.kind != "none":
        raise ConfigError(
            f"staleness.kind = {config.staleness.kind!r} takes no new agents: they have sent none "
            "of the older messages that their neighbours would mix",
            remedy,
        )


def _instead(needs: "Needs") -> str:
    """Name the algorithm that does without what this one needs, as the end of a remedy."""
    return f", or use algorithm.kind = {needs.instead!r}" if needs.instead else ""


def _name(config: "Config") -> str:
    return f"algorithm.kind = {config.algorithm.kind!r}"
