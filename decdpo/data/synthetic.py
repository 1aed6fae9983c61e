"""Synthetic users of personalised offline reinforcement learning, at a set distance kappa.

User i rewards the features of what was done by its own vector,

    w_i = scale c + kappa v_i,     |c| = |v_i| = 1,

c the same for all, v_i uniform on the sphere: kappa is the distance of every user from the common
one, so kappa = 0 makes the users alike. Two answers are compared by the Bradley-Terry model,
P(y_1 preferred to y_2) = sigma(R_i(y_1) - R_i(y_2)).

``Choices``: an answer is one choice, with features phi ~ N(0, I_d) and R_i = w_i . phi. Data for
the log-linear policy on feature columns, where DPO is logistic regression: with many pairs, user
i's own optimum is theta_ref + w_i / beta, so optima lie kappa / beta from the common one.

``Trajectories``: H steps in a common Markov decision process with S states and A actions. From
state s, action u leads to s' with probabilities drawn from the flat Dirichlet distribution, earns
w_i . phi(s, u), phi ~ N(0, I_d), and R_i sums over the steps. Actions were chosen by a behaviour
policy, the softmax of b . phi(s, u) with |b| = ``behaviour``; 0 is uniform, which is also the
policy that training begins with. Both trajectories of a pair begin in the same state.

All of it is a function of the fields: agent i's shard never depends on how many agents there are
or where they live. How we choose the distributions is our own reading: the source says
only that users have their own preference distributions.
"""

import hashlib
import json
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic

import numpy as np

from decdpo.data.folder import commit, require_room, staging
from decdpo.data.index import ShardEntry, ShardIndex
from decdpo.data.shard import PreferenceShard
from decdpo.data.trajectories import FEATURES_FILE, features_digest, format_steps, save_features
from decdpo.errors import DataError
from decdpo.rng import Stream, generator

VERSION = 1
"""Changes whenever the same fields would give other pairs."""

_COMMON, _USER, _PAIRS, _FEATURES, _DYNAMICS = range(5)
_PROGRESS_SECONDS = 2.0


@dataclass(frozen=True)
class Users(ABC):
    """What both kinds of synthetic users have in common.

    agents : n. pairs : N of each agent. kappa : distance of every user's reward vector from the
    common one. dimension : d. scale : length of the common reward vector; labels of unrelated
    answers are a coin toss where it and kappa are small against 1. holdout : share of the pairs
    that is held out. seed : of everything.

    Raises ``DataError`` for numbers that make no users.
    """

    agents: int = 16
    pairs: int = 128
    kappa: float = 1.0
    dimension: int = 16
    scale: float = 1.0
    holdout: float = 0.1
    seed: int = 0

    kind = "users"

    def __post_init__(self) -> None:
        for key in ("agents", "pairs", "dimension"):
            _require(key, getattr(self, key), getattr(self, key) >= 1, "1 or more")
        for key in ("kappa", "scale"):
            _require_length(key, getattr(self, key))
        _require("holdout", self.holdout, 0 <= self.holdout < 1, "a share in [0, 1)")
        _require("seed", self.seed, 0 <= self.seed < 2**63, "a number in [0, 2**63)")

    @property
    def num_train(self) -> int:
        """Training pairs of each agent, at least one."""
        return max(self.pairs - round(self.pairs * self.holdout), 1)

    @property
    def sharding(self) -> str:
        """Uuid of the sharding these users make: a function of kind, version and fields."""
        text = json.dumps([self.kind, VERSION, asdict(self)])
        return str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=5))

    def common(self) -> np.ndarray:
        """Return the common reward vector, (d,)."""
        return self.scale * _direction(self._draws(_COMMON), self.dimension)

    def reward(self, agent: int) -> np.ndarray:
        """Return the reward vector w_i of a user, (d,), at distance kappa from the common one."""
        return self.common() + self.kappa * _direction(self._draws(_USER, agent), self.dimension)

    @abstractmethod
    def shard(self, agent: int) -> PreferenceShard:
        """Make the shard of one agent, in memory."""

    def save_common(self, folder: Path) -> None:
        """Write what all agents share beside their shards."""

    def _draws(self, purpose: int, agent: int = 0) -> np.random.Generator:
        return generator(self.seed, Stream.SYNTHETIC, agent, purpose)


@dataclass(frozen=True)
class Choices(Users):
    """Users who choose between two answers of d features each; see the module."""

    kind = "choices"

    def shard(self, agent: int) -> PreferenceShard:
        """Make the shard of one agent: feature columns, scores (the rewards), empty texts."""
        rng = self._draws(_PAIRS, agent)
        features = rng.standard_normal((2, self.pairs, self.dimension))
        rewards = features @ self.reward(agent)
        winner = _bradley_terry(rng, rewards)
        rows = np.arange(self.pairs)
        columns = {
            "chosen_features": features[winner, rows],
            "rejected_features": features[1 - winner, rows],
            "score_chosen": rewards[winner, rows],
            "score_rejected": rewards[1 - winner, rows],
        }
        return PreferenceShard.from_pairs(
            [("", "", "")] * self.pairs,
            self.num_train,
            agent=agent,
            sharding=self.sharding,
            columns=columns,
        )


