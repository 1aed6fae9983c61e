"""The report of a sharding as lines for people: what was understood, what is odd, the agents."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from decdpo.data.ingest.reports.doubts import is_own
from decdpo.data.shard import row_of
from decdpo.data.show import LONGEST, ShownPair, pair_lines, wrapped

AGENTS_SHOWN = 12
"""Agents of whom each has its line; of more, the first are shown."""
LABELS_SHOWN = 8

_NAME = 12


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as lines of at most 100 characters, but for paths that are longer."""
    yield "understood"
    for name, text in _understood(report):
        yield from _entry(name, text)
    if report["texts"]:
        yield from _lengths(report["lengths"])
    yield from _doubts(report["doubts"])
    yield from _agents(report)


def sample_lines(pairs: Sequence[ShownPair], longest: int = LONGEST) -> Iterator[str]:
    """Yield some pairs as they were read."""
    if pairs:
        yield "one pair as read" if len(pairs) == 1 else f"{len(pairs)} pairs as read"
    for number, pair in enumerate(pairs):
        if number:
            yield ""
        yield from pair_lines(pair, longest)


def _understood(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _sources(report["sources"])
    left = report["left_out"]
    if "ratings" in report:
        yield from _ratings(report)
    else:
        yield "pairs", (
            f"{report['pairs']:,} of {report['judgments']:,} judgments in "
            f"{report['rows_read']:,} rows; dropped {report['num_dropped']:,}, left out "
            f"{left['pairs']:,}"
        )
    for reason, drop in report["dropped"].items():
        yield "", f"dropped {drop['count']:,}: {reason} (source rows {_rows(drop)})"
    if left["values"]:
        yield "", f"left out {left['pairs']:,} pairs of {left['values']:,} values without an agent"
    if report.get("over_limit"):
        yield "", f"not taken {report['over_limit']:,} pairs above the limit of an agent"
    texts = report["texts"]
    if texts:
        yield "texts", (
            f"{counted(texts['distinct_prompts'], 'different prompt')}, "
            f"{counted(texts['distinct_answers'], 'different answer')}; the longer answer is "
            f"preferred in {report['longer_preferred']['pooled']:.1%} of pairs"
        )
    if report["features"]:
        yield "features", f"{report['features']:,} columns of each answer" + (
            "" if texts else '; no texts: train with policy.features = "columns"'
        )
    yield from _judgments(report)
    yield "held out", _held_out(report)


def _ratings(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what was rated, and which pairs of ratings are pairs."""
    found = report["ratings"]
    yield "ratings", (
        f"{found['ratings']:,} of {report['judgments']:,} in {report['rows_read']:,} rows, of "
        f"{counted(found['answers'], 'answer')} to {counted(found['prompts'], 'prompt')}: "
        f"{_range(found)}; dropped {report['num_dropped']:,}"
    )
    gap = f"{found['min_gap']:g} or more apart" if found["min_gap"] else "different"
    yield "pairs", (
        f"{report['pairs']:,} of {found['far_enough']:,} of which one person rated both answers, "
        f"{gap}; of one held-out and one other answer, and so not used: {found['between']:,}"
    )


def _sources(sources: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield what was read of which columns; files that are alike are named together."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for source in sources:
        alike = (source["format"], source["columns_used"], source["columns_unused"])
        kinds.setdefault(repr(alike), []).append(source)
    for files in kinds.values():
        rows = sum(file["rows"] for file in files)
        names = ", ".join(file["file"] for file in files[:2]) + (", ..." if len(files) > 2 else "")
        count = f"{len(files)} files of format" if len(files) > 1 else "format"
        yield "read", f"{names}: {count} {files[0]['format']}, {rows:,} rows"
        roles = files[0]["columns_used"].items()
        yield "columns", "; ".join(f"{role}: {', '.join(names)}" for role, names in roles)
        yield "not used", ", ".join(files[0]["columns_unused"]) or "none: every column is used"


def _judgments(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is known of who judged, and how: labels, scores, weights, users."""
    labels = report["labels"]
    if labels:
        named = [f"{_label(x['label'])} = {x['means']} ({x['count']:,})" for x in labels]
        more = f", {len(named) - LABELS_SHOWN} more" if len(named) > LABELS_SHOWN else ""
        yield "labels", ", ".join(named[:LABELS_SHOWN]) + more
    both = report["contradictions"]
    if both:
        yield "", (
            f"{both['contradicted']:,} of {both['rows_with_several']:,} source rows with several "
            "judgments contradict themselves"
        )
    scores = report["scores"]
    if scores:
        above = scores["pairs"] - scores["chosen_below"] - scores["equal"]
        yield "scores", (
            f"chosen {_range(scores['chosen'])}; rejected {_range(scores['rejected'])}; chosen "
            f"above rejected in {above / scores['pairs']:.1%} of pairs"
        )
    weights = report["weights"]
    if weights:
        yield "weights", (
            f"{_range(weights)}: each multiplies the loss of its pair; {weights['pairs']:,} pairs "
            f"count like {weights['like_equal_pairs']:,} equal ones"
        )
    users = report["users"]
    if users:
        yield "users", f"{users['distinct']:,}" + (
            f"; {users['without']:,} pairs name nobody" if users["without"] else ""
        )


def _held_out(report: Mapping[str, Any]) -> str:
    leaks = report["leaks"]
    held = sum(row["held_out"] for row in report["agents"])
    if not held:
        return "nothing"
    text = f"{held:,} of {report['pairs']:,} pairs, by {report['held_out_by']}"
    if leaks:
        parts = [
            f"{leaks[kind]['trained_on']:,} of {leaks[kind]['held_out']:,} {kind}"
            for kind in ("prompts", "answers")
        ]
        who = " by others" if is_own(report) else ""
        text += f"; trained on as well{who}: {' and '.join(parts)}"
    return text


def _lengths(lengths: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    names = next(iter(lengths.values()))
    yield f"  {'bytes':<{_NAME}}" + "".join(f"{name:>9}" for name in names)
    for part, quantiles in lengths.items():
        yield f"   {part:<{_NAME - 1}}" + "".join(f"{quantiles[name]:>9,}" for name in names)


def _doubts(doubts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield warnings, which are errors under --strict, and notes."""
    strict = " (! is an error under --strict)" if any(doubt["warning"] for doubt in doubts) else ""
    yield f"odd{strict}" if doubts else "odd: nothing"
    for doubt in doubts:
        mark = "!" if doubt["warning"] else "-"
        for text, first in ((doubt["what"], f"  {mark} "), (doubt["remedy"], "    > ")):
            yield from wrapped(text, first, " " * len(first))


def _agents(report: Mapping[str, Any]) -> Iterator[str]:
    agents, longer, mix = report["agents"], report["longer_preferred"], report["difference"]
    yield f"agents {len(agents):,}"
    yield f"  {'agent':>5}  {'training':>8}  {'held-out':>8}  {'longer wins':>11}  name"
    for row in agents[:AGENTS_SHOWN]:
        yield (
            f"  {row['agent']:>5}  {row['train']:>8,}  {row['held_out']:>8,}  "
            f"{row['longer_preferred']:>11.3f}  {row['name'][:60]}"
        ).rstrip()
    if len(agents) > AGENTS_SHOWN:
        sizes = sorted(row["train"] for row in agents)
        yield (
            f"    ... {len(agents) - AGENTS_SHOWN:,} more (in index.json); training pairs of all: "
            f"{sizes[0]:,} to {sizes[-1]:,}, median {sizes[len(sizes) // 2]:,}"
        )
    if len(agents) > 1:
        yield (
            f"  they differ in {mix['of']} by {mix['mix_distance']:.3f} (total variation; "
            f"{mix['if_dealt_at_random']:.3f} if dealt at random)"
        )
        yield (
            f"  and in how often the longer answer wins: {longer['lowest_agent']:.3f} to "
            f"{longer['highest_agent']:.3f}"
        )


def _entry(name: str, text: str) -> Iterator[str]:
    yield from wrapped(text, f"  {name:<{_NAME}}", " " * (_NAME + 2))


def _rows(drop: Mapping[str, Any]) -> str:
    files = drop.get("files") or [""] * len(drop["rows"])
    rows = ", ".join(row_of(row, file) for row, file in zip(drop["rows"][:8], files))
    return rows + (", ..." if len(drop["rows"]) > 8 else "")


def counted(count: int, noun: str) -> str:
    """Return "1 pair" or "2,000 pairs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _label(label: str) -> str:
    return label or "(none)"


def _range(values: Mapping[str, float]) -> str:
    return f"{values['min']:g} to {values['max']:g} (median {values['median']:g})"
