"""One look at every text that was read: what recurs in the pairs, and what no text should hold."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from decdpo.data.ingest.spill import PairStore

MARKERS = (
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "### Instruction:",
    "### Response:",
)
"""What templates of language models write around texts; in a text it would be there twice."""

SHORT = 3
"""Bytes below which an answer counts as almost empty."""

_CONTROL = bytes([*range(9), 11, 12, *range(14, 32), 127])
# UTF-8 that was once read as Latin-1 or Windows-1252, and the sign for what could not be decoded.
_GARBLED = (b"\xc3\x83\xc2", b"\xc3\x82\xc2", b"\xc3\xa2\xe2\x82\xac", b"\xef\xbf\xbd")
_ENTITIES = (b"&amp;", b"&lt;", b"&gt;", b"&quot;", b"&#39;", b"&nbsp;")
_TURNS = (b"\n\nHuman:", b"\n\nAssistant:")
_STRUCTURES = (b'[{"', b"[{'", b'{"role"', b"{'role'", b'{"content"', b"{'content'")
_SPACE = b" \t\n\r\v\f"
_LOWER = bytes(range(256)).lower()

KINDS = (
    "same_words",
    "repeated_prompt",
    "short_answer",
    "control",
    "garbled",
    "entities",
    "marked",
    "next_turn",
    "structure",
    "blank",
)


@dataclass
class Survey:
    """What the texts of n pairs are like.

    prompts, chosen, rejected : (n,) uint64 digests; equal texts, but for white space at their ends,
        have equal digests. found : kind of ``KINDS`` -> the pairs of that kind, ascending.
    markers : marker of ``MARKERS`` -> number of pairs with it.
    """

    prompts: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    found: dict[str, array] = field(default_factory=dict)
    markers: dict[str, int] = field(default_factory=dict)


def survey(store: PairStore) -> Survey:
    """Read all texts of ``store`` once; 24 bytes a pair stay in memory, and 8 for each oddity."""
    digests = bytearray()
    found = {kind: array("q") for kind in KINDS}
    markers: dict[str, int] = {}
    edges, first = store.edges, 0
    for part in store.text(np.arange(len(store))):
        base = edges[first, 0]
        last = int(np.searchsorted(edges[:, 3], base + len(part), side="right"))
        places = edges[first:last] - base
        known: dict[bytes, bytes] = {}  # Texts recur, and those of one part are few.
        for row, (a, b, c, d) in enumerate(places.tolist(), first):
            prompt, chosen, rejected = part[a:b], part[b:c], part[c:d]
            for text in (prompt, chosen, rejected):
                digest = known.get(text)
                if digest is None:
                    digest = known[text] = blake2b(text.strip(), digest_size=8).digest()
                digests += digest
            for kind in _kinds(prompt, chosen, rejected):
                found[kind].append(row)
        for kind, marked in _signs(part, places[:, 0], first).items():
            if kind in found:
                found[kind].extend(sorted(marked))
            else:
                markers[kind] = markers.get(kind, 0) + len(marked)
        first = last
    codes = np.frombuffer(digests, dtype="<u8").reshape(-1, 3)
    return Survey(codes[:, 0], codes[:, 1], codes[:, 2], found, markers)


def _signs(part: bytes, starts: np.ndarray, first: int) -> dict[str, set[int]]:
    """Return the pairs in which a sign stands, by the sign's kind; of markers also by marker.

    starts : (m,) where each pair begins in ``part``, one part of the texts. first : number of its
    first pair.
    """
    found: dict[str, set[int]] = {}
    values = np.frombuffer(part, np.uint8)
    # Most bytes begin no sign, most pairs of bytes neither: few places are left to look at.
    places = np.flatnonzero(_FIRST[values])
    following = values[np.minimum(places + 1, len(values) - 1)]
    places = places[_FIRST_TWO[values[places], following]]
    rows = np.searchsorted(starts, places, side="right") - 1 + first
    for place, row in zip(places.tolist(), rows.tolist()):
        for sign, kinds in _KINDS_OF[part[place]]:
            if part.startswith(sign, place):
                for kind in kinds:
                    found.setdefault(kind, set()).add(row)
    return found


def _tables() -> tuple[np.ndarray, np.ndarray, dict[int, list[tuple[bytes, tuple[str, ...]]]]]:
    """Return which bytes, and which two, begin a sign, and the signs that begin with a byte."""
    signs: dict[bytes, tuple[str, ...]] = {m.encode(): ("marked", m) for m in MARKERS}
    for kind, those in (("garbled", _GARBLED), ("entities", _ENTITIES)):
        signs.update((sign, (kind,)) for sign in those)
    signs.update((bytes([value]), ("control",)) for value in _CONTROL)
    first, first_two = np.zeros(256, bool), np.zeros((256, 256), bool)
    kinds: dict[int, list[tuple[bytes, tuple[str, ...]]]] = {}
    for sign, names in signs.items():
        first[sign[0]] = True
        first_two[sign[0], sign[1] if len(sign) > 1 else slice(None)] = True
        kinds.setdefault(sign[0], []).append((sign, names))
    return first, first_two, kinds


def _kinds(prompt: bytes, chosen: bytes, rejected: bytes) -> Iterator[str]:
    """Yield the kinds of a pair that its three texts tell by themselves."""
    if not chosen and not rejected:
        yield "blank"
        return
    if _folded(chosen) == _folded(rejected):
        yield "same_words"
    if prompt and chosen.startswith(prompt) and rejected.startswith(prompt):
        yield "repeated_prompt"
    if len(chosen.strip()) < SHORT or len(rejected.strip()) < SHORT:
        yield "short_answer"
    if chosen.lstrip().startswith(_STRUCTURES):
        yield "structure"
    if any(turn in chosen or turn in rejected for turn in _TURNS):
        yield "next_turn"


def _folded(text: bytes) -> bytes:
    """Return a text without white space, in lower case as far as ASCII goes."""
    return text.translate(_LOWER, _SPACE)


def distinct(digests: np.ndarray) -> int:
    """Return the number of different texts among (n,) digests."""
    return len(np.unique(digests))


def groups_of(digests: np.ndarray) -> np.ndarray:
    """Return (n,) codes of equal texts, numbered by first appearance."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse]


_FIRST, _FIRST_TWO, _KINDS_OF = _tables()