@dataclass(frozen=True)
class Trajectories(Users):
    """Users who compare trajectories of a common control task; see the module.

    states, actions : S and A. horizon : H, steps of a trajectory. behaviour : length of the
    behaviour policy's parameter vector; 0 is the uniform policy.
    """

    states: int = 20
    actions: int = 5
    horizon: int = 8
    behaviour: float = 0.0

    kind = "trajectories"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, low in (("states", 1), ("actions", 2), ("horizon", 1)):
            _require(key, getattr(self, key), getattr(self, key) >= low, f"{low} or more")
        _require_length("behaviour", self.behaviour)

    @cached_property
    def features(self) -> np.ndarray:
        """phi, (S, A, d)."""
        shape = (self.states, self.actions, self.dimension)
        return self._draws(_FEATURES).standard_normal(shape)

    @cached_property
    def dynamics(self) -> np.ndarray:
        """P(s' | s, u), (S, A, S)."""
        shape = (self.states, self.actions)
        return self._draws(_DYNAMICS).dirichlet(np.ones(self.states), shape)

    @cached_property
    def behaviour_policy(self) -> np.ndarray:
        """The probabilities by which actions were chosen, (S, A)."""
        direction = _direction(generator(self.seed, Stream.SYNTHETIC, 1, _COMMON), self.dimension)
        scores = self.features @ (self.behaviour * direction)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def trajectories(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw two trajectories for each of N pairs: states and actions, (2, N, H) each."""
        shape = (2, self.pairs, self.horizon)
        states, actions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        states[:, :, 0] = rng.integers(self.states, size=self.pairs)
        for step in range(self.horizon):
            here = states[:, :, step]
            actions[:, :, step] = _choose(rng, self.behaviour_policy[here])
            if step + 1 < self.horizon:
                states[:, :, step + 1] = _choose(rng, self.dynamics[here, actions[:, :, step]])
        return states, actions

    def shard(self, agent: int) -> PreferenceShard:
        """Make the shard of one agent: trajectories as texts, scores (their rewards)."""
        rng = self._draws(_PAIRS, agent)
        states, actions = self.trajectories(rng)
        rewards = (self.features @ self.reward(agent))[states, actions].sum(axis=2)
        winner = _bradley_terry(rng, rewards)
        rows = np.arange(self.pairs)
        texts = [
            [format_steps(*steps) for steps in zip(states[k, rows], actions[k, rows], strict=True)]
            for k in (winner, 1 - winner)
        ]
        starts = [str(s) for s in states[0, :, 0]]
        return PreferenceShard.from_pairs(
            zip(starts, *texts, strict=True),
            self.num_train,
            agent=agent,
            sharding=self.sharding,
            columns={
                "score_chosen": rewards[winner, rows],
                "score_rejected": rewards[1 - winner, rows],
            },
        )

    def save_common(self, folder: Path) -> None:
        """Write the feature map beside the shards."""
        save_features(folder / FEATURES_FILE, self.features)


def synthesize(
    users: Users,
    out: Path | str,
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> ShardIndex:
    """Write the shards of synthetic ``users``, with their index, into the folder ``out``.

    The folder (mode 0700) appears as a whole or not at all. The same fields give the same bytes.

    force : replace shards that are already there. progress : called with how far writing is.

    Raises ``DataError`` if the folder holds something else, ``EnvironmentFault`` if it cannot be
    written.
    """
    out = Path(os.path.abspath(out))
    require_room(out, force)
    with staging(out) as folder:
        entries, spoke = [], monotonic()
        for agent in range(users.agents):
            shard = users.shard(agent)
            file = f"agent_{agent:04d}.h5"
            shard.save(folder / file)
            size = sum(
                len(p.prompt) + len(p.chosen) + len(p.rejected)
                for p in shard.pairs(range(shard.num_pairs))
            )
            entries.append(
                ShardEntry(
                    agent, "", file, shard.digest, shard.num_train, shard.num_heldout, size
                )
            )
            if monotonic() - spoke > _PROGRESS_SECONDS:
                spoke = monotonic()
                progress(f"wrote {agent + 1:,} of {users.agents:,} shards")
        users.save_common(folder)
        index = ShardIndex(
            folder=folder,
            sharding=users.sharding,
            seed=users.seed,
            holdout=users.holdout,
            partition=users.kind,
            prompt_format="plain",
            agents=tuple(entries),
            report={"synthetic": describe(users)},
        )
        index.save()
        commit(folder, out)
    return ShardIndex.load(out)


def describe(users: Users) -> dict[str, object]:
    """Return what the index says of synthetic users: kind, version and fields."""
    facts = {"kind": users.kind, "version": VERSION, **asdict(users)}
    if isinstance(users, Trajectories):
        facts["features"] = features_digest(users.features)
    return facts


def _direction(rng: np.random.Generator, dimension: int) -> np.ndarray:
    """Draw a (d,) unit vector, uniform on the sphere."""
    vector = rng.standard_normal(dimension)
    return vector / np.linalg.norm(vector)


def _bradley_terry(rng: np.random.Generator, rewards: np.ndarray) -> np.ndarray:
    """Return the (N,) winners, 0 or 1, of pairs with rewards (2, N)."""
    gap = np.clip(rewards[1] - rewards[0], -700, 700)
    return (rng.random(rewards.shape[1]) * (1 + np.exp(gap)) >= 1).astype(np.int64)


def _choose(rng: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """Draw from each distribution along the last axis of (..., K); returns (...) int64."""
    edges = np.cumsum(probabilities, axis=-1)
    # The last edge may miss 1 by rounding: a draw above it belongs to the last outcome.
    edges[..., -1] = 1.0
    return (rng.random(probabilities.shape[:-1])[..., None] >= edges).sum(axis=-1)


def _require_length(key: str, value: float) -> None:
    # Far below the largest number of float32: sums and differences of scores stay finite.
    _require(key, value, 0 <= value <= 1e30, "a number in [0, 1e30]")


def _require(key: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise DataError(f"{key} = {value} makes no users", f"give {wanted}")
