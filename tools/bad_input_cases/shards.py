"""Bad shards and indices."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from bad_input_cases.steps import TRAIN, Case, config, cut, edit_json, flip, shard, swap, write

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
]
