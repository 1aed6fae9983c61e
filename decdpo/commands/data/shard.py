"""Turn preference data into one shard per agent.

With --reference MODEL every pair is also scored by the reference of the runs to come, which they
would do at their start, and kept beside the shards. Without a SOURCE the shards that are in DIR
already are scored:

  mpirun -n 4 decdpo shard --reference MODEL --out DIR

All processes share the work, and only pairs that are missing are scored. What is kept depends on
the model, its tokenizer and the keys of [policy] alone: name with --set those that runs will change
(policy.max_length, policy.dtype, policy.chat_template).
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decdpo.data.plan import RatedPlan
    from decdpo.session.job import Job

LONGEST_SHOWN = 4000
"""Characters of a text that ``--show`` prints."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``decdpo shard``."""
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="files of preference data, or folders of them"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="split to read of a folder that holds several: train"
    )
    parser.add_argument(
        "--hub",
        action="store_true",
        help="fetch a SOURCE that is no path, OWNER/NAME[/FOLDER][@REVISION], from the Hugging "
        "Face hub",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--agents",
        type=int,
        metavar="N",
        help="number of shards; without it, by:COLUMN makes one for every value",
    )
    parser.add_argument(
        "--partition",
        default="iid",
        metavar="RULE",
        help="iid | by:COLUMN | dirichlet:ALPHA[:COLUMN] | contiguous (default: %(default)s); "
        "COLUMN may be 'file' (name of the source file) or 'user'",
    )
    parser.add_argument(
        "--holdout", type=float, metavar="SHARE", help="share held out (0.1)"
    )
    parser.add_argument(
        "--group",
        metavar="COLUMN",
        help="hold out whole values of this column (a topic); 'prompt' is the prompt as read, "
        "whatever column it came from, 'item' what was rated",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of deal and hold-out (0)")
    parser.add_argument("--strict", action="store_true", help="what is unused or odd is an error")
    parser.add_argument("--force", action="store_true", help="replace the shards in DIR")
    parser.add_argument(
        "--show", type=int, metavar="N", help="print N pairs as read, at more length (1, shortened)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--pairs-per-agent",
        type=int,
        metavar="N",
        help="take at most N training pairs of each agent, and at most N held-out ones (seeded)",
    )
    rated = parser.add_argument_group(
        "rated answers",
        "pairs of two answers that one person rated differently. A row is a user's rating of an "
        "item, whose text stands in another file (--items) or in the row, or a prompt with a list "
        "of answers and their ratings or ranks",
    )
    rated.add_argument("--items", metavar="TEXTS", help="file with the text of every item")
    rated.add_argument(
        "--item", metavar="COL", help="what names an item in both files (the column that both have)"
    )
    rated.add_argument("--text", metavar="COL", help="text of an answer or an item (text, ...)")
    rated.add_argument(
        "--rating", metavar="COL", help="higher is better (rating, score, ...); OBJECT.KEY of lists"
    )
    rated.add_argument("--rank", metavar="COL", help="1 is the best (rank); its score is minus it")
    rated.add_argument("--prompt-text", metavar="TEXT", help="one prompt for all answers")
    rated.add_argument(
        "--min-gap",
        type=float,
        metavar="GAP",
        help="ratings of a pair differ by this or more (any difference)",
    )
    rated.add_argument(
        "--holdout-items-per-user",
        type=float,
        metavar="K",
        help="hold out K items of each person, or a share of them below 1: the person's training "
        "pairs have none of them, its held-out pairs nothing else. Without it and --group whole "
        "prompts are held out, or with one prompt the share --holdout of each person's items. "
        "--group item holds out the same items from everyone",
    )
    scores = parser.add_argument_group("reference values of a language model")
    scores.add_argument(
        "--reference", metavar="MODEL", help="folder of the model; without SOURCE: of shards in DIR"
    )
    scores.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a key of [policy] or [device], as the runs to come will have it",
    )
    names = parser.add_argument_group(
        "columns", "needed only where the usual names are not used; lists are separated by commas"
    )
    names.add_argument("--prompt", type=_names, default=(), metavar="COL[,COL]")
    names.add_argument("--chosen", metavar="COL")
    names.add_argument("--rejected", metavar="COL")
    names.add_argument("--answers", type=_two, metavar="COL,COL", help="the two answers compared")
    names.add_argument(
        "--label", type=_names, default=(), metavar="COL[,COL]", help="which answer won"
    )
    names.add_argument(
        "--label-values", type=_two, metavar="A,B", help="labels of the first and second answer"
    )
    names.add_argument(
        "--label-scale",
        type=_scale,
        metavar="A,B",
        help="numbers that say most for the first and the second answer; their middle is a tie: "
        "--label-scale=-3,3; 'signed': below 0 for the first, above 0 for the second",
    )
    names.add_argument("--votes", metavar="COL", help="list of [person, verdict]")
    names.add_argument("--user", metavar="COL", help="who judged")
    names.add_argument("--weight", metavar="COL", help="weight of the pair in the loss")
    names.add_argument("--score-chosen", metavar="COL", help="with a label: of the first answer")
    names.add_argument("--score-rejected", metavar="COL", help="with a label: of the second answer")
    names.add_argument("--system", metavar="COL", help="the system's turn")
    names.add_argument("--history", metavar="COL", help="the turns before the question")


