"""Make what `decdpo study fedpdpo` needs of a table of users, items and ratings.

    python tools/rated_people.py ratings.csv.gz --user user --item joke --rating rating \
        --people 40 --seeds 3 --min-gap 3 --out people
    decdpo study fedpdpo --data people/0 people/1 people/2 --agents 24 --out studies/people \
        --set policy.model=people/model --set policy.max_length=16

Each seed has people of its own. All others are the public, of whose ratings the model knows: the
embedding of an item begins with its mean rating and its factors, by alternating least squares on
the public's ratings (tastes x factors, ridge 20 and 2). Items are names: no text of theirs is read.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from decdpo.data.ingest.files.sources import records
from decdpo.data.ingest.formats.rated import RatedColumns
from decdpo.data.plan import Plan, RatedPlan
from decdpo.data.sharding import make_shards
from decdpo.errors import DataError, DecdpoError
from decdpo.studies.people.item_model import HIDDEN, PROMPT, write_item_model

TASTES, SWEEPS = 6, 15


def item_factors(rows, users, items):
    """Return (items, 1 + TASTES) standardised means and factors of the ratings of ``users``."""
    place, column = {u: i for i, u in enumerate(users)}, {j: k for k, j in enumerate(items)}
    table = np.full((len(users), len(items)), np.nan)
    for user, item, value in rows:
        if user in place:
            table[place[user], column[item]] = value
    known = ~np.isnan(table)
    mean = np.nanmean(table, axis=0)
    mean = mean - mean.mean()
    rest = np.where(known, table - np.nanmean(table, axis=1, keepdims=True) - mean, 0.0)
    factors = np.random.default_rng(1).normal(size=(len(items), TASTES)) * 0.1
    for _ in range(SWEEPS):
        tastes = _solved(factors, rest, known, 20.0)
        factors = _solved(tastes, rest.T, known.T, 2.0)
    return np.column_stack([mean / mean.std(), factors / factors.std(axis=0)])


def _solved(basis, values, known, ridge):
    """Return the ridge regression of each row of ``values`` on ``basis``, where it is known."""
    eye = ridge * np.eye(basis.shape[1])
    return np.stack([
        np.linalg.solve(basis[m].T @ basis[m] + eye, basis[m].T @ v[m])
        for v, m in zip(values, known)
    ])  # fmt: skip


def ratings(path, *columns):
    """Return (user, item, rating) of every row of a table. Raises ``DataError`` for an odd one."""
    rows = []
    for number, row in enumerate(records(path), 1):
        try:
            user, item, rating = (row[column] for column in columns)
            rows.append((str(user), str(item), float(rating)))
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"row {number} of {path} has no user, item and rating in "
                f"{', '.join(columns)}: {str(row)[:200]}",
                "name the columns with --user, --item and --rating; mend or remove the row",
            ) from None
    return rows


def main():
    """Read the ratings, choose the people of each seed, write shards and model."""
    try:
        run()
    except DecdpoError as fault:
        sys.exit(f"rated_people: {fault}")


def run():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ratings", type=Path)
    parser.add_argument("--user", default="user")
    parser.add_argument("--item", default="item")
    parser.add_argument("--rating", default="rating")
    parser.add_argument("--people", type=int, default=40, help="of each seed (40)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--min-gap", type=float, default=0.0)
    parser.add_argument("--own-items", type=float, default=0.2, help="held out of each person")
    parser.add_argument("--pairs", type=int, default=300, help="training pairs of a person (300)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = ratings(args.ratings, args.user, args.item, args.rating)
    users, items = sorted({r[0] for r in rows}), sorted({r[1] for r in rows})
    order = np.random.default_rng(5).permutation(len(users))
    wanted = args.people * args.seeds
    public = [users[i] for i in order[wanted:]]
    others = set(public)
    if unrated := sorted(set(items) - {item for user, item, _ in rows if user in others}):
        raise DataError(
            f"{len(users)} people rate, of whom {wanted} are taken: the other {len(public)} do not "
            f"rate {len(unrated)} of the {len(items)} items, such as {unrated[0]!r}",
            "take fewer with --people or --seeds, or remove these items",
        )
    taken = order[:wanted].reshape(args.seeds, args.people)
    known = item_factors(rows, public, items) / HIDDEN**0.5
    args.out.mkdir(parents=True, exist_ok=True)
    names = {item: f"item{k}" for k, item in enumerate(items)}
    write_item_model(args.out / "model", list(names.values()), known, 0)
    for seed, some in enumerate(taken):
        chosen = {users[i] for i in some}
        source = args.out / f"ratings{seed}.csv"
        with source.open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(("user", "text", "rating"))
            table.writerows((u, names[j], v) for u, j, v in rows if u in chosen)
        rated = RatedPlan(
            RatedColumns(text="text", prompt_text=PROMPT), None, args.min_gap, args.own_items
        )
        plan = Plan("by:user", seed=seed, pairs_per_agent=args.pairs, rated=rated)
        index = make_shards([source], args.out / str(seed), plan)
        print(f"{args.out / str(seed)}: {index.num_agents} people")
    print(f"{args.out / 'model'}: knows {len(items)} items by {len(public)} others")


if __name__ == "__main__":
    main()
