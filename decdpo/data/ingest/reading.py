"""The first pass: every record of every source into the pair store; what is lost is counted."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from decdpo.data.ingest.answers import verdicts_of
from decdpo.data.ingest.columns import Columns
from decdpo.data.ingest.formats import Format, judgments, recognise
from decdpo.data.ingest.repeated import without_repeated_prompt
from decdpo.data.ingest.report import Drops, Labels
from decdpo.data.ingest.sources import Record, records, short_names, stems
from decdpo.data.ingest.spill import PairStore
from decdpo.data.ingest.values import Unusable, name_of
from decdpo.data.ingest.verdicts import in_words
from decdpo.errors import DataError

_PROGRESS_SECONDS = 2.0


def read_sources(
    paths: Sequence[Path],
    store: PairStore,
    columns: Columns,
    partition: str | None,
    group: str | None,
    progress: Callable[[str], None],
) -> tuple[dict[str, Any], str]:
    """Read every source into ``store``.

    Parameters
    ----------
    partition, group : columns whose values the partition and the hold-out need, or None. A source
        has the columns ``file`` and ``user`` beside its own.
    progress : is told every two seconds how far it is.

    Returns
    -------
    The report so far, and the prompt format of all pairs.

    Raises ``DataError`` if a source cannot be read, holds no pair, or differs in prompt format.
    """
    drops, labels, files, formats = Drops(), Labels(), [], set()
    row, kept_rows, kept_before, spoke = 0, 0, 0, time.monotonic()
    wanted = {"partition": partition, "group": group}
    known: dict[str, None] = {"file": None, "user": None}
    for path, stem, name in zip(paths, stems(paths), short_names(paths)):
        store.start_file(name, row)
        name = name if len(paths) > 1 else ""
        stream = records(path)
        head = list(itertools.islice(stream, 100))
        sample = [record for record in head if not isinstance(record, str)]
        if not sample:
            why = f": what stands there is {head[0]}" if head else ""
            raise DataError(f"{path} holds no record{why}", "give a file with at least one record")
        with _naming(path):
            form = recognise(head, columns)
        form, cut = without_repeated_prompt(form, sample, columns), 0
        known.update((name, None) for record in sample for name in record)
        first, met = row + 1, dict.fromkeys(name for record in sample for name in record)
        for record in itertools.chain(head, stream):
            row += 1
            if not isinstance(record, str) and not record.keys() <= met.keys():
                met.update(dict.fromkeys(record))
            found = [record] if isinstance(record, str) else judgments(form, record, columns)
            if form.answers is not None and not isinstance(record, str):
                labels.add(verdicts_of(record, form.answers), form.answers)
            for item in found:
                if isinstance(item, str):
                    drops.add(item, row - first + 1, name)
                    continue
                values = _values(record, item.user, stem, wanted)
                fault = values if isinstance(values, str) else store.add(item, row, *values)
                if fault is not None:
                    drops.add(fault, row - first + 1, name)
                cut += fault is None and item.prompt_cut_off
            kept_rows += len(store) > kept_before
            kept_before = len(store)
            if time.monotonic() - spoke > _PROGRESS_SECONDS:
                spoke = time.monotonic()
                progress(f"read {row:,} rows, kept {len(store):,} pairs")
        if form.answers is not None:
            with _naming(path):
                form.answers.require_clear()
        files.append(
            {
                "file": str(path),
                "format": form.name,
                "rows": row - first + 1,
                **_columns(form, wanted, met),
                "prompt_cut_off": cut,
            }
        )
        formats.add(form.prompt_format)
    if not len(store):
        _explain_nothing(drops, labels, wanted, known)
    if len(formats) > 1:
        raise DataError(
            f"the sources write prompts in different ways: {', '.join(sorted(formats))}",
            "make one sharding of each",
        )
    report: dict[str, Any] = {
        "sources": files,
        "rows_read": row,
        "rows_kept": kept_rows,
        "judgments": len(store) + drops.total,
        "pairs": len(store),
        "num_dropped": drops.total,
        "dropped": drops.summary(),
        "incomplete_columns": store.incomplete(),
        "labels": labels.summary(),
    }
    return report, formats.pop()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of the file before errors about what is in it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error.what}", error.remedy) from None


def _columns(
    form: Format, wanted: dict[str, str | None], met: dict[str, None]
) -> dict[str, Any]:
    """Return what the columns of one file were used for, and which were not used."""
    used = {role: list(names) for role, names in form.roles.items()}
    used.update((use, [name]) for use, name in wanted.items() if name is not None and name in met)
    named = {name for names in used.values() for name in names}
    return {"columns_used": used, "columns_unused": [name for name in met if name not in named]}


def _values(
    record: Record | str, user: str | None, stem: str, wanted: dict[str, str | None]
) -> list[str] | str:
    """Return the values of the partition's and the group's column; a string says what is wrong."""
    found: list[str] = []
    for column in wanted.values():
        value: str | None = ""
        if column is not None and isinstance(record, dict):
            value = stem if column == "file" else user if column == "user" else None
            try:
                # A file may have a column of that name that nobody was read from.
                value = value or name_of(record.get(column))
            except Unusable as error:
                return f"{column} {error}"
        if value is None:
            return f"no {column}"
        found.append(value)
    return found


def _explain_nothing(
    drops: Drops, labels: Labels, wanted: dict[str, str | None], known: dict[str, None]
) -> None:
    for use, column in wanted.items():
        if column is not None and column not in known:
            raise DataError(
                f"the sources have no column {column!r} for the {use}",
                f"use one of: {', '.join(known)}",
            )
    reasons = "; ".join(f"{r}: {drop['count']}" for r, drop in drops.summary().items())
    met = [f"{label['label']!r} ({label['count']:,})" for label in labels.summary()]
    said = f"; the labels met are {in_words(met)}" if met else ""
    raise DataError(
        f"no pair is left of {drops.total} judgments ({reasons}){said}",
        "check the columns, or name them with --prompt, --chosen, --rejected, --answers, --label",
    )
