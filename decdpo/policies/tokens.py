"""From pairs of texts to token ids: chat templates, the prompt's boundary, truncation."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from decdpo.data.shard import Pair
from decdpo.errors import PolicyError

Messages = list[dict[str, str]]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
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
    truncation : what the length limit cut.
    """

    ids: np.ndarray
    edges: np.ndarray
    truncation: Truncation

    def parts(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the ids of pair ``row``: prompt, chosen answer, rejected answer."""
        begin, chosen, rejected, end = self.edges[row].tolist()
        return self.ids[begin:chosen], self.ids[chosen:rejected], self.ids[rejected:end]

    @property
    def lengths(self) -> np.ndarray:
        """(2, N) number of tokens of the chosen and the rejected answers."""
        return np.diff(self.edges, axis=1).T[1:]

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
    max_prompt_length: int | None = None,
) -> TokenizedPairs:
    """Tokenize pairs, once per shard.

    With a chat template, the prompt becomes messages and the answer the assistant's next one;
    otherwise prompt and answer are joined as they are, with a line break only where two words would
    run into one. Prompt and answer are tokenized together, so that merges are those of running
    text; where the prompt's tokens are then no prefix, apart. Every answer ends with the
    end-of-sequence token.

    Parameters
    ----------
    prompt_format : "plain", "hh" (a transcript that ends with "Assistant:") or "messages" (JSON).
    max_length : most tokens of a prompt and an answer together. What is too long loses the start of
        its prompt, down to ``max_prompt_length`` tokens (default: half of it), then the end of its
        answers. The beginning-of-sequence token stays.

    Raises ``PolicyError`` for a tokenizer without an end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise PolicyError(
            "the tokenizer has no end-of-sequence token, so answers cannot end",
            "set eos_token in the model folder's tokenizer_config.json",
        )
    least = max_length // 2 if max_prompt_length is None else max_prompt_length
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    lengths: list[list[int]] = []
    cut_prompts = cut_answers = dropped = 0
    for prompt, *answers in _token_lists(iter(pairs), tokenizer, prompt_format):
        before = len(prompt) + sum(map(len, answers))
        room = max_length - max(map(len, answers))
        keep = max(min(len(prompt), least), room)
        if keep < len(prompt):
            cut_prompts += 1
            first = prompt[:1] if prompt[0] == tokenizer.bos_token_id else []
            prompt = first + prompt[len(prompt) - keep + len(first) :]
        cut_answers += sum(len(answer) > max_length - len(prompt) for answer in answers)
        parts = [prompt, *(answer[: max_length - len(prompt)] for answer in answers)]
        lengths.append([len(part) for part in parts])
        dropped += before - sum(lengths[-1])
        ids.append(np.array([token for part in parts for token in part], dtype=np.int32))
    ends = np.cumsum(np.array(lengths, dtype=np.int64).reshape(-1, 3)).reshape(-1, 3)
    starts = ends[:, :1] - np.array(lengths, dtype=np.int64).reshape(-1, 3)[:, :1]
    truncation = Truncation(len(lengths), max_length, cut_prompts, cut_answers, dropped)
    return TokenizedPairs(np.concatenate(ids), np.hstack((starts, ends)), truncation)


def _token_lists(
    pairs: Iterator[Pair], tokenizer: Any, prompt_format: str
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yield prompt, chosen and rejected ids, untruncated; the tokenizer sees batches of texts."""
    templated = bool(tokenizer.chat_template)
    eos = tokenizer.eos_token_id
    start = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    def ids(texts: list[str], special: bool) -> list[list[int]]:
        # The template writes the special tokens itself.
        found: list[list[int]] = tokenizer(texts, add_special_tokens=special).input_ids
        return [one[:-1] if one[-1:] == [eos] and special else one for one in found]

    while batch := list(islice(pairs, _BATCH)):
        render = _render_chat if templated else _render_plain
        texts = [render(pair, tokenizer, prompt_format) for pair in batch]
        prompts = ids([prompt for prompt, _, _ in texts], not templated)
        answers = []
        for side in (1, 2):
            wholes = ids([text[0] + text[side] for text in texts], not templated)
            aparts = ids([text[side] for text in texts], False)
            answers.append(
                [
                    _ended(whole[len(prompt) :] if whole[: len(prompt)] == prompt else apart, eos)
                    for prompt, whole, apart in zip(prompts, wholes, aparts)
                ]
            )
        for prompt, chosen, rejected in zip(prompts, *answers):
            # The first token of an answer needs something before it to be predicted from.
            yield prompt or [start], chosen, rejected


def _ended(answer: list[int], eos: int) -> list[int]:
    """Cut an answer after its end-of-sequence token, or append that token."""
    return answer[: answer.index(eos)] + [eos] if eos in answer else answer + [eos]


def _render_plain(pair: Pair, tokenizer: Any, prompt_format: str) -> tuple[str, str, str]:
    prompt = pair.prompt
    if prompt_format == "messages":
        turns = [f"{turn['role']}: {turn['content']}" for turn in json.loads(prompt)]
        prompt = "\n\n".join([*turns, "assistant:"])

    def joined(answer: str) -> str:
        if prompt_format == "messages":
            return " " + answer.strip()
        glued = prompt and answer and not (prompt[-1].isspace() or answer[0].isspace())
        return "\n" + answer if glued else answer

    return prompt, joined(pair.chosen), joined(pair.rejected)


def _render_chat(pair: Pair, tokenizer: Any, prompt_format: str) -> tuple[str, str, str]:
    messages = as_messages(pair.prompt, prompt_format)
    prompt: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )

    def answered(answer: str) -> str:
        reply = {"role": "assistant", "content": answer.strip()}
        whole: str = tokenizer.apply_chat_template([*messages, reply], tokenize=False)
        # Some templates rewrite earlier turns once a reply follows; then the bare text must do.
        return whole[len(prompt) :] if whole.startswith(prompt) else reply["content"]

    return prompt, answered(pair.chosen), answered(pair.rejected)


def as_messages(prompt: str, prompt_format: str) -> Messages:
    """Return a prompt as chat messages, {role, content}.

    Turns of one role that follow each other become one: templates insist on alternation.
    """
    if prompt_format == "messages":
        messages: Messages = json.loads(prompt)
        return messages
    if prompt_format == "plain":
        return [{"role": "user", "content": prompt}]
    before, *turns = _TURN.split(prompt)
    said = [("user", before), *((_ROLES[r], text) for r, text in zip(turns[::2], turns[1::2]))]
    merged: Messages = []
    for role, text in said:
        if not text.strip():
            continue
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += "\n\n" + text.strip()
        else:
            merged.append({"role": role, "content": text.strip()})
    return merged
