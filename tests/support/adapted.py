"""What tests of adapters and personal parts share: three pairs, and short runs of four users."""

import json

import torch
from shells import Shell

from decdpo.data.shard import Pair, PreferenceShard
from decdpo.params.flat import FlatParams

PAIRS = [
    Pair("Once upon a time", " there was a girl.", " the tax was due."),
    Pair("The dog", " ran.", " said that it would not."),
    Pair("Q", " yes", " no, and no again"),
]

ADAPTED = """[run]
rounds = 4
[data]
shards = "{shards}"
batch_size = 2
[policy]
kind = "causal_lm"
model = "{model}"
max_length = 64
[checkpoint]
every = 2
[policy.lora]
rank = 2
"""


def encoded(policy):
    """Return ``PAIRS`` as a policy reads them."""
    return policy.encode(PreferenceShard.from_pairs(PAIRS, agent=2))


def near_start(policy, noise, seed=0):
    """Return parameters that lie normally distributed about the start, ``noise`` apart."""
    x = policy.initial()
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return FlatParams(policy.layout, x + noise * drawn)


def short_rows():
    """Return 24 short pairs, six of each of four users."""
    return [
        {"prompt": f"Q{i} ", "chosen": f"yes {i % 5}", "rejected": f"no{i % 3}", "user": i % 4}
        for i in range(24)
    ]


def shard_users(folder, rows, name="users", holdout=0.2):
    """Shard ``rows`` by user; return the folder of the shards."""
    shell = Shell(folder)
    source = shell.write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    words = ["--partition", "by:user", "--holdout", str(holdout), "--out", name]
    shell("shard", source, *words)
    return folder / name
