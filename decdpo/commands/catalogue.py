"""Every subcommand in the order of use: what it does in a line, and how it is called.

The lines are texts of their own, since ``python -OO`` leaves modules without docstrings.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One subcommand.

    name : also that of its module, in the folder of its group. about : one line. examples : whole
    command lines; the first, of 76 characters at most, stands in ``decdpo --help``, all of them in
    the command's own help.
    """

    name: str
    about: str
    examples: tuple[str, ...]


GROUPS: dict[str, tuple[Command, ...]] = {
    "First, once for each machine": (
        Command(
            "doctor",
            "check this machine: Python, libraries, MPI, GPUs, memory, disk",
            (
                "decdpo doctor",
                "mpirun -n 4 decdpo doctor",
                "srun decdpo doctor --device cuda --staging device",
            ),
        ),
        Command(
            "completion",
            "print what makes a shell complete commands, options and keys",
            (
                'eval "$(decdpo completion bash)"',
                "decdpo completion zsh >> ~/.zshrc",
                "decdpo completion fish > ~/.config/fish/completions/decdpo.fish",
            ),
        ),
    ),
    "Data": (
        Command(
            "shard",
            "turn preference data into one shard per agent",
            (
                "decdpo shard data/preferences.jsonl.gz --partition by:user --out shards/demo",
                "decdpo shard pairs.parquet --agents 8 --holdout 0.2 --out shards/mine",
                "decdpo shard votes.csv --answers answer_a,answer_b --label winner "
                "--label-values A,B \\\n      --agents 8 --out shards/votes",
                "decdpo shard ratings.csv --items jokes.jsonl --prompt-text 'Tell me a joke.' "
                "--min-gap 3 \\\n      --partition by:user --holdout-items-per-user 0.2 "
                "--out shards/people",
                "mpirun -n 4 decdpo shard --reference path/to/model --out shards/mine",
            ),
        ),
        Command(
            "synthesize",
            "make the shards of synthetic users at a set distance",
            (
                "decdpo synthesize choices --agents 16 --kappa 2 --out shards/users",
                "decdpo synthesize trajectories --agents 8 --horizon 4 --out shards/paths",
            ),
        ),
    ),
    "Before training": (
        Command(
            "tokens",
            "show how pairs become tokens, and what is cut or scored",
            (
                "decdpo tokens shards/demo --model path/to/model --show 3",
                "decdpo tokens shards/demo --model path/to/model --max-length 1024 --json",
            ),
        ),
        Command(
            "config",
            "print every key of a configuration with its meaning and default",
            (
                "decdpo config > run.toml",
                "decdpo config --set algorithm.kind=choco",
                "decdpo config run.toml --json",
            ),
        ),
        Command(
            "topology",
            "show how fast graphs mix and what they cost",
            (
                "decdpo topology ring torus exponential --agents 16 64",
                "decdpo topology file --file edges.txt --plot graph.png",
            ),
        ),
        Command(
            "theory",
            "measure the constants of the theory, and what they advise",
            (
                "decdpo theory run.toml",
                "decdpo theory runs/ring --budget-bytes 1e9 --graphs ring exponential",
            ),
        ),
    ),
    "Training": (
        Command(
            "plan",
            "say what a run will need: memory, files, messages",
            (
                "decdpo plan run.toml --ranks 8 --memory 32",
                "decdpo plan run.toml --set policy.model=path/to/70B --ranks 64 --gpu-memory 80",
            ),
        ),
        Command(
            "submit",
            "fill a job template in, check it against the plan, submit it",
            (
                "decdpo submit train run.toml --nodes 2 --time 4:00:00 --dry-run",
                "decdpo submit chain run.toml --out runs/long --account project --partition gpu",
            ),
        ),
        Command(
            "train",
            "train the agents of one experiment",
            (
                "mpirun -n 4 decdpo train run.toml --out runs/ring",
                "decdpo train run.toml --out runs/star --set topology.graph=star",
                "srun decdpo train run.toml --out runs/gpu --set device.kind=cuda",
            ),
        ),
        Command(
            "resume",
            "continue a run from its newest checkpoint, on any number of ranks",
            (
                "mpirun -n 3 decdpo resume runs/ring",
                "decdpo resume runs/ring --set run.rounds=400",
                "decdpo resume runs/ring --set run.rounds=400 --set optim.lr=0.5 --allow optim.lr",
            ),
        ),
    ),
    "After training": (
        Command(
            "replay",
            "make a run that lost processes again in one, and compare the bits",
            ("decdpo replay runs/ring", "decdpo replay runs/ring --round 400 --json"),
        ),
        Command(
            "evaluate",
            "measure loss, accuracy and margins on held-out pairs",
            (
                "decdpo evaluate runs/ring",
                "decdpo evaluate runs/ring --round 150 --set device.kind=cpu --json",
            ),
        ),
        Command(
            "status",
            "say how runs stand: round, pace, time left, last checkpoint",
            ("decdpo status runs/ring", "decdpo status runs/* --json"),
        ),
        Command(
            "bundle",
            "pack what a support desk needs to know of a run",
            ("decdpo bundle runs/ring", "decdpo bundle runs/ring --log decdpo-4711.out"),
        ),
        Command(
            "report",
            "compare runs in a table, a figure or a page; explain rewards",
            (
                "decdpo report runs/ring runs/star --plot compared.png",
                "decdpo report runs/ring runs/star --html compared.html",
                "decdpo report runs/* --json",
            ),
        ),
        Command(
            "export",
            "write the average model, or one agent's, for use elsewhere",
            (
                "decdpo export runs/ring --out model",
                "decdpo export runs/ring --agent 3 --out model-3",
            ),
        ),
        Command(
            "checkpoint",
            "show, verify or fingerprint a checkpoint",
            (
                "decdpo checkpoint digest runs/ring",
                "decdpo checkpoint verify runs/ring --round 150",
                "decdpo checkpoint show runs/ring/checkpoints/round_000200",
            ),
        ),
    ),
    "Studies and measurements": (
        Command(
            "study",
            "run a grid of experiments and judge the claims of the papers",
            (
                "decdpo study topology --out studies/topology --quick",
                "decdpo study --list",
                "decdpo study local-steps --data data/preferences.jsonl.gz --out studies/own",
            ),
        ),
        Command(
            "bench",
            "measure a round of communication, a language model's step, a save",
            (
                "decdpo bench exchange --ranks 2,4",
                "decdpo bench exchange --graphs ring --sizes 1e6 --ranks 4 --out exchange.json",
                "decdpo bench step path/to/model --data shards/hh --batch 8",
                "decdpo bench checkpoint --mb 512 --folder /scratch/me",
            ),
        ),
    ),
}
"""The subcommands by what they are for."""

FOLDERS = dict(zip(GROUPS, ("machine", "data", "before", "training", "after", "studies")))
"""The folder of ``decdpo.commands`` in which the modules of a group lie."""

MODULES = {
    command.name: f"decdpo.commands.{FOLDERS[title]}.{command.name}"
    for title, group in GROUPS.items()
    for command in group
}
"""The module of each subcommand."""

COMMANDS = {command.name: command for group in GROUPS.values() for command in group}
"""The subcommands by name."""

EXIT_CODES = """exit status:
  0 done, 1 the run failed (NaN or infinity), 2 bad input,
  3 no usable checkpoint, 75 a neighbour was lost or stalled,
  85 stopped early and can be resumed"""


def listing() -> str:
    """Return all subcommands by group, each with its first example, as text of 80 columns."""
    lines = []
    for title, group in GROUPS.items():
        lines += ["", f"{title}:"]
        for command in group:
            lines += [f"  {command.name:<11} {command.about}", f"    {command.examples[0]}"]
    return "\n".join(lines[1:])


def examples(command: Command) -> str:
    """Return the examples of one subcommand, as the last part of its help."""
    head = "example:" if len(command.examples) == 1 else "examples:"
    return "\n".join([head, *(f"  {line}" for line in command.examples)])
