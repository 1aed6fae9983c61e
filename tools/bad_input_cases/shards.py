"""Bad shards and indices."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from bad_input_cases.steps import (
    TRAIN,
    Case,
    config,
    cut,
    edit_json,
    flip,
    forge_dataset,
    forge_index,
    shard,
    swap,
    write,
)

from decdpo.data.index import ShardIndex
from decdpo.data.shard import PreferenceShard
from decdpo.data.synthetic import Choices, synthesize


def choices(largest: float = 1.0) -> None:
    """Replace the shards by one of feature columns, the last feature being ``largest``."""
    shutil.rmtree("shards")
    index = synthesize(Choices(agents=1, pairs=4, dimension=2), "shards")
    features = np.ones((4, 2))
    features[3, 1] = largest
    shard = PreferenceShard.from_pairs(
        [("", "", "")] * 4,
        sharding=index.sharding,
        columns={"chosen_features": features, "rejected_features": np.zeros((4, 2))},
    )
    entry = index.agents[0]
    shard.save(Path("shards", entry.file))
    entry = replace(entry, digest=shard.digest, num_train=4, num_heldout=0)
    replace(index, agents=(entry,)).save()
    ShardIndex.load("shards").open(0)


CASES = [
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
    Case("feature columns under hashed features", TRAIN,
         ("4 of 4 pairs have no text", 'policy.features = "columns"'),
         prepare=lambda: (config("")(), choices())[0]),
    Case("a feature beyond float32 in a shard", TRAIN,
         ("feature 1", "source row 4 is 1e+308, which float32 cannot hold"),
         prepare=lambda: (config('[policy]\nfeatures = "columns"')(), choices(1e308))[0]),
    Case("a forged index", "train good.toml --out new", ("index.json", "agents[1].num_train"),
         prepare=lambda: forge_index(lambda found: found["agents"][1].update(num_train="9"))),
    Case("an index that leads elsewhere", "train good.toml --out new", ("agents[1].file",),
         prepare=lambda: forge_index(lambda found: found["agents"][1].update(file="/dev/zero"))),
    Case("an index that counts otherwise", "train good.toml --out new", ("index.json says 1",),
         prepare=lambda: forge_index(lambda found: found["agents"][1].update(num_train=1))),
    Case("a named pipe for an index", "train good.toml --out new", ("a named pipe",),
         prepare=lambda: (os.remove("shards/index.json"), os.mkfifo("shards/index.json"))[1]),
    Case("a named pipe for a shard", "train good.toml --out new", ("agent_0003", "a named pipe"),
         prepare=lambda: (os.remove(shard(3)), os.mkfifo("shards/agent_0003.h5"))[1]),
    Case("a shard whose text is elsewhere", "train good.toml --out new", ("text is a link",),
         prepare=lambda: forge_dataset(shard(3), "text", h5py.ExternalLink("pipe", "x"))),
    Case("a shard in chunks without end", "train good.toml --out new", ("spans is stored in",),
         prepare=lambda: forge_dataset(shard(3), "spans", None)),
]
