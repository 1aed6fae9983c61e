"""What in a sharding looks as if it had been read wrong, or will not train as its user thinks."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from decdpo.data.ingest.reports.numbers import WIDE
from decdpo.data.ingest.reports.survey import MARKERS, SHORT

OWN_ITEMS = "each person's own items"
"""What is held out where each person's own items are."""
SHARE = 0.01
"""Share of the pairs from which an oddity is a warning, and an error under ``--strict``."""
LEAK = 0.05
"""The same for held-out pairs whose prompt or answers are trained on."""
INCOMPLETE = "incomplete_column"
"""Kind of the doubt about a column that some pairs lack."""
FEW_PROMPTS, FEW_ANSWERS = 50, 20
"""Pairs of each different prompt, and different answers in all, that are remarkable."""
FEW_TRAINING = 5
"""Training pairs below which an agent has almost none."""
ENOUGH = 4
"""Pairs below which nothing is concluded from what they have in common."""

_TELLING = {"label", "labels", "winner", "preference", "gold", "votes", "score", "rating"}
_TELLING |= {"system", "input", "context", "history", "images", "image", "tools", "weight"}
_NOBODY = {"", "nan", "none", "null", "na", "n/a", "unknown", "undefined"}


@dataclass(frozen=True)
class Doubt:
    """Something odd in a sharding.

    kind : a name for programs. what : the fact, with numbers. remedy : what may be done.
    warning : whether it is a warning, an error under ``--strict``; a note otherwise.
    """

    kind: str
    what: str
    remedy: str = ""
    warning: bool = True


