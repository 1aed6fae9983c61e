"""One look at every text that was read: what recurs in the pairs, and what no text should hold."""

from array import array
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

_SIGNS = b"<|", b"INST]", b"### ", b"<<SYS>>", b"_of_turn>"
_WORDS = b"<s>", b"</s>", b"<bos>", b"<eos>", b"<pad>", b"<unk>"

SHORT = 3
"""Bytes below which an answer counts as almost empty."""

_CONTROL = bytes([*range(9), 11, 12, *range(14, 32), 127])
# UTF-8 that was once read as Latin-1 or Windows-1252, and the sign for what could not be decoded.
_GARBLED = (b"\xc3\x83\xc2", b"\xc3\x82\xc2", b"\xc3\xa2\xe2\x82\xac", b"\xef\xbf\xbd")
_ENTITIES = (b"&amp;", b"&lt;", b"&gt;", b"&quot;", b"&#39;", b"&nbsp;")
_TURNS = (b"\n\nHuman:", b"\n\nAssistant:")
_STRUCTURES = (b'[{"', b"[{'", b'{"role"', b"{'role'", b'{"content"', b"{'content'")

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
        suspects = _Suspects(part)
        for row, (a, b, c, d) in enumerate((edges[first:last] - base).tolist(), first):
            texts = part[a:b], part[b:c], part[c:d]
            for text in texts:
                digests += blake2b(text.strip(), digest_size=8).digest()
            for kind in suspects.of(*texts):
                found[kind].append(row)
            for marker in suspects.markers:
                if marker.encode() in part[a:d]:
                    markers[marker] = markers.get(marker, 0) + 1
        first = last
    codes = np.frombuffer(digests, dtype="<u8").reshape(-1, 3)
    return Survey(codes[:, 0], codes[:, 1], codes[:, 2], found, markers)


class _Suspects:
    """What to look for in each pair of one part, because it occurs somewhere in the part."""

    def __init__(self, part: bytes) -> None:
        marked = any(sign in part for sign in (*_SIGNS, *_WORDS))
        self.markers = [m for m in MARKERS if marked and m.encode() in part]
        self._marked = [marker.encode() for marker in self.markers]
        self._control = _has_control(part)
        self._garbled = [sign for sign in _GARBLED if sign in part]
        self._entities = [sign for sign in _ENTITIES if sign in part]
        self._turns = [sign for sign in _TURNS if sign in part]

    def of(self, prompt: bytes, chosen: bytes, rejected: bytes) -> list[str]:
        """Return the kinds of ``KINDS`` that a pair is of."""
        if not chosen and not rejected:
            return ["blank"]
        kinds = []
        if _same_words(chosen, rejected):
            kinds.append("same_words")
        if prompt and chosen.startswith(prompt) and rejected.startswith(prompt):
            kinds.append("repeated_prompt")
        if len(chosen.strip()) < SHORT or len(rejected.strip()) < SHORT:
            kinds.append("short_answer")
        if chosen.lstrip().startswith(_STRUCTURES):
            kinds.append("structure")
        for kind, signs in (
            ("garbled", self._garbled),
            ("entities", self._entities),
            ("marked", self._marked),
        ):
            if any(s in prompt or s in chosen or s in rejected for s in signs):
                kinds.append(kind)
        if any(turn in chosen or turn in rejected for turn in self._turns):
            kinds.append("next_turn")
        if self._control and _has_control(prompt + chosen + rejected):
            kinds.append("control")
        return kinds


def _has_control(text: bytes) -> bool:
    return len(text.translate(None, _CONTROL)) < len(text)


def _same_words(one: bytes, other: bytes) -> bool:
    """Say whether two answers differ in white space and case only."""
    ends = (one.strip(), other.strip())
    if ends[0][:1].lower() != ends[1][:1].lower() or ends[0][-1:].lower() != ends[1][-1:].lower():
        return False
    return ends[0].decode().lower().split() == ends[1].decode().lower().split()


def distinct(digests: np.ndarray) -> int:
    """Return the number of different texts among (n,) digests."""
    return len(np.unique(digests))


def groups_of(digests: np.ndarray) -> np.ndarray:
    """Return (n,) codes of equal texts, numbered by first appearance."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse]
