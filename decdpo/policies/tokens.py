"""From pairs of texts to token ids: the prompt's boundary, the answer's end, truncation."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from decdpo.data.cache import Cache
from decdpo.data.shard import Pair
from decdpo.policies.encoded import Tally
from decdpo.policies.lm.text.chat import Text, write
from decdpo.policies.lm.text.speller import Findings, Speller, total
from decdpo.policies.lm.text.token_cache import Spelled, TokenCache

_BATCH = 256


@dataclass(frozen=True)
class Truncation:
    """What the length limit cost a shard.

    prompts, answers : how many were cut, of ``pairs`` prompts and twice as many answers.
    tokens : how many were dropped. limit : the most tokens of a prompt and an answer together.
    """

    pairs: int
    limit: int
    prompts: int = 0
    answers: int = 0
    tokens: int = 0

    def __bool__(self) -> bool:
        return bool(self.prompts or self.answers)

    def __str__(self) -> str:
        return (
            f"max_length = {self.limit} cut {self.prompts} of {self.pairs} prompts at their start"
            f" and {self.answers} of {2 * self.pairs} answers at their end ({self.tokens} tokens)"
        )


@dataclass(frozen=True)
class TokenizedPairs:
    """The N pairs of a shard as ragged token arrays, prompt and answers kept apart.

    ids : (T,) int32, pair after pair: prompt, chosen answer, rejected answer.
    edges : (N, 4) where each pair's prompt, chosen and rejected answer begin, and where it ends.
    truncation : what the length limit cut. tallies : how often that and more happened.
    """

    ids: np.ndarray
    edges: np.ndarray
    truncation: Truncation
    tallies: tuple[Tally, ...] = ()

    def parts(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the ids of pair ``row``: prompt, chosen answer, rejected answer."""
        begin, chosen, rejected, end = self.edges[row].tolist()
        return self.ids[begin:chosen], self.ids[chosen:rejected], self.ids[rejected:end]

    @property
    def lengths(self) -> np.ndarray:
        """(2, N) number of tokens of the chosen and the rejected answers."""
        return np.diff(self.edges, axis=1).T[1:]

    @property
    def alike(self) -> np.ndarray:
        """(N,) whether both answers of a pair have the same tokens."""
        parts = (self.parts(row) for row in range(len(self.edges)))
        return np.array([np.array_equal(one, other) for _, one, other in parts], dtype=bool)

    @property
    def digest(self) -> str:
        """SHA-256 of the ids and their edges."""
        sha = hashlib.sha256(np.ascontiguousarray(self.edges, dtype="<i8").tobytes())
        sha.update(np.ascontiguousarray(self.ids, dtype="<i4").tobytes())
        return sha.hexdigest()


def tokenize(
    pairs: Iterable[Pair],
    tokenizer: Any,
    prompt_format: str,
    max_length: int,
    min_prompt_length: int | None = None,
    *,
    source_rows: Sequence[Any] | None = None,
    where: str = "",
    progress: Callable[[int], None] = lambda pairs: None,
    cache: Cache | None = None,
    known: Callable[[int], None] = lambda pairs: None,
) -> TokenizedPairs:
    """Tokenize pairs, once per shard.

    With a chat template, the prompt becomes messages and the answer the assistant's next one;
    otherwise prompt and answer are joined as they are, with a line break only where two words would
    run into one. Prompt and answer are tokenized together, so that merges are those of running
    text; where the prompt's tokens are then no prefix, apart. Every answer ends with the
    end-of-sequence token, or as ``TextRules`` say.

    Parameters
    ----------
    tokenizer : of transformers, or a ``Speller``, which brings other rules than the usual ones.
    prompt_format : "plain", "hh" (a transcript that ends with "Assistant:") or "messages" (JSON).
    max_length : most tokens of a prompt and an answer together. What is too long loses the start of
        its prompt, down to ``min_prompt_length`` tokens (default: half of it), then the end of its
        answers. The beginning-of-sequence token stays.
    source_rows : (N,) rows to name in errors; counted from 1 by default. where : begins an error.
    progress : is called with the number of pairs done since the last call. cache : where tokens are
        kept; those that are there are taken from it. known : is called with their number, first.

    Raises ``PolicyError`` for a tokenizer without an end-of-sequence token, and for a template or
    tokenizer that cannot take a pair; ``DataError`` for messages that are none.
    """
    speller = tokenizer if isinstance(tokenizer, Speller) else Speller(tokenizer)
    least = max_length // 2 if min_prompt_length is None else min_prompt_length
    listed = list(pairs)
    rows = list(range(1, len(listed) + 1) if source_rows is None else source_rows)
    kept = TokenCache(cache or Cache(None, "toks", "tokens"), speller, prompt_format)
    spelled = _spelled(listed, speller, prompt_format, rows, where, progress, kept, known)
    findings = total(one.findings for one in spelled)
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    lengths: list[list[int]] = []
    cut_prompts = cut_answers = dropped = alike = 0
    for one in spelled:
        prompt, *answers = one.parts
        before = len(prompt) + sum(map(len, answers))
        room = max_length - max(map(len, answers))
        keep = max(min(len(prompt), least), room)
        if keep < len(prompt):
            cut_prompts += 1
            first = prompt[: int(prompt[0] == speller.tokenizer.bos_token_id)]
            prompt = np.concatenate((first, prompt[len(prompt) - keep + len(first) :]))
        cut_answers += sum(len(answer) > max_length - len(prompt) for answer in answers)
        parts = [prompt, *(answer[: max_length - len(prompt)] for answer in answers)]
        alike += np.array_equal(parts[1], parts[2])
        lengths.append([len(part) for part in parts])
        dropped += before - sum(lengths[-1])
        ids += parts
    ends = np.cumsum(np.array(lengths, dtype=np.int64).reshape(-1, 3)).reshape(-1, 3)
    starts = ends[:, :1] - np.array(lengths, dtype=np.int64).reshape(-1, 3)[:, :1]
    truncation = Truncation(len(lengths), max_length, cut_prompts, cut_answers, dropped)
    same = "pairs have answers with equal tokens: they teach nothing"
    tallies = (
        *_cut(truncation),
        *speller.tallies(findings, len(lengths)),
        Tally(alike, len(lengths), same),
    )
    return TokenizedPairs(np.concatenate(ids), np.hstack((starts, ends)), truncation, tallies)