def doubts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is odd in a ``report``, warnings first, as JSON objects of ``Doubt``."""
    rules = (_columns, _texts, _answers, _characters, _judgments, _scores, _weights, _users)
    found = [doubt for rule in (*rules, _agents, _leaks) for doubt in rule(report)]
    return [asdict(doubt) for doubt in sorted(found, key=lambda doubt: not doubt.warning)]


def _columns(report: Mapping[str, Any]) -> Iterator[Doubt]:
    unused: dict[str, None] = {}
    for source in report["sources"]:
        unused.update(dict.fromkeys(source["columns_unused"]))
    telling = [name for name in unused if name.lower() in _TELLING]
    if telling and not report.get("labels"):
        yield Doubt(
            "unused_column",
            f"not used: column{'s' * (len(telling) > 1)} {', '.join(telling)}",
            "if it matters, name it (--prompt A,B joins columns; see --help), else leave it out",
        )
    for name, missing in report["incomplete_columns"].items():
        yield Doubt(
            INCOMPLETE, f"column {name} was left out: {missing:,} pairs have none", ""
        )


def _texts(report: Mapping[str, Any]) -> Iterator[Doubt]:
    pairs, texts = report["pairs"], report["texts"]
    if pairs < ENOUGH or not texts:
        return
    unused = [name for source in report["sources"][:1] for name in source["columns_unused"]]
    remedy = f"not used is: {', '.join(unused[:6])}; --prompt A,B joins columns" if unused else ""
    if texts["distinct_prompts"] == 1 and report.get("ratings", {}).get("one_prompt_given"):
        return
    if texts["distinct_prompts"] == 1:
        yield Doubt("one_prompt", f"all {pairs:,} pairs have the same prompt", remedy)
    elif texts["distinct_prompts"] * FEW_PROMPTS <= pairs:
        yield Doubt(
            "few_prompts",
            f"only {texts['distinct_prompts']:,} different prompts in {pairs:,} pairs",
            remedy,
            warning=False,
        )
    for side in ("chosen", "rejected"):
        if texts[f"distinct_{side}"] == 1:
            yield Doubt("one_answer", f"the {side} answer of all {pairs:,} pairs is the same text")


def _answers(report: Mapping[str, Any]) -> Iterator[Doubt]:
    cut = sum(source.get("prompt_cut_off", 0) for source in report["sources"])
    if cut:
        yield Doubt(
            "prompt_cut_off",
            f"in {cut:,} pairs both answers began with their own prompt, which was cut off them",
            "cut it off in the source if this must be no warning",
        )
    yield from _common(
        report,
        "repeated_prompt",
        "have a prompt with which both answers begin: it would be scored as answer",
        "cut the prompt off the answers in the source",
    )
    yield from _common(
        report,
        "same_words",
        "have answers that differ in white space and case only: they teach little or nothing",
        "drop them in the source",
    )
    yield from _common(
        report, "equal_features", "have answers with equal features: they teach nothing", ""
    )
    if not few_answers(report):
        what = f"have an answer of fewer than {SHORT} bytes"
        # Where most are, such as numbers, that is what answers are.
        most = report["oddities"].get("short_answer", {"pairs": 0})["pairs"] * 2 > report["pairs"]
        for doubt in _common(report, "short_answer", what, ""):
            yield replace(doubt, warning=doubt.warning and not most)
    yield from _common(
        report,
        "next_turn",
        "have an answer in which the next turn (Human: or Assistant:) begins",
        "end the answers where the turn ends",
    )
    yield from _common(
        report,
        "structure",
        "have an answer that is a list or an object written as text",
        "store messages as JSON lists, not as strings of them",
    )
    blank = report["oddities"].get("blank")
    if blank and blank["pairs"] < report["pairs"]:
        yield from _common(report, "blank", "have no text, only features", "shard them apart")


def _characters(report: Mapping[str, Any]) -> Iterator[Doubt]:
    markers = report["markers"]
    named = ", ".join(f"{m} ({markers[m]:,})" for m in MARKERS if m in markers)
    yield from _common(
        report,
        "marked",
        f"hold markers of a template: {named}",
        "take them out: the template of the model's tokenizer writes its own",
    )
    yield from _common(
        report, "control", "hold control characters", "clean the texts in the source"
    )
    yield from _common(
        report,
        "garbled",
        "hold garbled characters, as of UTF-8 read in another encoding",
        "fetch or decode the source anew, as UTF-8",
    )
    yield from _common(
        report, "entities", "hold HTML entities, such as &amp;", "unescape them in the source"
    )


def _judgments(report: Mapping[str, Any]) -> Iterator[Doubt]:
    second = report["second_preferred"]
    if report["labels"] and report["pairs"] >= 20 and not SHARE <= second <= 1 - SHARE:
        side = "second" if second > 0.5 else "first"
        yield Doubt(
            "one_sided",
            f"the {side} answer wins in {max(second, 1 - second):.1%} of pairs",
            "check what the label says: --label-values A,B names the values of first and second",
        )
    yield from _common(
        report,
        "duplicate",
        "repeat a pair of another source row",
        "drop the copies"
        + (", or hold out whole prompts with --group prompt" if not _by_prompt(report) else ""),
    )
    yield from _common(
        report,
        "contradicting",
        "prefer what another row of the same user's rejects",
        "check the labels; --user COLUMN tells apart who judged",
    )
    longer = report["longer_preferred"]["pooled"]
    if report["pairs"] >= 20 and not 0.1 <= longer <= 0.9:
        rule = "longer" if longer > 0.5 else "shorter"
        yield Doubt(
            "length",
            f"the {rule} answer is preferred in {max(longer, 1 - longer):.1%} of pairs: length "
            "alone tells which",
            warning=False,
        )


def _scores(report: Mapping[str, Any]) -> Iterator[Doubt]:
    scores = report["scores"]
    if not scores:
        return
    below = scores["chosen_below"]
    if below:
        yield Doubt(
            "score_below",
            f"{below:,} of {scores['pairs']:,} pairs score the chosen answer below the rejected",
            "check whether scores belong to columns or to winner and loser",
            warning=below >= SHARE * scores["pairs"],
        )
    if scores["equal"]:
        yield Doubt(
            "score_equal",
            f"{scores['equal']:,} of {scores['pairs']:,} pairs score both answers alike",
            warning=scores["equal"] == scores["pairs"],
        )


def _weights(report: Mapping[str, Any]) -> Iterator[Doubt]:
    weights = report["weights"]
    if not weights:
        return
    if weights["min"] == weights["max"]:
        yield Doubt(
            "weights_equal",
            f"all weights are {weights['min']:g}: they change nothing",
            warning=False,
        )
    elif weights["max"] >= WIDE * weights["min"]:
        yield Doubt(
            "weights_wide",
            f"weights from {weights['min']:g} to {weights['max']:g} multiply the loss: "
            f"{weights['pairs']:,} pairs count like {weights['like_equal_pairs']:,} equal ones",
            "rename the column if it is no weight of the pair in the loss",
        )


def _users(report: Mapping[str, Any]) -> Iterator[Doubt]:
    users = report["users"]
    if users and users["without"]:
        yield Doubt(
            "no_user",
            f"{users['without']:,} of {report['pairs']:,} pairs have no user",
            "--partition by:user drops them",
            warning=users["without"] >= SHARE * report["pairs"],
        )
    names = [row["name"] for row in report["agents"] if row["name"].strip().lower() in _NOBODY]
    if any(row["name"] for row in report["agents"]) and names:
        yield Doubt(
            "nobody",
            f"{len(names)} of the agents is called {', '.join(map(repr, names[:5]))}, "
            "which may stand for unknown",
            "drop these rows, or give each its own value",
        )


def _agents(report: Mapping[str, Any]) -> Iterator[Doubt]:
    agents = report["agents"]
    poor = [row for row in agents if row["train"] < FEW_TRAINING]
    if poor and max(row["train"] for row in agents) >= FEW_TRAINING:
        yield Doubt(
            "few_training_pairs",
            f"{len(poor):,} of {len(agents):,} agents have fewer than {FEW_TRAINING} training "
            "pairs",
            "use fewer --agents: by:COLUMN then keeps those with most pairs",
        )
    bare = sum(row["held_out"] == 0 for row in agents)
    if bare and bare < len(agents):
        yield Doubt(
            "no_held_out_pairs",
            f"{bare:,} of {len(agents):,} agents have no held-out pair",
            warning=False,
        )


def _leaks(report: Mapping[str, Any]) -> Iterator[Doubt]:
    leaks = report["leaks"]
    # That others train on an item tells a person's agent nothing of what the person thinks of it.
    if not leaks or is_own(report):
        return
    held, by_prompt = leaks["held_out_pairs"], _by_prompt(report)
    asked, answered = leaks["pairs_with_prompt"], leaks["pairs_with_answer"]
    several = report["texts"]["distinct_prompts"] > 1
    enough = max(LEAK * held, 1) if held >= ENOUGH else held + 1
    known_prompts = several and asked >= enough
    known_answers = answered >= enough
    seen = [f"{asked:,} have a prompt"] * known_prompts
    seen += [f"{answered:,} have an answer"] * known_answers
    if seen:
        # A known prompt with new answers is what data of several users often are.
        yield Doubt(
            "leak",
            f"of {held:,} held-out pairs, {' and '.join(seen)} that is trained on as well",
            _leak_remedy(report, by_prompt, known_answers),
            warning=known_answers,
        )


def is_own(report: Mapping[str, Any]) -> bool:
    """Say whether each person's own items were held out, on which other people train."""
    return str(report["held_out_by"]).startswith(OWN_ITEMS)


