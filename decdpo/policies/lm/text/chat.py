"""A pair as text for the tokenizer: under a chat template, or as it is."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from decdpo.data.shard import Pair
from decdpo.data.turns import parse_turns
from decdpo.errors import DataError, PolicyError
from decdpo.files import reason
from decdpo.policies.lm.foreign import first_line, is_foreign

Messages = list[dict[str, str]]

NO_TEMPLATE = "none"
"""The choice of a chat template that takes text as it is."""

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_QUESTION, _REPLY = "What is asked here?", "That is answered so."


@dataclass(frozen=True)
class Text:
    """One pair as three texts, and what became of it.

    glued : answers before which a line break was put. rewritten : answers taken as bare text.
    closed : whether the template has ended the turn of the chosen, and of the rejected answer.
    marked : whether the pair's text holds what the template writes.
    """

    prompt: str
    chosen: str
    rejected: str
    glued: int = 0
    rewritten: int = 0
    closed: tuple[bool, bool] = (False, False)
    marked: bool = False


class PlainText:
    """Prompt and answer joined as they are.

    prompt_format : "plain", "hh" (a transcript that ends with "Assistant:") or "messages" (JSON),
    whose turns are labelled. line_break : put a line break where two words would run into one.
    """

    end = ""

    def __init__(self, prompt_format: str, line_break: bool) -> None:
        self._format = prompt_format
        self._line_break = line_break

    def __call__(self, pair: Pair) -> Text:
        """Return the texts of ``pair``. Raises ``DataError`` for messages that are none."""
        if self._format == "messages":
            turns = as_messages(pair.prompt, self._format)
            lines = [f"{turn['role']}: {turn['content']}" for turn in turns]
            prompt = "\n\n".join([*lines, "assistant:"])
            return Text(prompt, " " + pair.chosen.strip(), " " + pair.rejected.strip())
        chosen, rejected = (self._joined(pair.prompt, a) for a in (pair.chosen, pair.rejected))
        glued = (chosen != pair.chosen) + (rejected != pair.rejected)
        return Text(pair.prompt, chosen, rejected, glued)

    def _joined(self, prompt: str, answer: str) -> str:
        apart = not (prompt and answer) or prompt[-1].isspace() or answer[0].isspace()
        return answer if apart or not self._line_break else "\n" + answer

    def remedy(self, pair: Pair) -> str:
        """Return what helps with a pair that cannot be written."""
        return "mend that row of the source, and shard it again"


class ChatText:
    """Prompt and answer as the turns of a chat, written by a template.

    tokenizer : whose ``apply_chat_template`` writes, with ``template``, a Jinja text. end_bare :
    whether an answer that must be taken as bare text gets the template's end of a turn.
    """

    def __init__(
        self, prompt_format: str, tokenizer: Any, template: str, end_bare: bool = False
    ) -> None:
        self._format = prompt_format
        self._tokenizer = tokenizer
        self._template = template
        self._end_bare = end_bare

    def __call__(self, pair: Pair) -> Text:
        """Return the texts of ``pair``; raises whatever the template raises, or ``DataError``."""
        messages = as_messages(pair.prompt, self._format)
        prompt = self._write(messages, ask=True)
        chosen, kept = self._reply(messages, prompt, pair.chosen.strip())
        rejected, kept_other = self._reply(messages, prompt, pair.rejected.strip())
        said = (*(turn["content"] for turn in messages), pair.chosen, pair.rejected)
        return Text(
            prompt,
            chosen,
            rejected,
            rewritten=2 - kept - kept_other,
            closed=(kept and bool(self.end), kept_other and bool(self.end)),
            marked=any(self._marks.search(content) for content in said),
        )

    def _reply(self, messages: Messages, prompt: str, answer: str) -> tuple[str, bool]:
        """Return an answer as the template writes it, and whether it did so after ``prompt``."""
        whole = self._write([*messages, {"role": "assistant", "content": answer}])
        if whole.startswith(prompt):
            return whole[len(prompt) :], True
        # Some templates rewrite earlier turns once a reply follows; then the bare text must do.
        return answer + self.end if self._end_bare else answer, False

    def remedy(self, pair: Pair) -> str:
        """Return what helps with a pair that the template refuses."""
        messages = as_messages(pair.prompt, self._format)
        rest = [turn for turn in messages if turn["role"] != "system"]
        if len(rest) < len(messages) and self._takes(rest):
            return (
                "drop the system turn of such rows in the source, or merge it into the first user "
                "turn, and shard again"
            )
        if self._takes([{"role": "user", "content": _QUESTION}]):
            return (
                "let the turns of such rows alternate between user and assistant, beginning with "
                "user, or drop these rows, and shard again"
            )
        return (
            "mend the chat template in the model's folder, or name a template's file, or 'none', "
            "with policy.chat_template"
        )

    @cached_property
    def end(self) -> str:
        """What the template writes after an answer, without blanks around it."""
        return self._around[1]

    @cached_property
    def _around(self) -> tuple[str, str]:
        """What the template writes between a question and its answer, and after the answer."""
        turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _REPLY}]
        try:
            text = self._write(turns)
        except Exception:
            return "", ""  # The first pair will meet this fault, and name it.
        change, _, end = text.partition(_QUESTION)[2].partition(_REPLY)
        return change.strip(), end.strip()

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """What is found in text that is templated already: a change of turns, special tokens."""
        special = set(special_tokens(self._tokenizer)) - {self._tokenizer.unk_token}
        marks = sorted({self._around[0], *special} - {""})
        return re.compile("|".join(map(re.escape, marks)) or r"(?!)")

    def _write(self, messages: Messages, ask: bool = False) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=ask
        )
        return text

    def _takes(self, messages: Messages) -> bool:
        try:
            self._write(messages, ask=True)
        except Exception:
            return False
        return True


Writer = PlainText | ChatText


def write(
    pairs: Iterable[Pair], writer: Writer, rows: Sequence[Any], where: str
) -> Iterator[Text]:
    """Yield every pair as text.

    rows : (N,) source rows, for messages. where : begins a message.

    Raises ``PolicyError`` naming how many pairs the template refuses, the first one's source row
    and what the template says of it; ``DataError`` for messages that are none.
    """
    refused, total = 0, 0
    first: tuple[Any, Pair, BaseException] | None = None
    for row, pair in zip(rows, pairs):
        total += 1
        try:
            text = writer(pair)
        except DataError as fault:
            raise DataError(f"{where}source row {row}: {fault.what}", fault.remedy) from None
        except BaseException as caught:
            if not is_foreign(caught):
                raise
            refused += 1
            first = first or (row, pair, caught)
        else:
            # After a refusal the rest is only counted.
            if first is None:
                yield text
    if first is not None:
        row, pair, error = first
        raise PolicyError(
            f"{where}the chat template of the model refuses source row {row} ({refused} of {total}"
            f' pairs): "{first_line(error)}"',
            writer.remedy(pair),
        ) from error


def find_template(tokenizer: Any, choice: str) -> str | None:
    """Return the chat template to use, None for text as it is.

    choice : "" for the tokenizer's own (None if it has none), "none", the name of one of the
    tokenizer's templates, or a file.

    Raises ``PolicyError`` if there is none of that name.
    """
    own = tokenizer.chat_template
    named: Mapping[str, str] = own if isinstance(own, Mapping) else {"default": own} if own else {}
    if choice == NO_TEMPLATE or not (choice or named):
        return None
    names = ", ".join(map(repr, named)) or "none"
    if not choice and "default" not in named:
        raise PolicyError(
            f"the tokenizer has several chat templates, and none is the default: {names}",
            "choose one with policy.chat_template, or 'none'",
        )
    if (choice or "default") in named:
        return named[choice or "default"]
    try:
        text = Path(choice).read_text(encoding="utf-8")
    except (OSError, ValueError) as fault:
        raise PolicyError(
            f"policy.chat_template = {choice!r} is no template of the tokenizer (it has {names}) "
            f"and no file that can be read: {reason(fault)}",
            "name a Jinja file or one of the tokenizer's templates, or 'none' for text as it is",
        ) from None
    if not text.strip():
        raise PolicyError(f"policy.chat_template: {choice} is empty", "give a Jinja template")
    return text


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the id of every special token of a tokenizer by its text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {str(token): int(i) for i, token in added.items() if getattr(token, "special", False)}
    return found | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids))


def as_messages(prompt: str, prompt_format: str) -> Messages:
    """Return a prompt as chat messages, {role, content}.

    Turns of one role that follow each other in a transcript become one: templates insist on
    alternation.

    Raises ``DataError`` for JSON that is no list of messages.
    """
    if prompt_format == "messages":
        return parse_turns(prompt)
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
