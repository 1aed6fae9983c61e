"""The preference pairs of one agent, as training sees them."""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from decdpo.data.cache import REFERENCE, TOKENS, Cache
from decdpo.data.storage import (
    COLUMNS,
    PROMPT_FORMATS,
    ShardHeader,
    checksum,
    content_digest,
    read_shard,
    write_shard,
)
from decdpo.errors import DataError
from decdpo.files import parse_json

_PIECE = 1 << 22


@dataclass(frozen=True, slots=True)
class SourceRows:
    """Where the N pairs of a shard come from, in words for messages.

    rows : (N,) int64 rows, counted from 1 in each file. files : (N,) indices into ``names``, or
    None if there was one file.
    """

    rows: np.ndarray
    files: np.ndarray | None = None
    names: Sequence[str] = ()

    def __getitem__(self, row: int | np.integer) -> str:
        """Return the place of one pair: "7", or "7 of b.jsonl" where there were several files."""
        file = "" if self.files is None else self.names[self.files[row]]
        return row_of(int(self.rows[row]), file)

    def name(self, rows: Iterable[int] | np.ndarray) -> str:
        """Return the places of some pairs, separated by commas."""
        return ", ".join(self[row] for row in rows)


def row_of(row: int, file: str) -> str:
    """Return "7", or "7 of b.jsonl" where a file must be named."""
    return f"{row} of {file}" if file else str(row)


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison: a prompt and two answers, the first of which was preferred."""

    prompt: str
    chosen: str
    rejected: str


class PreferenceShard:
    """The N pairs of one agent, in memory; training pairs first, held-out pairs after them.

    Made by ``open`` (a file of `decdpo shard`) or ``from_pairs`` (in memory). Texts are kept as one
    UTF-8 buffer with spans; they are decoded when asked for.

    Attributes
    ----------
    path : the file, or None for a shard that lives in memory only.
    digest : sha256 of schema, attributes and pairs; what is kept beside the file is not in it.
    """

    def __init__(
        self,
        header: ShardHeader,
        columns: Mapping[str, np.ndarray],
        digest: str,
        path: Path | None = None,
    ) -> None:
        self.header = header
        self.digest = digest
        self.path = path
        self._columns = {name: values for name, values in columns.items() if name != "text"}
        self._text = columns["text"].tobytes()
        self._spans = columns["spans"]
        self._check()

    @classmethod
    def open(
        cls,
        path: Path | str,
        expected_digest: str | None = None,
        *,
        agent: int | None = None,
        sharding: str | None = None,
    ) -> "PreferenceShard":
        """Read and verify a shard file.

        Parameters
        ----------
        expected_digest, agent, sharding : what the index says of this file; None: not compared.

        Raises ``DataError`` for a file that is missing, truncated, edited, foreign, of another
        version, or swapped with that of another agent or sharding.
        """
        path = Path(path)
        header, columns, digest = read_shard(path)
        remedy = "put back the file that belongs there, or make the shards again"
        if sharding is not None and header.sharding != sharding:
            raise DataError(
                f"{path} belongs to sharding {header.sharding}, not to {sharding} of this index",
                remedy,
            )
        if agent is not None and header.agent != agent:
            raise DataError(f"{path} is the shard of agent {header.agent}, not of {agent}", remedy)
        if expected_digest is not None and digest != expected_digest:
            raise DataError(
                f"{path} was edited or replaced: digest {digest[:12]}.., "
                f"index says {expected_digest[:12]}..",
                remedy,
            )
        return cls(header, columns, digest, path)

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[Pair | tuple[str, str, str]],
        num_train: int | None = None,
        *,
        agent: int = 0,
        sharding: str = "",
        prompt_format: str = "plain",
        users: Sequence[str] | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> "PreferenceShard":
        """Build a shard in memory.

        Parameters
        ----------
        pairs : N pairs or (prompt, chosen, rejected) triples.
        num_train : how many of them are for training; None: all.
        users : N names of who judged each pair.
        columns : further datasets by name: source_row, score_chosen, score_rejected, weight (N,),
            chosen_features, rejected_features (N, d), source_file (N,) with source_file_names.
            ``source_row`` is 1..N by default.
        """
        text, spans = bytearray(), []
        for pair in pairs:
            prompt, chosen, rejected = (
                (pair.prompt, pair.chosen, pair.rejected) if isinstance(pair, Pair) else pair
            )
            edges = [len(text)]
            for part in (prompt, chosen, rejected):
                text += part.encode()
                edges.append(len(text))
            spans.append(edges)
        n = len(spans)
        given = {
            "text": np.frombuffer(bytes(text), np.uint8),
            "spans": np.array(spans, np.int64).reshape(n, 4),
            "source_row": np.arange(1, n + 1),
            **(columns or {}),
        }
        if users is not None:
            names, codes = np.unique(np.asarray(users, dtype=str), return_inverse=True)
            given["user"], given["user_names"] = codes, encode_names(names.tolist())
        header = ShardHeader(sharding, agent, n if num_train is None else num_train, prompt_format)
        unknown = sorted(set(given) - set(COLUMNS))
        if unknown:
            raise DataError(f"a shard has no column {unknown[0]!r}", f"use one of {list(COLUMNS)}")
        kept = {name: np.ascontiguousarray(given[name], COLUMNS[name][0]) for name in given}
        return cls(header, kept, _digest(header, kept))

    def save(self, path: Path | str) -> None:
        """Write the shard to a file (mode 0600), replacing it as a whole."""
        write_shard(Path(path), self.header, self._columns, [self._text], len(self._text))

    @property
    def agent(self) -> int:
        """Id of the agent whose pairs these are."""
        return self.header.agent

    @property
    def prompt_format(self) -> str:
        """How prompts are written: "plain", "hh" or "messages"."""
        return self.header.prompt_format

    @property
    def num_pairs(self) -> int:
        """Number of pairs N, training and held-out."""
        return len(self._spans)

    @property
    def num_train(self) -> int:
        """Number of training pairs: rows [0, num_train)."""
        return self.header.num_train

    @property
    def num_heldout(self) -> int:
        """Number of held-out pairs: rows [num_train, num_pairs)."""
        return self.num_pairs - self.num_train

    @property
    def source_row(self) -> np.ndarray:
        """(N,) int64: the record each pair came from, counted from 1 in its file.

        Shards of several files that have no ``source_file`` count over all files.
        """
        return self._columns["source_row"]

    @property
    def source_file(self) -> np.ndarray | None:
        """(N,) str: the file each pair came from, or None if there was one file."""
        places = self.places
        return None if places.files is None else np.array(places.names)[places.files]

    @property
    def places(self) -> SourceRows:
        """Where each pair came from, in words for messages."""
        if "source_file" not in self._columns:
            return SourceRows(self.source_row)
        names = decode_names(self._columns["source_file_names"])
        return SourceRows(self.source_row, self._columns["source_file"], names)

    @property
    def score_gap(self) -> np.ndarray | None:
        """(N,) float64: score of the chosen minus that of the rejected answer, or None."""
        if "score_chosen" not in self._columns:
            return None
        return self._columns["score_chosen"] - self._columns["score_rejected"]

    @property
    def weight(self) -> np.ndarray | None:
        """(N,) float64: weight of each pair in the loss, or None."""
        return self._columns.get("weight")

    @property
    def user(self) -> np.ndarray | None:
        """(N,) str: who judged each pair, or None."""
        if "user" not in self._columns:
            return None
        return np.array(decode_names(self._columns["user_names"]))[self._columns["user"]]

    @property
    def features(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(N, d) float64 feature columns of the chosen and of the rejected answers, or None."""
        if "chosen_features" not in self._columns:
            return None
        return self._columns["chosen_features"], self._columns["rejected_features"]

    @property
    def blank(self) -> np.ndarray:
        """(N,) bool: whether both answers of a pair are empty, as where features stand for them."""
        return self._spans[:, 1] == self._spans[:, 3]

    def pair(self, row: int) -> Pair:
        """Return pair ``row``. Raises ``IndexError`` outside [0, num_pairs)."""
        if not 0 <= row < self.num_pairs:
            raise IndexError(f"row {row} of a shard of {self.num_pairs} pairs")
        edges = self._spans[row].tolist()
        parts = (self._text[a:b].decode() for a, b in zip(edges, edges[1:]))
        return Pair(*parts)

    def pairs(self, rows: Iterable[int] | np.ndarray) -> list[Pair]:
        """Return the pairs ``rows``, in that order."""
        return [self.pair(int(row)) for row in rows]

    def part(self, rows: np.ndarray) -> "PreferenceShard":
        """Return some of the pairs as a shard in memory, all for training, with the same files of
        tokens and reference values."""
        part = PreferenceShard.from_pairs(
            self.pairs(rows),
            agent=self.agent,
            prompt_format=self.prompt_format,
            columns={"source_row": self.source_row[rows]},
        )
        part.tokens, part.references = self.tokens, self.references
        return part

    @cached_property
    def tokens(self) -> Cache:
        """The tokens of this shard that are kept, in a file of their own beside it if it is one."""
        path = None if self.path is None else self.path.with_suffix(TOKENS)
        return Cache(path, "toks", "tokens")

    @cached_property
    def references(self) -> Cache:
        """The reference values that are kept, in one file of the folder of the shard."""
        path = None if self.path is None else self.path.with_name(REFERENCE)
        return Cache(path, "refs", "reference values")

    def _check(self) -> None:
        where = f"{self.path}: " if self.path else ""
        n, spans = self.num_pairs, self._spans
        remedy = "make the shards again with `decdpo shard`"
        if spans.shape != (n, 4) or (
            n and (spans.min() < 0 or spans.max() > len(self._text) or (np.diff(spans) < 0).any())
        ):
            raise DataError(f"{where}the spans do not fit the text", remedy)
        if not 0 <= self.num_train <= n:
            raise DataError(f"{where}{self.num_train} training pairs of {n}", remedy)
        if self.prompt_format not in PROMPT_FORMATS:
            raise DataError(
                f"{where}unknown prompt format {self.prompt_format!r}",
                f"use one of {', '.join(PROMPT_FORMATS)}",
            )
        for name, values in self._columns.items():
            if not name.endswith("_names") and len(values) != n:
                raise DataError(f"{where}{name} has {len(values)} rows for {n} pairs", remedy)
        both = (
            ("score_chosen", "score_rejected"),
            ("user", "user_names"),
            ("source_file", "source_file_names"),
            ("chosen_features", "rejected_features"),
        )
        for one, other in both:
            if (one in self._columns) != (other in self._columns):
                raise DataError(f"{where}{one} and {other} only make sense together", remedy)
        features = self.features
        if features and features[0].shape != features[1].shape:
            raise DataError(
                f"{where}features of shapes {features[0].shape} and {features[1].shape}", remedy
            )
        for name, values in self._columns.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values).reshape(n, -1).all(axis=1))[0])
                raise DataError(f"{where}{name} of pair {row} is not finite", remedy)
        fault = _text_fault(self._text, spans) or self._user_fault()
        if fault:
            raise DataError(f"{where}{fault}", remedy)

    def _user_fault(self) -> str:
        """Say what is wrong with the users' names, nothing if all is well."""
        if "user" not in self._columns:
            return ""
        try:
            names = parse_json(self._columns["user_names"].tobytes())
        except ValueError:
            return "user_names is not JSON"
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return "user_names is not a list of names"
        codes = self._columns["user"]
        if codes.size and not 0 <= codes.min() <= codes.max() < len(names):
            return f"user has codes outside the {len(names)} names"
        return ""


def _text_fault(text: bytes, spans: np.ndarray) -> str:
    """Say whether a part of the UTF-8 ``text`` is none, nothing if all are well.

    spans : (N, 4) edges of the parts within it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), _PIECE):
            decoder.decode(text[start : start + _PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "its text is not UTF-8"
    edges = spans[spans < len(text)]
    # A byte 10xxxxxx goes on with a character that began before.
    if (np.frombuffer(text, np.uint8)[edges] & 0xC0 == 0x80).any():
        return "the spans do not fit the text: they cut a character"
    return ""


def encode_names(names: Sequence[str]) -> np.ndarray:
    """Return a list of names as the uint8 array of ``user_names`` or ``source_file_names``."""
    return np.frombuffer(json.dumps(list(names)).encode(), np.uint8)


def decode_names(values: np.ndarray) -> list[str]:
    """Return the names held by ``user_names`` or ``source_file_names``."""
    return [str(name) for name in json.loads(values.tobytes())]


def _digest(header: ShardHeader, columns: Mapping[str, np.ndarray]) -> str:
    described = {
        name: (COLUMNS[name][0], values.shape, checksum(values)) for name, values in columns.items()
    }
    return content_digest(header, described)