def _by_prompt(report: Mapping[str, Any]) -> bool:
    return bool(report["held_out_by"] == "prompt")


def _leak_remedy(report: Mapping[str, Any], by_prompt: bool, known_answers: bool) -> str:
    leaks = report["leaks"]
    if leaks["several_prompts"] < LEAK or not known_answers:
        return "" if by_prompt else "hold out whole prompts, with their answers: --group prompt"
    names = dict.fromkeys(n for s in report["sources"] for n in s["columns_unused"])
    options = f" (of {', '.join(list(names)[:6])})" if names else ""
    return (
        f"answers stand under several prompts: --group COLUMN{options}, one whose values keep "
        "equal answers together"
    )


def few_answers(report: Mapping[str, Any]) -> bool:
    """Say whether answers are choices from a small set, such as Yes and No."""
    texts = report["texts"]
    return bool(texts) and texts["distinct_answers"] <= min(FEW_ANSWERS, report["pairs"] // 2)


def _common(report: Mapping[str, Any], kind: str, what: str, remedy: str) -> Iterator[Doubt]:
    """Yield the doubt about an oddity of single pairs, if there is any."""
    oddity = report["oddities"].get(kind)
    if not oddity:
        return
    count, rows = oddity["pairs"], ", ".join(map(str, oddity["rows"]))
    more = ", ..." if count > len(oddity["rows"]) else ""
    yield Doubt(
        kind,
        f"{count:,} of {report['pairs']:,} pairs {what} (source rows {rows}{more})",
        remedy,
        warning=count >= SHARE * report["pairs"],
    )
