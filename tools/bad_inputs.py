"""Feed decdpo a page of bad inputs and print what it answers to each.

    python tools/bad_inputs.py [--only WORD]

Every case must end with its exit status and one clear message that says what is wrong, which value
and how to mend it: no traceback, no hang, no success. Exit status 0 if all do.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decdpo.cli import main as decdpo

DATA = Path(__file__).resolve().parents[1] / "data" / "preferences.jsonl.gz"
LIMIT = 60
"""Seconds after which a command counts as hanging."""


@dataclass(frozen=True)
class Case:
    """One bad input: how to make it, the command, its exit status, and words of the message."""

    name: str
    words: str
    expect: tuple[str, ...]
    status: int = 2
    prepare: Callable[[], None] = lambda: None


def config(text: str) -> Callable[[], None]:
    """Return a step that writes ``bad.toml``: the good configuration with ``text`` after it."""
    return lambda: write("bad.toml", '[data]\nshards = "shards"\n' + text)


def write(name: str, text: str | bytes) -> None:
    """Write a file of the working folder."""
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)


def flip(path: str, where: float) -> None:
    """Flip one bit of a file, at a share of its length."""
    content = bytearray(Path(path).read_bytes())
    content[int(where * (len(content) - 1))] ^= 0x10
    Path(path).write_bytes(content)


def cut(path: str, share: float = 0.5) -> None:
    """Cut a file to a share of its length."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(share * len(content))])


def swap(one: str, other: str) -> None:
    """Exchange two files."""
    first, second = Path(one).read_bytes(), Path(other).read_bytes()
    Path(one).write_bytes(second)
    Path(other).write_bytes(first)


def sparse(path: str, indices: list[int], indptr: list[int]) -> None:
    """Write a 2 x 2 matrix in scipy's format, with these indices, sound or not."""
    parts = {"indices": np.array(indices), "indptr": np.array(indptr), "format": np.array(b"csr")}
    np.savez(path, data=np.ones(len(indices)), shape=np.array([2, 2]), **parts)


def edit_json(path: str, key: str, value: object) -> None:
    """Change one key of a JSON file."""
    content = json.loads(Path(path).read_text())
    content[key] = value
    Path(path).write_text(json.dumps(content))


