"""From source files to a folder of shards: read, deal out, hold out, write, report."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decdpo.data import partition as deal
from decdpo.data.folder import commit, require_room, staging
from decdpo.data.index import ShardEntry, ShardIndex
from decdpo.data.ingest.files.hub import fetch
from decdpo.data.ingest.files.places import files_of
from decdpo.data.ingest.formats.rated import lists_in
from decdpo.data.ingest.opened import Opened
from decdpo.data.ingest.ratings import Ratings, read_ratings
from decdpo.data.ingest.reading import read_sources
from decdpo.data.ingest.reports import report as reporting
from decdpo.data.ingest.reports.doubts import INCOMPLETE, doubts
from decdpo.data.ingest.reports.leaks import leaks
from decdpo.data.ingest.reports.numbers import require_held
from decdpo.data.ingest.reports.shown import shown_pairs
from decdpo.data.ingest.reports.survey import Survey, groups_of, survey
from decdpo.data.ingest.spill import PairStore
from decdpo.data.ingest.texts import Texts
from decdpo.data.partition import Partition, parse_partition
from decdpo.data.plan import ITEM, PROMPT, Plan, RatedPlan
from decdpo.data.rated import fill_pairs
from decdpo.data.shard import encode_names, row_of
from decdpo.data.show import ShownPair
from decdpo.data.storage import ShardHeader, write_shard
from decdpo.data.topics import Topics
from decdpo.errors import DataError
from decdpo.rng import Stream, generator

_SAMPLE = 5_000
_PROGRESS_SECONDS = 2.0


def make_shards(
    sources: Sequence[Path | str],
    out: Path | str,
    plan: Plan,
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda line: None,
    show: int = 0,
    shown: Callable[[list[ShownPair]], None] = lambda pairs: None,
) -> ShardIndex:
    """Read preference data and write one shard per agent, with their index, into ``out``.

    The folder (mode 0700) appears as a whole or not at all; a killed process leaves a hidden one
    beside it, which may be deleted. The same sources and plan give the same bytes.

    Parameters
    ----------
    sources : files, folders of files, or names on the hub.
    force : replace shards that are already in ``out``; other files are never touched.
    progress : called with a line on how far reading and writing are.
    show : number of pairs, from all over the sources, that ``shown`` is called with.

    Raises ``DataError`` if a source cannot be read or is given twice, the plan does not fit the
    data, an agent would have no training pair, a number is too large, ``out`` holds something else,
    or ``plan.strict`` and something could not be used or is odd; ``EnvironmentFault`` if ``out``
    cannot be written.
    """
    out = Path(os.path.abspath(out))
    plan.require_sound()
    require_room(out, force)
    fetching = (lambda name: fetch(name, progress)) if plan.hub else None
    paths = files_of(sources, plan.split, fetching, progress)
    with staging(out) as folder:
        store = PairStore(folder)
        try:
            first = Opened(paths[0])
            if plan.rated or lists_in(first.sample()):
                made = _rated(paths, first, folder, store, plan, progress)
            else:
                made = _preferred(paths, first, store, plan, progress)
            owner, held_out, names, texts, report, prompt_format = made
            _describe(store, texts, owner, held_out, names, plan, report)
            if plan.strict:
                _require_no_doubt(report)
            index = _write(
                folder, store, owner, held_out, names, plan, prompt_format, report, progress
            )
            if show:
                chosen = _spread(np.flatnonzero(owner >= 0), show)
                shown(shown_pairs(store, chosen, owner, names, held_out, prompt_format))
        finally:
            store.close()
        index.save()
        commit(folder, out)
    return ShardIndex.load(out)


_Made = tuple[np.ndarray, np.ndarray, list[str], Survey, dict[str, Any], str]
"""Agent of each pair, mask of held-out pairs, the agents' names, texts, report, prompt format."""


def _preferred(
    paths: Sequence[Path],
    first: Opened,
    store: PairStore,
    plan: Plan,
    progress: Callable[[str], None],
) -> _Made:
    """Read preferences, deal them out and hold some out."""
    rule = parse_partition(plan.partition)
    group = None if plan.group == PROMPT else plan.group
    report, prompt_format = read_sources(
        paths, first, store, plan.columns, rule.column, group, progress
    )
    require_held(store.columns(), store.place)
    owner, names = _deal(store, rule, plan, report)
    texts = survey(store)
    held_out = _hold_out(store, texts, owner, names, plan, report)
    return owner, held_out, names, texts, report, prompt_format


