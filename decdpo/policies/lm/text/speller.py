"""A tokenizer, and the rules by which it spells prompts and answers."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

from decdpo.errors import PolicyError
from decdpo.policies.encoded import Tally
from decdpo.policies.lm.foreign import first_line, foreign, is_foreign
from decdpo.policies.lm.text.chat import ChatText, PlainText, Writer, find_template, special_tokens

END_OF_TEMPLATE = "template"
"""The choice of an end that leaves an answer as the chat template ends it."""

_NOT_HASHED = ("version", "truncation", "padding", "decoder")


@dataclass(frozen=True)
class TextRules:
    """How pairs become text, and where answers end.

    chat_template : "" for the tokenizer's own, "none", the name of another one, or a file.
    eos : "" for the tokenizer's end-of-sequence token, the text of another token, or "template"
        for what the chat template ends a turn with.
    line_break : put a line break between a plain prompt and an answer that would run into one word.
    """

    chat_template: str = ""
    eos: str = ""
    line_break: bool = True


@dataclass
class Findings:
    """How many pairs, prompts or answers met what a user should know.

    no_prefix : answers tokenized apart. rewritten : answers taken as bare text. double_ends,
    after_end, empty, glued : answers with a second end, with text after the end that was dropped,
    without a token of their own, with a line break before them. double_starts : prompts that
    brought their own beginning-of-sequence token. marked : pairs that seem templated already.
    """

    no_prefix: int = 0
    rewritten: int = 0
    double_ends: int = 0
    after_end: int = 0
    empty: int = 0
    glued: int = 0
    double_starts: int = 0
    marked: int = 0


def total(findings: Iterable[Findings]) -> Findings:
    """Add up what the spelling of several pairs met."""
    rows = [astuple(one) for one in findings]
    return Findings(*map(sum, zip(*rows))) if rows else Findings()


class Speller:
    """A tokenizer and the rules by which it reads pairs.

    Raises ``PolicyError`` for rules that the tokenizer cannot follow.
    """

    def __init__(self, tokenizer: Any, rules: TextRules = TextRules()) -> None:
        self.tokenizer = tokenizer
        self.rules = rules
        self.template = find_template(tokenizer, rules.chat_template)
        self.end = self._find_end()
        self._special = set(special_tokens(tokenizer).values()) - {tokenizer.unk_token_id}
        self._bos = tokenizer.bos_token_id
        self.start = next(
            (i for i in (self._bos, tokenizer.eos_token_id, self.end) if i is not None), 0
        )

    def writer(self, prompt_format: str) -> Writer:
        """Return what writes the pairs of a shard as text."""
        if self.template is None:
            return PlainText(prompt_format, self.rules.line_break)
        end_bare = self.rules.eos == END_OF_TEMPLATE
        return ChatText(prompt_format, self.tokenizer, self.template, end_bare)

    @property
    def digest(self) -> str:
        """SHA-256 of what the tokens of a text depend on besides the rules: files and template.

        What does not change tokens, such as the name of the folder or how padding is done, is not
        in it.
        """
        tokenizer = self.tokenizer
        inner = getattr(tokenizer, "backend_tokenizer", None)
        if inner is not None:
            state = json.loads(inner.to_str())
            vocabulary: Any = {k: v for k, v in state.items() if k not in _NOT_HASHED}
        else:
            vocabulary = [tokenizer.get_vocab(), type(tokenizer).__name__]
        specials = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token]
        # A template may write any named special token.
        named = tokenizer.special_tokens_map if self.template else {}
        parts = [vocabulary, specials, named, self.template]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _find_end(self) -> int | None:
        """Return the id of the token that ends an answer, None where the template does."""
        tokenizer, choice = self.tokenizer, self.rules.eos
        if choice == END_OF_TEMPLATE:
            if self.template is None or not self.writer("plain").end:
                raise PolicyError(
                    "policy.eos = 'template', but no chat template ends a turn",
                    "name the token that ends an answer, or a template that writes one",
                )
            return None
        if not choice:
            if tokenizer.eos_token_id is None:
                raise PolicyError(
                    "the tokenizer has no end-of-sequence token, so answers cannot end",
                    "name a token with policy.eos, or set eos_token in the model folder's "
                    "tokenizer_config.json",
                )
            return int(tokenizer.eos_token_id)
        found = tokenizer.convert_tokens_to_ids(choice)
        if found is None or (found == tokenizer.unk_token_id and choice != tokenizer.unk_token):
            known = ", ".join(map(repr, special_tokens(tokenizer)))
            raise PolicyError(
                f"policy.eos = {choice!r} is not one token of the tokenizer",
                f"name one of its tokens, such as {known}; 'template' keeps the template's end",
            )
        return int(found)

    def spell(
        self, texts: Sequence[str], special: bool, rows: Sequence[Any], where: str
    ) -> list[list[int]]:
        """Return the ids of every text; ``rows`` and ``where`` name a text in an error."""
        try:
            found: list[list[int]] = self.tokenizer(
                list(texts), add_special_tokens=special
            ).input_ids
        except BaseException as error:
            if not is_foreign(error):
                raise
            raise self._blame(texts, special, rows, where, error) from error
        eos = self.tokenizer.eos_token_id
        if special:
            found = [one[:-1] if eos is not None and one[-1:] == [eos] else one for one in found]
        return found

    def _blame(
        self, texts: Sequence[str], special: bool, rows: Sequence[Any], where: str,
        error: BaseException,
    ) -> PolicyError:  # fmt: skip
        """Return the error of the first text that the tokenizer cannot take alone."""
        remedy = "check the tokenizer's files in the model folder, and that row of the source"
        for text, row in zip(texts, rows):
            try:
                with foreign(f"{where}the tokenizer fails at source row {row}", remedy):
                    self.tokenizer([text], add_special_tokens=special)
            except PolicyError as fault:
                return fault
        return PolicyError(f"{where}the tokenizer fails: {first_line(error)}", remedy)

    def started(self, prompt: list[int]) -> list[int]:
        """Return a prompt that begins with one beginning-of-sequence token, not with two."""
        doubled = self._bos is not None and prompt[:2] == [self._bos] * 2
        return prompt[1:] if doubled else prompt

    def ended(self, answer: list[int], closed: bool, findings: Findings) -> list[int]:
        """Return an answer that ends where the rules say, once.

        closed : whether the template has written an end of its own.
        """
        end = self.end
        if end is None:
            return answer
        if end in answer:
            place = answer.index(end) + 1
            rest = answer[place:]
            findings.empty += place == 1
            findings.after_end += bool(rest and self.tokenizer.decode(rest).strip())
            return answer[:place]
        findings.empty += not answer
        findings.double_ends += closed or bool(answer and answer[-1] in self._special)
        return [*answer, end]

    def tallies(self, findings: Findings, pairs: int) -> Iterator[Tally]:
        """Yield each of the ``findings`` in so many pairs, in words."""
        tokenizer = self.tokenizer
        end = self.end_text
        answers = {
            "no_prefix": "were tokenized apart from their prompt, whose tokens are no prefix of "
            "those of both together",
            "rewritten": "were taken as bare text, because the chat template rewrites earlier "
            "turns once a reply follows",
            "double_ends": f"end twice: an end of their own, then {end}, and both are scored "
            "(policy.eos chooses the end)",
            "after_end": f"go on after {end}, and what follows was dropped",
            "empty": "are empty: their end alone is scored",
            "glued": "were set apart from their prompt by a line break, which TRL does not add "
            "(policy.line_break)",
        }
        other = {
            "double_starts": f"prompts hold {tokenizer.bos_token!r} already, which was not added "
            "again",
            "marked": "pairs hold special tokens or marks of the chat template in their text, and "
            "the template was put around them again (policy.chat_template = 'none' takes text as "
            "it is)",
        }
        for field in fields(findings):
            count = getattr(findings, field.name)
            if field.name in answers:
                yield Tally(count, 2 * pairs, f"answers {answers[field.name]}")
            else:
                yield Tally(count, pairs, other[field.name])

    @property
    def end_text(self) -> str:
        """What ends an answer, in words."""
        if self.end is None:
            return "the template's end"
        return repr(str(self.tokenizer.convert_ids_to_tokens(self.end)))