def rows(*records: dict[str, object]) -> str:
    """Return JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


PAIR = {"prompt": "p", "chosen": "a good answer", "rejected": "a bad one"}
TRAIN = "train bad.toml --out new"
NEWEST = "run/checkpoints/round_000004"


def both_checkpoints(harm: Callable[[str], None]) -> Callable[[], None]:
    """Return a step that harms every checkpoint of the run."""
    return lambda: [harm(str(path)) for path in Path("run/checkpoints").iterdir()] and None


CASES = [
    # Configurations
    Case("no such file", "train nowhere.toml --out new", ("nowhere.toml", "No such file")),
    Case("not TOML", TRAIN, ("not valid TOML",), prepare=lambda: write("bad.toml", "[run")),
    Case("not text", TRAIN, ("not a text file",), prepare=lambda: write("bad.toml", b"\xff\xfe")),
    Case("unknown section", TRAIN, ("[optimizer]", "optim"), prepare=config("[optimizer]")),
    Case("unknown key", TRAIN, ("run.round", "rounds"), prepare=config("[run]\nround = 1")),
    Case(
        "a string for a number", TRAIN, ("run.rounds = '9'",), prepare=config('[run]\nrounds = "9"')
    ),
    Case("a negative number", TRAIN, ("optim.lr = -1",), prepare=config("[optim]\nlr = -1")),
    Case("nan", TRAIN, ("optim.lr",), prepare=config("[optim]\nlr = nan")),
    Case("infinity", TRAIN, ("optim.lr",), prepare=config("[optim]\nlr = inf")),
    Case("unknown loss", TRAIN, ("'dpoo'", "dpo"), prepare=config('[loss]\nkind = "dpoo"')),
    Case(
        "an option that the loss ignores",
        TRAIN,
        ("loss.label_smoothing", "not used", "ipo"),
        prepare=config('[loss]\nkind = "ipo"\nlabel_smoothing = 0.1'),
    ),
    Case(
        "a loss constant out of range",
        TRAIN,
        ("label_smoothing", "0.7"),
        prepare=config("[loss]\nlabel_smoothing = 0.7"),
    ),
    Case(
        "a loss without the column it needs",
        TRAIN,
        ("odpo", "score"),
        prepare=config('[loss]\nkind = "odpo"'),
    ),
    Case(
        "an option that the algorithm ignores",
        TRAIN,
        ("algorithm.overlap", "not used"),
        prepare=config('[algorithm]\nkind = "local"\noverlap = true'),
    ),
    Case(
        "an exact method that clipping makes inexact",
        TRAIN,
        ("exact_diffusion", "optim.clip_norm = 0.5", "gradient_tracking"),
        prepare=config('[algorithm]\nkind = "exact_diffusion"\n[optim]\nclip_norm = 0.5'),
    ),
    Case(
        "a topology without neighbours",
        TRAIN,
        ("[topology]", "local"),
        prepare=config('[algorithm]\nkind = "local"\n[topology]\ngraph = "ring"'),
    ),
    Case(
        "an override that is none",
        "train good.toml --out new --set rounds=3",
        ("--set 'rounds=3'", "section.key=value"),
    ),
    Case("no shards named", "train empty.toml --out new", ("data.shards is empty",),
         prepare=lambda: write("empty.toml", "")),
    Case("too many agents", TRAIN, ("agents.count = 9", "8 shards"),
         prepare=config("[agents]\ncount = 9")),
    Case("no model folder", TRAIN, ("policy.model",),
         prepare=config('[policy]\nkind = "causal_lm"')),
    Case("a model folder that is not there", TRAIN, ("no-model",),
         prepare=config('[policy]\nkind = "causal_lm"\nmodel = "no-model"')),
    Case("a GPU that is not there", TRAIN, ("no GPU",),
         prepare=config('[policy]\nkind = "causal_lm"\nmodel = "."\n[device]\nkind = "cuda"')),
    Case("letters from a GPU where the CPU computes", TRAIN, ("device.staging", "ignored"),
         prepare=config('[device]\nkind = "cpu"\nstaging = "device"')),
    Case("letters from a GPU that is not there", TRAIN, ("device.staging", "CPU"),
         prepare=config('[policy]\nkind = "causal_lm"\nmodel = "."\n'
                        '[device]\nstaging = "device"')),
    Case("feature columns that are not there", TRAIN, ("feature columns",),
         prepare=config('[policy]\nfeatures = "columns"')),
    # Graphs
    Case("unknown graph", TRAIN, ("'rng'", "ring"), prepare=config('[topology]\ngraph = "rng"')),
    Case("a hypercube of 6", TRAIN, ("hypercube", "6"),
         prepare=config('[agents]\ncount = 6\n[topology]\ngraph = "hypercube"')),
    Case("a torus of 7", TRAIN, ("torus", "7"),
         prepare=config('[agents]\ncount = 7\n[topology]\ngraph = "torus"')),
    Case("uniform weights on a star", TRAIN, ("uniform", "regular"),
         prepare=config('[topology]\ngraph = "star"\nweights = "uniform"')),
    Case(
        "a disconnected graph",
        "topology file --file g.txt --agents 4",
        ("2 components",),
        prepare=lambda: write("g.txt", "0 1\n2 3\n"),
    ),
    Case(
        "an edge that is none",
        "topology file --file g.txt --agents 3",
        ("g.txt", "line 2"),
        prepare=lambda: write("g.txt", "0 1\n1 x\n"),
    ),
    Case(
        "a matrix with a negative weight",
        "topology file --file w.csv --agents 2",
        ("w.csv", "-0.5"),
        prepare=lambda: write("w.csv", "1.5,-0.5\n-0.5,1.5\n"),
    ),
    Case(
        "a matrix whose rows do not sum to one",
        "topology file --file w.csv --agents 2",
        ("w.csv", "row"),
        prepare=lambda: write("w.csv", "0.5,0.4\n0.5,0.5\n"),
    ),
    Case("a graph of no agents", "topology ring --agents 0", ("0",)),
    Case("a graph of agents without end", "topology ring --agents 99999999999999999999",
         ("too many",)),
    Case("an id without end", "topology file --file g.txt", ("g.txt, line 1",),
         prepare=lambda: write("g.txt", "0 99999999999999999999\n")),
    Case("a sparse matrix that points outside", "topology file --file w.npz", ("w.npz", "indices"),
         prepare=lambda: sparse("w.npz", [0, 9], [0, 1, 2])),
    Case("a sparse matrix whose rows go back", "topology file --file w.npz", ("w.npz", "indptr"),
         prepare=lambda: sparse("w.npz", [0, 1], [0, 5, 2])),
    Case("noise for a matrix", "topology file --file w.npy", ("w.npy", "neither a .npy"),
         prepare=lambda: write("w.npy", bytes(range(128, 256)))),
    Case("a matrix of no agents", "topology file --file w.csv", ("w.csv", "(0,)"),
         prepare=lambda: write("w.csv", "")),
    Case("a picture of no kind", "topology ring --plot x.txt", ("x.txt", ".svg")),
    # Sources
    Case("no such source", "shard nowhere.jsonl --agents 2 --out s", ("nowhere.jsonl",)),
    Case("an empty source", "shard empty.jsonl --agents 2 --out s", ("empty.jsonl",),
         prepare=lambda: write("empty.jsonl", "")),
    Case("a broken line", "shard bad.jsonl --agents 2 --out s", ("bad.jsonl", "2"),
         prepare=lambda: write("bad.jsonl", rows(PAIR) + '{"prompt": \n')),
    Case("columns that nobody knows", "shard bad.jsonl --agents 2 --out s", ("column",),
         prepare=lambda: write("bad.jsonl", rows({"a": 1, "b": 2}))),
    Case("a cut gzip", "shard cut.jsonl.gz --agents 2 --out s", ("cut.jsonl.gz",),
         prepare=lambda: write("cut.jsonl.gz", gzip.compress(rows(PAIR).encode() * 99)[:60])),
    Case("more agents than pairs", "shard few.jsonl --agents 5 --out s", ("5",),
         prepare=lambda: write("few.jsonl", rows(PAIR, {**PAIR, "chosen": "fine"}))),
    Case("a column that is not there", "shard data.jsonl.gz --partition by:nobody --out s",
         ("nobody",)),
    Case("an unknown partition", "shard data.jsonl.gz --partition evenly --agents 2 --out s",
         ("evenly",)),
    Case("all held out", "shard data.jsonl.gz --agents 2 --holdout 1.0 --out s", ("holdout",)),
    Case("a drop under --strict", "shard odd.jsonl --agents 1 --strict --out s", ("source rows 2",),
         prepare=lambda: write("odd.jsonl", rows(PAIR, {**PAIR, "chosen": ""}, PAIR, PAIR))),
    Case("a source given twice", "shard plain.jsonl ./plain.jsonl --agents 2 --out s",
         ("same file",)),
    Case("a list of nothing", "shard none.json --agents 2 --out s", ("none.json holds no record",),
         prepare=lambda: write("none.json", "[]")),
    Case("a table of nothing", "shard none.csv --agents 2 --out s", ("none.csv holds no record",),
         prepare=lambda: write("none.csv", "prompt,chosen,rejected\n")),
    Case("a table with two columns of one name", "shard odd.csv --agents 2 --out s",
         ("odd.csv has no table header",), prepare=lambda: write("odd.csv", "a,b,b\n1,2,3\n")),
    Case("UTF-16", "shard bad.jsonl --agents 2 --out s", ("bad.jsonl",),
         prepare=lambda: write("bad.jsonl", rows(PAIR).encode("utf-16"))),
    Case("Latin-1", "shard bad.jsonl --agents 2 --out s", ("bad.jsonl is not UTF-8",),
         prepare=lambda: write("bad.jsonl", rows(PAIR).encode() + b'{"prompt": "\xfc"}\n')),
    Case("brackets without end", "shard bad.json --agents 2 --out s", ("bad.json, element 1",),
         prepare=lambda: write("bad.json", "[" * 100_000)),
    Case("a gzip with more behind it", "shard a.gz --agents 2 --out s", ("a.gz cannot be read",),
         prepare=lambda: write("a.gz", gzip.compress(rows(PAIR).encode()) + b"more")),
    Case("a link to itself", "shard loop --agents 2 --out s", ("loop",),
         prepare=lambda: os.symlink("loop", "loop")),
    Case("agents without end", "shard plain.jsonl --agents 99999999999999999999 --out s",
         ("99999999999999999999 agents", "pairs")),
    Case("a negative seed", "shard plain.jsonl --agents 2 --seed -1 --out s", ("seed -1",)),
    Case("a hold-out that is no number", "shard plain.jsonl --agents 2 --holdout nan --out s",
         ("holdout nan",)),
    Case("shards in a file", "shard plain.jsonl --agents 2 --out good.toml/s", ("in one",)),
    Case("shards with an endless name", f"shard plain.jsonl --agents 2 --out {'x' * 300}",
         ("File name too long",)),
    Case("users too large for memory", "synthesize choices --dimension 100000000000000 --out s",
         ("memory",)),
    Case("a distance beyond all numbers", "synthesize choices --kappa 1e300 --out s", ("kappa",)),
    Case("shards that exist", "shard data.jsonl.gz --agents 2 --out shards", ("shards",)),
    # Shards
    Case("a folder without shards", TRAIN, ("index.json",),
         prepare=lambda: (write("bad.toml", '[data]\nshards = "."'))),
    Case("a missing shard", TRAIN, ("agent_0003",),
         prepare=lambda: (config("")(), next(Path("shards").glob("*3.h5")).unlink())[0]),
    Case("a cut shard", TRAIN, ("shards/",),
         prepare=lambda: (config("")(), cut(shard(3)))[0]),
    Case("a flipped bit in a shard", TRAIN, ("shards/",),
         prepare=lambda: (config("")(), flip(shard(3), 0.6))[0]),
    Case("swapped shards", TRAIN, ("agent",),
         prepare=lambda: (config("")(), swap(shard(1), shard(2)))[0]),
    Case("a foreign file", TRAIN, ("shards/",),
         prepare=lambda: (config("")(), write(shard(3), "hello"))[0]),
    Case("an index that is none", "evaluate run", ("index.json cannot be read",),
         prepare=lambda: write("shards/index.json", "[" * 100_000)),
    Case("an edited index", TRAIN, ("index.json", "checksum"),
         prepare=lambda: (config("")(), edit_json("shards/index.json", "seed", 7))[0]),
    # Runs and checkpoints
    Case("a run that exists", "train good.toml --out run", ("already holds a run", "resume")),
    Case("an output folder that is a file", "train good.toml --out good.toml", ("good.toml",)),
    Case("resuming nothing", "resume nowhere", ("nowhere", "config.toml"), 3),
    Case("another model", "resume run --set policy.dimension=128", ("policy.dimension",), 3),
    Case("another graph", "resume run --set topology.graph=star", ("topology.graph",), 3),
    Case("another step size", "resume run --set optim.lr=3", ("--allow optim.lr",), 3),
    Case("an unknown key to allow", "resume run --allow lr --set optim.lr=3", ("--allow lr",)),
    Case("no checkpoint left", "resume run", ("no checkpoint",), 3,
         lambda: shutil.rmtree("run/checkpoints")),
    Case("cut checkpoints", "resume run", ("no checkpoint is whole",), 3,
         both_checkpoints(lambda path: cut(path + "/part_0000.h5"))),
    Case("no manifests", "resume run", ("checkpoint",), 3,
         both_checkpoints(lambda path: Path(path, "manifest.json").unlink())),
    Case("a flipped bit", f"checkpoint verify {NEWEST}", ("part_0000.h5",), 3,
         lambda: flip(NEWEST + "/part_0000.h5", 0.4)),
    Case("a tampered manifest", f"checkpoint verify {NEWEST}", ("manifest",), 3,
         lambda: edit_json(NEWEST + "/manifest.json", "round", 9)),
    Case("a checkpoint that is none", "checkpoint show good.toml", ("good.toml",), 3),
    Case("a round that was not saved", "evaluate run --round 3", ("3",), 3),
    Case("evaluating nothing", "evaluate nowhere", ("nowhere",), 3),
    Case("an agent that is none", "export run --out x --agent 8", ("--agent 8", "0 to 7")),
    Case("exporting into a full folder", "export run --out shards", ("shards", "not empty")),
    Case("metrics that are none", "resume run --set run.rounds=6", ("metrics.jsonl", "line 1"),
         prepare=lambda: write("run/metrics.jsonl", "x\n" + Path("run/metrics.jsonl").read_text())),
    Case("a manifest that is none", f"checkpoint show {NEWEST}", ("not the manifest",), 3,
         lambda: write(NEWEST + "/manifest.json", "[]")),
    Case("a part that is missing", f"checkpoint show {NEWEST}", ("part_0000.h5 is missing",), 3,
         lambda: Path(NEWEST, "part_0000.h5").unlink()),
    Case("exporting into a file", "export run --out good.toml", ("good.toml: Not a directory",)),
    Case("exporting below a file", "export run --out good.toml/x", ("good.toml/x",)),
    Case("exporting through a dangling link", "export run --out gone", ("gone",),
         prepare=lambda: os.symlink("nowhere/x", "gone")),
    Case("reporting records that are none", "report run", ("metrics.jsonl, line 1",),
         prepare=lambda: write("run/metrics.jsonl", b"\xff\n{}\n")),
    Case("reporting a record of something else", "report run", ("has no", "round 1"),
         prepare=lambda: write("run/metrics.jsonl", '{"round": 1}\n')),
    Case("drawing into no file", "report run --plot /", ("--plot",)),
    # Theory, studies, benchmarks
    Case("a step beyond all numbers", "theory good.toml --iterations 2 --set optim.lr=1e300",
         ("optim.lr = 1e+300",)),
    Case("a budget that is no number", "theory good.toml --budget-bytes nan", ("budget", "nan")),
    Case("two budgets", "theory good.toml --budget-bytes 1 --budget-rounds 1", ("exactly one",)),
    Case("a study that is a folder", "study run.toml --out s", ("run.toml: Is a directory",),
         prepare=lambda: os.mkdir("run.toml")),
    Case("a study without end", "study bad.toml --out s", ("bad.toml is not valid TOML",),
         prepare=lambda: write("bad.toml", "x = " + "[" * 100_000)),
    Case("an override of what a study varies",
         "study local-steps --quick --out s --set algorithm.local_steps=2",
         ("algorithm.local_steps", "grid of your own")),
    Case("a study among shards", "study methods --quick --out shards", ("shards holds shards",)),
    Case("a study in a run", "study methods --quick --out run", ("run holds a run",)),
    Case("no graph to measure", "bench exchange --graphs ,", ("--graphs names none",)),
    Case("a benchmark kept in a folder", "bench exchange --out run", ("--out run",)),
    Case("a limit that is none", "bench exchange --limit nan", ("--limit is nan",)),
    # The environment
    Case("MPI ranks for a few agents", "bench exchange --ranks 0", ("0",)),
    Case("diverging", TRAIN, ("agent", "round", "unless algorithm.kind = 'exact_diffusion'"), 1,
         config("[optim]\nlr = 1e38\n[policy]\ndimension = 64\n[run]\nrounds = 50\n[loss]\n"
                "beta = 1e30")),
]


def shard(agent: int) -> str:
    """Return the path of an agent's shard."""
    return str(next(Path("shards").glob(f"*{agent}.h5")))


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise ``TimeoutError`` in the block after so many seconds."""

    def expire(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(words: str) -> tuple[int | str, str]:
    """Run a command in this process; return its status and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            with limited(LIMIT):
                status: int | str = decdpo(words.split())
        except TimeoutError:
            status = "hang"
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException as fault:
            status = f"{type(fault).__name__}: {fault}"
    return status, out.getvalue()