def _rated(
    paths: Sequence[Path],
    first: Opened,
    folder: Path,
    store: PairStore,
    plan: Plan,
    progress: Callable[[str], None],
) -> _Made:
    """Read ratings, choose pairs of them, deal these out and hold some out."""
    rule, rated = parse_partition(plan.partition), plan.rated or RatedPlan()
    column = plan.group if plan.group not in (ITEM, PROMPT) else None
    ratings = Ratings(Texts(folder), Texts(folder))
    try:
        report, prompt_format = read_ratings(
            paths,
            first,
            ratings,
            plan.columns,
            rated.columns,
            rated.items,
            {"partition": rule.column, "group": column},
            progress,
        )
        owner, names, held_out = fill_pairs(ratings, store, rule, plan, report, progress)
    finally:
        ratings.close()
    report["pairs"] = len(store)
    require_held(store.columns(), store.place)
    return owner, held_out, names, survey(store), report, prompt_format


def _deal(
    store: PairStore, rule: Partition, plan: Plan, report: dict[str, Any]
) -> tuple[np.ndarray, list[str]]:
    """Return the (n,) agent of each pair (-1: left out) and each agent's name."""
    n, codes = len(store), store.keys.codes
    report["left_out"] = {"values": 0, "pairs": 0}
    if rule.kind == "by":
        owner, names = deal.by_value(codes, store.keys.names, plan.agents)
        report["left_out"] = {
            "values": len(store.keys.names) - len(names),
            "pairs": int((owner < 0).sum()),
        }
        report["pairs"] -= report["left_out"]["pairs"]
        return owner, names
    assert plan.agents is not None
    if plan.agents > n:
        raise DataError(f"{plan.agents} agents, but {n} pairs", "use fewer --agents")
    if rule.kind == "iid":
        owner = deal.iid(n, plan.agents, plan.seed)
    elif rule.kind == "contiguous":
        owner = deal.contiguous(n, plan.agents)
    else:
        labels = codes if rule.column else _topics(store, np.arange(n), plan.seed)
        owner = deal.dirichlet(labels, plan.agents, rule.alpha, plan.seed)
    return owner, [""] * plan.agents


def _hold_out(
    store: PairStore,
    texts: Survey,
    owner: np.ndarray,
    names: Sequence[str],
    plan: Plan,
    report: dict[str, Any],
) -> np.ndarray:
    """Return the (n,) bool mask of held-out pairs; judgments of one source row stay together."""
    groups, by = None, "pair"
    if plan.group == PROMPT:
        groups, by = groups_of(texts.prompts), "prompt"
    elif plan.group is not None:
        groups, by = store.groups.codes, f"column {plan.group}"
    elif len(np.unique(store.source_rows)) < len(store):
        groups, by = store.source_rows, "source row"
    report["held_out_by"] = by
    held_out = deal.hold_out(owner, len(names), plan.holdout, plan.seed, groups)
    report["over_limit"] = _limit(owner, held_out, len(names), plan, report)
    used = (owner >= 0) & ~held_out
    deal.require_training(np.bincount(owner[used], minlength=len(names)), names)
    return held_out


def _limit(
    owner: np.ndarray, held_out: np.ndarray, agents: int, plan: Plan, report: dict[str, Any]
) -> int:
    """Take from their agents the pairs above the limit, and return how many these are."""
    if plan.pairs_per_agent is None:
        return 0
    taken = np.zeros(len(owner), bool)
    taken[deal.limited(owner, held_out, agents, plan.pairs_per_agent, plan.seed)] = True
    over = int(((owner >= 0) & ~taken).sum())
    owner[~taken] = -1
    report["pairs"] -= over
    return over


