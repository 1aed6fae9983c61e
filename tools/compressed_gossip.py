"""Measure what compressed gossip saves on the wire, and what it costs in loss.

    python tools/compressed_gossip.py SHARDS [--ranks 4] [--rounds 300] [--set KEY=VALUE ...]

Trains under mpirun: DSGD with plain messages, then CHOCO-SGD with each codec, all on the same
batches. Prints the bytes that left the processes (headers included), and the loss of the average
model on all training and on all held-out pairs.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from decdpo.comm.mpi.mpirun import capture

CONFIG = """[run]
rounds = {rounds}
[data]
shards = "{shards}"
batch_size = 64
[optim]
lr = 10.0
[log]
every = {rounds}
[checkpoint]
every = 0
"""
LIMIT = 3600.0
"""Seconds after which a run counts as hanging."""
SIXTEENTH = 0.0615
"""Share of the bytes that a sparse code fills, so that a header leaves it below 1/16."""

RUNS = {
    "plain": {},
    "topk": {"codec": "topk", "ratio": SIXTEENTH, "gamma": 0.3},
    "randomk": {"codec": "randomk", "ratio": SIXTEENTH},
    "int4": {"codec": "int4"},
    "int8": {"codec": "int8"},
    "bf16": {"codec": "bf16"},
}


def train(folder: Path, out: Path, ranks: int, words: list[str]) -> int:
    """Train under mpirun; return the bytes sent."""
    program = [sys.executable, "-m", "decdpo", "train", str(folder / "run.toml"), "--out", str(out)]
    code, said, errors = capture(ranks, [*program, *words], limit=LIMIT)
    if code:
        sys.exit(f"{out.name} failed:\n{said}{errors}")
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return int(sum(record["system"]["bytes_between_processes"] for record in records))


def losses(run: Path) -> tuple[float, float]:
    """Return the average model's loss on all training pairs and on all held-out pairs."""
    import numpy as np

    from decdpo.metrics.evaluation import average_model, pooled
    from decdpo.session.experiment import prepare
    from decdpo.session.job import Job, launch
    from decdpo.session.record import read_config

    found: list[float] = []

    def measure(job: Job) -> int:
        experiment = prepare(job, read_config(run, []), run, training=False)
        experiment.store.load(experiment.states(), required=True)
        world, agents, objective = experiment.world, experiment.agents, experiment.objective
        mean = average_model(world, agents)
        for rows in (lambda d: range(d.num_train), lambda d: d.heldout_rows):
            stats = {a.id: objective.evaluate(mean, a.data, np.array(rows(a.data))) for a in agents}
            found.append(pooled(world, stats).means()["loss"])
        return 0

    launch(measure, "local")
    return found[0], found[1]


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    args = parser.parse_args()
    print(f"{'':<9}{'bytes':>12}{'plain / it':>12}{'train loss':>12}{'held out':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        config = CONFIG.format(rounds=args.rounds, shards=args.shards.resolve())
        (home / "run.toml").write_text(config)
        plain = None
        for name, options in RUNS.items():
            words = ["algorithm.kind=choco"] if options else []
            words += [f"algorithm.{key}={value}" for key, value in options.items()]
            settings = [word for key in (*args.set, *words) for word in ("--set", key)]
            sent = train(home, home / name, args.ranks, settings)
            found = sent, *losses(home / name)
            plain = plain or found
            ratio, change = plain[0] / sent, found[1] / plain[1] - 1
            print(
                f"{name:<9}{sent:>12}{ratio:>12.2f}{found[1]:>12.4f}{found[2]:>10.4f}"
                f"   training loss {change:+.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
