"""Bad runs, records and checkpoints."""

import os
import shutil
from pathlib import Path

from bad_input_cases.steps import NEWEST, Case, both_checkpoints, cut, edit_json, flip, write

CASES = [
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
]
