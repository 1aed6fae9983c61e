"""Bad shards and indices."""

from pathlib import Path

from bad_input_cases.steps import TRAIN, Case, config, cut, edit_json, flip, shard, swap, write

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
]
