"""Tokens of pairs, kept beside their shard: a tokenizer reads a pair once, whatever runs follow.

They are kept before anything is cut, so that another ``max_length`` finds them too.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from importlib import metadata

import numpy as np

from decdpo.data.cache import Cache
from decdpo.data.shard import Pair
from decdpo.policies.lm.text.speller import Findings, Speller

VERSION = 1
"""Of the rules by which pairs become tokens; raise it when they change."""

_HEAD = struct.Struct(f"<3I{len(fields(Findings))}B")


@dataclass(frozen=True)
class Spelled:
    """One pair as tokens, uncut.

    prompt, chosen, rejected : int32 ids. findings : what its spelling met.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    findings: Findings

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prompt, chosen and rejected ids."""
        return self.prompt, self.chosen, self.rejected

    def packed(self) -> bytes:
        """Return it as bytes."""
        lengths = [len(part) for part in self.parts]
        head = _HEAD.pack(*lengths, *astuple(self.findings))
        return head + np.concatenate(self.parts).astype("<i4").tobytes()

    @classmethod
    def unpacked(cls, value: bytes) -> "Spelled | None":
        """Return what ``packed`` gave, None for bytes that it cannot have given."""
        if len(value) < _HEAD.size:
            return None
        head = _HEAD.unpack_from(value)
        lengths, counts = head[:3], head[3:]
        if len(value) != _HEAD.size + 4 * sum(lengths) or not lengths[0]:
            return None
        ids = np.frombuffer(value, "<i4", offset=_HEAD.size).astype(np.int32)
        if ids.min() < 0:
            return None
        prompt, chosen, rejected = np.split(ids, np.cumsum(lengths)[:2])
        return cls(prompt, chosen, rejected, Findings(*counts))


class TokenCache:
    """The tokens of one shard, as one ``Speller`` spells them.

    cache : of the shard. prompt_format : of the shard. A key is the digest of tokenizer, chat
    template, rules, prompt format, versions of the libraries and the three texts of a pair.
    """

    def __init__(self, cache: Cache, speller: Speller, prompt_format: str) -> None:
        self._cache = cache
        rules = speller.rules
        libraries = [_version(name) for name in ("transformers", "tokenizers")]
        ways = [VERSION, speller.digest, rules.eos, rules.line_break, prompt_format, libraries]
        self._way = hashlib.sha256(json.dumps(ways).encode()).digest()

    def find(self, pairs: Sequence[Pair]) -> list[Spelled | None]:
        """Return the tokens of every pair, None for those that are not kept."""
        keys = [self._key(pair) for pair in pairs]
        found = self._cache.find(keys)
        return [Spelled.unpacked(found[key][-1]) if key in found else None for key in keys]

    def add(self, pairs: Sequence[Pair], spelled: Sequence[Spelled]) -> None:
        """Keep the tokens of some pairs."""
        keys = (self._key(pair) for pair in pairs)
        self._cache.add([(key, one.packed()) for key, one in zip(keys, spelled, strict=True)])

    def _key(self, pair: Pair) -> bytes:
        sha = hashlib.sha256(self._way)
        for text in (pair.prompt, pair.chosen, pair.rejected):
            part = text.encode()
            sha.update(len(part).to_bytes(8, "little"))
            sha.update(part)
        return sha.digest()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
