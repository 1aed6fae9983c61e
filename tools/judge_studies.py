"""Judge the claims of studies, and draw their figures, from tables: nothing is run again.

    python tools/judge_studies.py data/studies                     # counts, as in its README
    python tools/judge_studies.py data/studies --claims hh-local-steps
    python tools/judge_studies.py data/studies --draw OUT          # figures into the folder OUT

A table is final.csv or table.csv of a study, kept as NAME.csv (hh-NAME.csv of HH-RLHF,
lora-NAME.csv of a language model's adapters on it, cross-NAME.csv of agents of unlike sets of
data, ukp-NAME.csv of UKPConvArg1); curves over the rounds lie in curves/NAME.csv.gz. In the folder
of a study itself the command of the study does the same, from its cells.
"""

import argparse
import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

from decdpo.report.study_figures import draw
from decdpo.studies.catalogue import STUDIES, builtin
from decdpo.studies.table import Table


def value(text: str):
    """Return what a field of a CSV file stands for; text that is no number stays text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def read(path: Path) -> Table:
    """Return the table of a CSV file, compressed or not; a cell is a seed with its labels."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with opened as stream:
        rows = [{k: value(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]
    for number, row in enumerate(rows):
        row.setdefault("cell", number)
        row.setdefault("seed", 0)
        if row.get("kind") == "mixing":
            row.setdefault("rho", 1 - 1 / row["inverse_gap"])
        if row.get("kind") == "training":
            row.setdefault("round", 40)
    return Table(rows)


def tables(folder: Path):
    """Yield (name, study, final values, curves) of every built-in study that has a table."""
    for path in sorted(folder.glob("*.csv")):
        name = path.stem
        for origin in ("hh-", "lora-", "cross-", "ukp-"):
            name = name.removeprefix(origin)
        if name in STUDIES:
            curves = folder / "curves" / f"{path.stem}.csv.gz"
            yield path.stem, builtin(name), read(path), read(curves) if curves.exists() else None


def main() -> None:
    """Print the outcomes; draw if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--claims", nargs="*", metavar="NAME", help="each claim; without NAME all")
    parser.add_argument("--draw", type=Path, metavar="OUT")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these tables")
    args = parser.parse_args()
    for name, study, final, curves in tables(args.folder):
        if args.only and name not in args.only:
            continue
        # Of `rates`, claims on every record are judged here by the last one of each run.
        found = [(claim, claim.judge(final)) for claim in study.claims()]
        words = [verdict.word for _, verdict in found]
        counts = "  ".join(f"{words.count(w)} {w}" for w in ("held", "not held", "undecided"))
        print(f"{name:<24}{counts}")
        if args.claims is not None and (not args.claims or name in args.claims):
            for claim, verdict in found:
                print(f"  {verdict.word:<10} {claim.text}\n    {verdict.numbers}")
                if verdict.why:
                    print(f"    {verdict.why}")
        if args.draw is not None:
            args.draw.mkdir(parents=True, exist_ok=True)
            for number, figure in enumerate(study.figures(curves or final)):
                if number == 0 and figure.lines:
                    draw(replace(figure, name=name), args.draw)


if __name__ == "__main__":
    main()