def faults(case: Case) -> tuple[list[str], str]:
    """Run a case in the current folder; return what is wrong with the answer, and the answer."""
    case.prepare()
    status, said = answer(case.words)
    wrong = [f"status {status}, not {case.status}"] if status != case.status else []
    wrong += [f"does not say {word!r}" for word in case.expect if word not in said]
    if "Traceback" in said:
        wrong.append("shows a traceback")
    if said.count("decdpo: error:") + said.count("decdpo checkpoint verify") < 1:
        wrong.append("says no error")
    return wrong, said


def make_folder(folder: Path) -> None:
    """Put a good configuration, good shards and a finished run into ``folder``."""
    shutil.copy(DATA, folder / "data.jsonl.gz")
    with contextlib.chdir(folder):
        good = '[data]\nshards = "shards"\n[run]\nrounds = 4\n[policy]\ndimension = 64\n'
        write("good.toml", good + "[checkpoint]\nevery = 2\n")
        # Without the score columns, which one of the losses needs.
        with gzip.open("data.jsonl.gz", "rt") as file:
            kept = [json.loads(line) for line in file]
        names = ("user", "prompt", "chosen", "rejected")
        write("plain.jsonl", rows(*({name: row[name] for name in names} for row in kept[::8])))
        for words in (
            "shard plain.jsonl --agents 8 --out shards",
            "train good.toml --out run",
        ):
            status, said = answer(words)
            if status != 0:
                raise SystemExit(f"decdpo {words}: status {status}\n{said}")


def main() -> int:
    """Run all cases and print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD", help="cases whose name has this word")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = count = 0
    with tempfile.TemporaryDirectory(prefix="decdpo-bad-") as work:
        template = Path(work, "template")
        template.mkdir()
        make_folder(template)
        for number, case in enumerate(CASES):
            if args.only not in case.name:
                continue
            folder = Path(work, str(number))
            shutil.copytree(template, folder)
            with contextlib.chdir(folder):
                wrong, said = faults(case)
            shutil.rmtree(folder)
            count += 1
            failed += bool(wrong)
            lines = [line for line in said.strip().splitlines() if line.strip()]
            print(f"{count:2d}. {case.name}: decdpo {case.words} -> {case.status}")
            print("".join(f"      {line}\n" for line in lines[-6:]), end="")
            if wrong:
                print(f"    WRONG: {'; '.join(wrong)}")
            sys.stdout.flush()
    print(f"{count - failed} of {count} answered well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