def _cut(truncation: Truncation) -> Iterator[Tally]:
    limit, pairs = f"max_length = {truncation.limit}", truncation.pairs
    yield Tally(truncation.prompts, pairs, f"prompts were cut at their start by {limit}")
    yield Tally(truncation.answers, 2 * pairs, f"answers were cut at their end by {limit}")


def _spelled(
    pairs: Sequence[Pair],
    speller: Speller,
    prompt_format: str,
    rows: Sequence[Any],
    where: str,
    progress: Callable[[int], None],
    cache: TokenCache,
    known: Callable[[int], None],
) -> list[Spelled]:
    """Return every pair as tokens, uncut: those that are kept, and the others spelled and kept."""
    found = cache.find(pairs)
    missing = [place for place, one in enumerate(found) if one is None]
    known(len(pairs) - len(missing))
    wanted = [pairs[place] for place in missing]
    named = [rows[place] for place in missing]
    texts = write(wanted, speller.writer(prompt_format), named, where)
    done = 0
    while batch := list(islice(texts, _BATCH)):
        some = slice(done, done + len(batch))
        spelled = _spell(batch, speller, named[some], where)
        cache.add(wanted[some], spelled)
        for place, one in zip(missing[some], spelled):
            found[place] = one
        done += len(batch)
        progress(len(batch))
    return [one for one in found if one is not None]


def _spell(
    batch: Sequence[Text], speller: Speller, rows: Sequence[Any], where: str
) -> list[Spelled]:
    """Return a batch of texts as tokens; the tokenizer sees them together."""
    # The template writes the special tokens itself.
    special = speller.template is None
    met = [
        Findings(glued=text.glued, rewritten=text.rewritten, marked=int(text.marked))
        for text in batch
    ]

    def ids(part: list[str], special: bool) -> list[list[int]]:
        return speller.spell(part, special, rows, where)

    raw = ids([text.prompt for text in batch], special)
    prompts = [speller.started(prompt) for prompt in raw]
    for findings, one, other in zip(met, raw, prompts):
        findings.double_starts += len(one) != len(other)
    answers = []
    for side in (0, 1):
        replies = [(text.chosen, text.rejected)[side] for text in batch]
        wholes = ids([text.prompt + reply for text, reply in zip(batch, replies)], special)
        aparts = ids(replies, False)
        answers.append(
            [
                _answer(speller, prompt, speller.started(whole), apart, text.closed[side], findings)
                for text, prompt, whole, apart, findings in zip(
                    batch, prompts, wholes, aparts, met
                )
            ]
        )
    # The first token of an answer needs something before it to be predicted from.
    begun = [prompt or [speller.start] for prompt in prompts]
    chosen, rejected = answers
    return [
        Spelled(_array(one), _array(two), _array(three), findings)
        for one, two, three, findings in zip(begun, chosen, rejected, met)
    ]


def _array(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def _answer(
    speller: Speller,
    prompt: list[int],
    whole: list[int],
    apart: list[int],
    closed: bool,
    findings: Findings,
) -> list[int]:
    """Return the ids of one answer, from the text as a ``whole`` if the prompt's are its prefix."""
    prefix = whole[: len(prompt)] == prompt
    findings.no_prefix += not prefix
    return speller.ended(whole[len(prompt) :] if prefix else apart, closed, findings)