def _describe(
    store: PairStore,
    texts: Survey,
    owner: np.ndarray,
    held_out: np.ndarray,
    names: Sequence[str],
    plan: Plan,
    report: dict[str, Any],
) -> None:
    """Add texts, numbers, users, agents and their differences to the report, and what is odd."""
    used = np.flatnonzero(owner >= 0)
    report.update(reporting.of_pairs(store, texts, owner >= 0))
    report["leaks"] = leaks(texts, store.edges, owner, held_out) if report["texts"] else None
    report["agents"] = reporting.per_agent(owner, held_out, store.edges, names)
    rule = parse_partition(plan.partition)
    if rule.kind == "dirichlet" and rule.column:
        rows, labels, what = used, store.keys.codes[used], f"their mix of {rule.column}"
    else:
        rows = _sampled(used, plan.seed)
        labels, what = _topics(store, rows, plan.seed), "their mix of topics"
    report["longer_preferred"] = reporting.longer_range(report["agents"], store.edges[used])
    report["difference"] = reporting.difference(owner[rows], labels, len(names), plan.seed, what)
    report["contradictions"] = None
    if "ratings" not in report:
        report["contradictions"] = reporting.contradictions(
            store.source_rows[used], store.second[used]
        )
    report["doubts"] = doubts(report)


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` of ``rows`` or all of them, from the first to the last."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows)))
    return rows[places.astype(np.int64)]


def _sampled(rows: np.ndarray, seed: int) -> np.ndarray:
    if len(rows) <= _SAMPLE:
        return rows
    return np.sort(generator(seed, Stream.PARTITION, round=3).choice(rows, _SAMPLE, replace=False))


def _topics(store: PairStore, rows: np.ndarray, seed: int) -> np.ndarray:
    topics = Topics(store.prompts(_sampled(rows, seed)), seed)
    parts = np.array_split(rows, max(len(rows) // 2000, 1))
    return np.concatenate([topics(store.prompts(part)) for part in parts])


def _require_no_doubt(report: dict[str, Any]) -> None:
    """Raise ``DataError`` if something was not used, or is odd enough for a warning."""
    odd = [d for d in report["doubts"] if d["warning"] and d["kind"] != INCOMPLETE]
    unused = _unused(report)
    faults = [f"not everything could be used: {unused}"] if unused else []
    faults += [doubt["what"] for doubt in odd]
    if faults:
        remedies = dict.fromkeys(doubt["remedy"] for doubt in odd if doubt["remedy"])
        raise DataError(
            f"--strict: {'; '.join(faults)}",
            "; ".join([*remedies, "or leave --strict out to have this reported only"])
            if remedies
            else "mend the source, or leave --strict out to have this reported only",
        )


def _unused(report: dict[str, Any]) -> str:
    """Return in words what could not be used, "" if everything was."""
    unused = [f"{drop['count']} {reason}" for reason, drop in report["dropped"].items()]
    unused += [f"{count} without {name}" for name, count in report["incomplete_columns"].items()]
    if report["left_out"]["pairs"]:
        unused.append(f"{report['left_out']['pairs']} of values without an agent")
    places = {place for drop in report["dropped"].values() for place in _places(drop)}
    rows = ", ".join(row_of(row, file) for file, row in sorted(places)[:10])
    return "; ".join(unused) + (f" (source rows {rows})" if rows else "")


def _places(drop: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield (file, row) of the drops that are named; the file is "" if there was one."""
    return zip(drop.get("files") or [""] * len(drop["rows"]), drop["rows"])


def _write(
    folder: Path,
    store: PairStore,
    owner: np.ndarray,
    held_out: np.ndarray,
    names: Sequence[str],
    plan: Plan,
    prompt_format: str,
    report: dict[str, Any],
    progress: Callable[[str], None],
) -> ShardIndex:
    edges, columns = store.edges, store.columns()
    users = store.users.codes if any(store.users.names) else None
    sharding = _identity(store, owner, held_out, plan)
    entries, spoke = [], time.monotonic()
    for agent, name in enumerate(names):
        rows = np.flatnonzero(owner == agent)
        rows = np.concatenate([rows[~held_out[rows]], rows[held_out[rows]]])
        num_train = int((~held_out[rows]).sum())
        sizes = np.diff(edges[rows], axis=1)
        ends = np.cumsum(sizes.sum(axis=1))
        spans = np.cumsum(np.column_stack([ends - sizes.sum(axis=1), sizes]), axis=1)
        files, source_rows = store.places(rows)
        data = {"spans": spans, "source_row": source_rows}
        if len(store.files) > 1:
            data["source_file"], data["source_file_names"] = _coded(files, store.files)
        data.update((column, values[rows]) for column, values in columns.items())
        if users is not None:
            data["user"], data["user_names"] = _coded(users[rows], store.users.names)
        file = f"agent_{agent:04d}.h5"
        header = ShardHeader(sharding, agent, num_train, prompt_format)
        size = int(ends[-1])
        digest = write_shard(folder / file, header, data, store.text(rows), size)
        entries.append(
            ShardEntry(agent, name, file, digest, num_train, len(rows) - num_train, size)
        )
        if time.monotonic() - spoke > _PROGRESS_SECONDS:
            spoke = time.monotonic()
            progress(f"wrote {agent + 1:,} of {len(names):,} shards")
    return ShardIndex(
        folder=folder,
        sharding=sharding,
        seed=plan.seed,
        holdout=plan.holdout,
        partition=plan.partition,
        prompt_format=prompt_format,
        agents=tuple(entries),
        report=report,
    )


def _coded(codes: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return codes into the names that are present, and these names as a shard holds them."""
    present, codes = np.unique(codes, return_inverse=True)
    return codes, encode_names([names[code] for code in present])


def _identity(
    store: PairStore, owner: np.ndarray, held_out: np.ndarray, plan: Plan
) -> str:
    """Return the uuid of a sharding: a function of its pairs, and of who holds which of them."""
    sha = hashlib.sha256(json.dumps([plan.partition, plan.seed, plan.holdout]).encode())
    for values in (owner, held_out, store.edges, store.source_rows):
        sha.update(np.ascontiguousarray(values).tobytes())
    for part in store.text(np.arange(len(store))):
        sha.update(part)
    return str(uuid.UUID(bytes=sha.digest()[:16], version=5))
