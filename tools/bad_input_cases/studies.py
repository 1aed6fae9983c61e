"""Bad inputs of theory, studies, benchmarks and training itself."""

import os

from bad_input_cases.steps import TRAIN, Case, config, write

CASES = [
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
    Case("MPI ranks for a few agents", "bench exchange --ranks 0", ("0",)),
    Case("diverging", TRAIN, ("agent", "round", "set optim.clip_norm"), 1,
         config("[optim]\nlr = 1e38\n[policy]\ndimension = 64\n[run]\nrounds = 50\n[loss]\n"
                "beta = 1e30")),
]
