"""Show how the pairs of shards become tokens for a language model.

Prints how long prompts and answers are, what the length limit cuts, and what else the user should
know: answers that end twice, prompts that are no token prefix, pairs with equal answers. With
--show, pairs as read and as tokens; of the tokens only those in the rows "scored" enter the loss,
each predicted from all before it. Weights are not loaded. The options are those of [policy].
"""

import argparse
import json
from typing import Any

SHOWN = 24
"""Tokens of one part that are printed; those in the middle of a longer one are left out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``decdpo tokens``."""
    parser.add_argument("shards", metavar="SHARDS", help="folder made by `decdpo shard`")
    parser.add_argument("--model", required=True, metavar="M", help="policy.model")
    parser.add_argument("--agent", type=int, metavar="I", help="of this agent only")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N pairs (0)")
    parser.add_argument(
        "--max-length", type=int, default=0, metavar="L",
        help="policy.max_length; default: 512, or the model's context if that is less",
    )  # fmt: skip
    parser.add_argument("--chat-template", default="", metavar="T", help="policy.chat_template")
    parser.add_argument("--eos", default="", metavar="TOKEN", help="policy.eos")
    parser.add_argument(
        "--no-line-break", action="store_true", help="policy.line_break = false"
    )
    parser.add_argument("--allow-hub", action="store_true", help="policy.allow_hub = true")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Tokenize every shard and print what became of it."""
    import sys

    from decdpo.policies.lm.pace import Pace

    def say(line: str) -> None:
        print(f"decdpo: {line}", file=sys.stderr, flush=True)

    index, agents = _agents(args)
    total = sum(index.agents[i].num_train + index.agents[i].num_heldout for i in agents)
    with Pace(say, total) as pace:
        result = _measure(args, index, agents, pace)
    if not args.json:
        print(_page(result))
        return 0
    for pair in result["shown"]:
        del pair["lines"]
    print(json.dumps(result, indent=1))
    return 0


def _agents(args: argparse.Namespace) -> tuple[Any, list[int]]:
    """Open the folder of shards and return it with the agents asked for."""
    from decdpo.data.index import ShardIndex
    from decdpo.errors import ConfigError

    index = ShardIndex.load(args.shards)
    last = index.num_agents - 1
    if args.agent is not None and not 0 <= args.agent <= last:
        raise ConfigError(f"--agent {args.agent}: there are agents 0 to {last}", "name one of them")
    if args.show < 0:
        raise ConfigError(f"--show {args.show} is negative", "give the number of pairs to print")
    if args.max_length and args.max_length < 8:
        raise ConfigError(f"--max-length {args.max_length} is too small", "give 8 or more")
    return index, list(range(last + 1)) if args.agent is None else [args.agent]


def _measure(args: argparse.Namespace, index: Any, agents: list[int], pace: Any) -> dict[str, Any]:
    """Return everything that is printed, as JSON values."""
    import numpy as np

    from decdpo.policies.encoded import summed
    from decdpo.policies.lm import hub
    from decdpo.policies.lm.text.limit import length_limit
    from decdpo.policies.lm.text.speller import Speller, TextRules
    from decdpo.policies.tokens import tokenize

    rules = TextRules(args.chat_template, args.eos, not args.no_line_break)
    speller = Speller(hub.load_tokenizer(args.model, args.allow_hub), rules)
    context = hub.context(hub.load_config(args.model, args.allow_hub))
    limit, notes = length_limit(args.max_length, context, args.model)
    lengths: list[Any] = []
    tallies: list[Any] = []
    pairs: list[dict[str, Any]] = []
    pace.begin("making tokens")
    for i in agents:
        shard = index.open(i)
        with hub.quiet():
            tokens = tokenize(
                shard.pairs(np.arange(shard.num_pairs)),
                speller,
                shard.prompt_format,
                limit,
                source_rows=[shard.places[row] for row in range(shard.num_pairs)],
                where=f"agent {i}: ",
                progress=pace.step,
            )
        lengths.append(np.diff(tokens.edges, axis=1))
        tallies += tokens.tallies
        for row in range(min(args.show - len(pairs), shard.num_pairs)):
            pairs.append(_pair(shard, row, tokens.parts(row), speller.tokenizer))
    each = np.concatenate(lengths)
    whole = each[:, :1] + each[:, 1:].max(axis=1, keepdims=True)
    columns = zip(("prompt", "chosen", "rejected", "whole"), np.hstack((each, whole)).T)
    return {
        "shards": args.shards,
        "model": args.model,
        "agents": len(agents),
        "pairs": len(each),
        "prompt_format": shard.prompt_format,
        "tokenizer": speller.digest[:16],
        "chat_template": speller.template is not None,
        "begin": speller.tokenizer.bos_token,
        "end": speller.end_text,
        "max_length": limit,
        "notes": list(notes),
        "lengths": {name: _percentiles(values) for name, values in columns},
        "counts": [
            {"count": t.count, "total": t.total, "what": t.what} for t in summed(tallies)
        ],
        "shown": pairs,
    }


def _percentiles(values: Any) -> dict[str, int]:
    """Return how long the parts are after the cut, in tokens."""
    import numpy as np

    if not len(values):
        return {}
    points = np.percentile(values, (0, 50, 90, 99, 100), method="higher")
    return dict(zip(("min", "median", "90%", "99%", "max"), map(int, points)))


def _pair(shard: Any, row: int, parts: Any, tokenizer: Any) -> dict[str, Any]:
    """Return one pair as read and as tokens; ``lines`` are the former for people."""
    from decdpo.data.show import of_shard, pair_lines

    read = of_shard(shard, row)
    ids = dict(zip(("prompt", "chosen", "rejected"), (part.tolist() for part in parts)))
    return {
        "row": row,
        "read": read.as_json(),
        "lines": list(pair_lines(read)),
        "ids": ids,
        "tokens": {name: _texts(part, tokenizer) for name, part in ids.items()},
    }


def _texts(ids: list[int], tokenizer: Any) -> list[str]:
    """Return the text that every token adds to the one before it, its blanks included."""
    before = [tokenizer.decode([i]) for i in ids]
    both = [tokenizer.decode(two) for two in zip(ids, ids[1:])]
    return [*before[:1], *(text[len(first) :] for text, first in zip(both, before))]


def _page(result: dict[str, Any]) -> str:
    """Return the result as text for people."""
    template = "by the chat template"
    if not result["chat_template"]:
        begin = repr(result["begin"]) if result["begin"] else "nothing"
        template = f"no chat template, texts begin with {begin}"
    lines = [
        f"{result['pairs']:,} pairs of {result['agents']} agents in {result['shards']}, prompts"
        f" {result['prompt_format']!r}",
        f"tokenizer of {result['model']} ({result['tokenizer']}): {template},"
        f" answers end with {result['end']}; max_length = {result['max_length']}",
        *result["notes"],
        "",
        f"{'tokens':<22}" + "".join(f"{name:>8}" for name in result["lengths"]["prompt"]),
    ]
    names = {"whole": "prompt, longer answer"}
    for name, points in result["lengths"].items():
        cells = "".join(f"{value:>8,}" for value in points.values())
        lines.append(f"{names.get(name, name):<22}{cells}")
    counts = [f"  {c['count']:,} of {c['total']:,} {c['what']}" for c in result["counts"]]
    lines += ["", *(counts or ["  nothing is cut, doubled or equal"])]
    for pair in result["shown"]:
        lines += ["", *_shown(pair)]
    return "\n".join(lines)


def _shown(pair: dict[str, Any]) -> list[str]:
    """Return the lines of one pair; only its rows "scored" enter the loss."""
    lines = [f"pair {pair['row']}, as read", *pair["lines"], "  as tokens"]
    for name, tokens in pair["tokens"].items():
        mark = "given" if name == "prompt" else "scored"
        shown = [repr(token) for token in tokens]
        if len(shown) > SHOWN:
            left = len(shown) - SHOWN
            shown = [*shown[: SHOWN // 2], f"... {left} more ...", *shown[-SHOWN // 2 :]]
        lines.append(f"  {name:<9} {mark:<7}{len(tokens):>5}: {' '.join(shown)}")
    return lines
