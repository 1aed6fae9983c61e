"""Answers that begin with their own prompt, as whole conversations do: the prompt is cut off."""

from collections.abc import Sequence
from dataclasses import replace

from decdpo.data.ingest.files.sources import Record
from decdpo.data.ingest.formats.answers import Judgment
from decdpo.data.ingest.formats.columns import Columns
from decdpo.data.ingest.formats.pairs import Format, judgments


def without_repeated_prompt(form: Format, sample: Sequence[Record], columns: Columns) -> Format:
    """Return ``form``, cutting the prompt off both answers if all pairs of ``sample`` repeat it.

    An answer that held the prompt would have it scored as answer. A pair of another kind, further
    on, keeps its answers.
    """
    found = [item for record in sample for item in judgments(form, record, columns)]
    items = [item for item in found if isinstance(item, Judgment) and item.prompt]
    if not items or not all(_repeats(item) for item in items):
        return form

    def read(record: Record) -> list[Judgment | str]:
        return [item if isinstance(item, str) else _cut(item) for item in form.read(record)]

    return replace(form, read=read)


def _repeats(item: Judgment) -> bool:
    return bool(item.prompt) and all(
        answer.startswith(item.prompt) for answer in (item.chosen, item.rejected)
    )


def _cut(item: Judgment) -> Judgment:
    if not _repeats(item):
        return item
    start = len(item.prompt)
    return replace(
        item, chosen=item.chosen[start:], rejected=item.rejected[start:], prompt_cut_off=True
    )