def run(args: argparse.Namespace) -> int:
    """Make the shards and print the report; score them if that is asked for."""
    from decdpo.session.job import launch

    if args.reference is None:
        _require_sources(args)
        return _make(args)
    return launch(lambda job: _with_reference(job, args))


def _with_reference(job: "Job", args: argparse.Namespace) -> int:
    from decdpo.session.measuring.reference import score_shards

    if args.sources:
        job.together(lambda: _make(args) if job.is_root else 0, work="make the shards")
    else:
        job.together(lambda: _require_unused(args))
    done = score_shards(job, Path(args.out), args.reference, args.set)
    if job.is_root and args.json and not args.sources:
        print(json.dumps(done))
    kept = done["pairs"] - done["scored"]
    job.say(f"{done['scored']:,} pairs scored, {kept:,} known before; kept in {done['file']}")
    return 0


def _require_sources(args: argparse.Namespace) -> None:
    from decdpo.errors import ConfigError

    if not args.sources:
        raise ConfigError(
            "no SOURCE is given to make shards of",
            "name files of preference data; --reference MODEL scores shards that are there",
        )
    if args.set:
        raise ConfigError(
            f"--set {args.set[0]} would be ignored without --reference",
            "leave it out: shards do not depend on the configuration",
        )


def _require_unused(args: argparse.Namespace) -> None:
    """Raise ``ConfigError`` for options of making shards where none are made."""
    from decdpo.errors import ConfigError

    used = {"sources", "out", "reference", "set", "json", "run", "parser"}
    for name, value in vars(args).items():
        if name not in used and value != args.parser.get_default(name):
            raise ConfigError(
                f"--{name.replace('_', '-')} would be ignored: without SOURCE the shards in "
                f"{args.out} are scored as they are",
                "leave it out, or name the SOURCE to make the shards of",
            )


def _make(args: argparse.Namespace) -> int:
    from decdpo.data.ingest.formats.columns import Columns
    from decdpo.data.ingest.reports.printed import lines, sample_lines
    from decdpo.data.plan import Plan
    from decdpo.data.sharding import make_shards
    from decdpo.data.show import LONGEST, ShownPair
    from decdpo.errors import DataError

    if args.show is not None and args.show < 0:
        raise DataError(f"--show {args.show} is no number of pairs", "give 0 or more")

    columns = Columns(
        prompt=args.prompt,
        chosen=args.chosen,
        rejected=args.rejected,
        answers=args.answers,
        label=args.label,
        label_values=args.label_values,
        label_scale=args.label_scale,
        votes=args.votes,
        user=args.user,
        weight=args.weight,
        score_chosen=args.score_chosen,
        score_rejected=args.score_rejected,
        system=args.system,
        history=args.history,
    )
    plan = Plan(
        partition=args.partition,
        agents=args.agents,
        holdout=_share(args),
        seed=args.seed,
        group=args.group,
        columns=columns,
        strict=args.strict,
        split=args.split,
        hub=args.hub,
        pairs_per_agent=args.pairs_per_agent,
        rated=_rated(args),
    )
    pairs: list[ShownPair] = []
    index = make_shards(
        args.sources,
        args.out,
        plan,
        force=args.force,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
        show=1 if args.show is None else args.show,
        shown=pairs.extend,
    )
    if args.json:
        about = {"folder": args.out, "sharding": index.sharding, "digest": index.digest}
        shown = [pair.as_json() for pair in pairs]
        print(json.dumps({**about, **index.report, "shown": shown}))
    else:
        longest = LONGEST if args.show is None else LONGEST_SHOWN
        print(*lines(index.report), *sample_lines(pairs, longest), sep="\n")
        print(f"{index.num_agents} shards in {args.out}")
    return 0


def _share(args: argparse.Namespace) -> float:
    """Return the share held out. Raises ``DataError`` if two options say what is."""
    from decdpo.errors import DataError

    if args.holdout is not None and args.holdout_items_per_user is not None:
        raise DataError(
            f"--holdout {args.holdout:g} would be ignored beside --holdout-items-per-user",
            "leave one of them out",
        )
    return 0.1 if args.holdout is None else float(args.holdout)


def _rated(args: argparse.Namespace) -> "RatedPlan | None":
    """Return how rated answers become pairs, or None if no option speaks of any."""
    from decdpo.data.ingest.formats.rated import RatedColumns
    from decdpo.data.plan import RatedPlan

    names = (args.item, args.text, args.rating, args.rank, args.prompt_text)
    others = (args.items, args.min_gap, args.holdout_items_per_user)
    if not any(value is not None for value in (*names, *others)) and args.group != "item":
        return None
    return RatedPlan(
        columns=RatedColumns(*names),
        items=None if args.items is None else Path(args.items),
        min_gap=0.0 if args.min_gap is None else args.min_gap,
        own_items=args.holdout_items_per_user,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _scale(text: str) -> tuple[float, float]:
    if text == "signed":
        return -math.inf, math.inf
    try:
        first, second = map(float, _two(text))
    except ValueError:
        first = second = 0.0
    if first == second or not math.isfinite(first + second):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'signed' nor two different numbers")
    return first, second


def _two(text: str) -> tuple[str, str]:
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not two names separated by a comma")
    return parts[0], parts[1]
