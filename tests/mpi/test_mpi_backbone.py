"""The frozen model of adapters on several ranks of a node: one copy of its pages, if it may be."""

import re
from pathlib import Path

import pytest
from random_model import SMALL, byte_tokenizer, write_random

from decdpo.policies.causal_lm import CausalLM
from decdpo.policies.lm.adapters.layers import LoraOptions
from decdpo.policies.lm.mapped import MAPS

pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")
pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(not MAPS.exists(), reason="this system does not say what is mapped"),
]


def mapping(folder):
    """Return the kB of memory that lie in the weights, the share of this process, and copies."""
    found = {"Rss": 0, "Pss": 0, "Anonymous": 0}
    inside = False
    for line in MAPS.with_name("smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(folder / "model.safetensors"))
        elif inside and (name := line.split(":")[0]) in found:
            found[name] += int(line.split()[1])
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranks_share_the_pages_of_a_frozen_model_of_their_type(tmp_path, agree, dtype):
    folder = Path(agree.texts(str(tmp_path))[0]) / "wide"
    if agree.rank == 0:
        sizes = {**SMALL, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2}
        write_random(folder, byte_tokenizer(()), "float32", **sizes)
    ranks = len(agree.texts("written"))
    policy = CausalLM(folder, dtype=dtype, max_length=64, lora=LoraOptions(2, 4.0))
    frozen = [p for p in policy._module.parameters() if not p.requires_grad]
    whole = sum(p.nbytes for p in frozen) / 1024
    assert all(bool(p.detach().isfinite().all()) for p in frozen)
    agree.texts("every page was looked at")
    found = mapping(folder)
    agree.texts("measured")
    if dtype == "bfloat16":
        agree(found["Rss"] < 0.1 * whole, f"a file of another type is still mapped: {found}")
        agree("every process has a copy" in policy.notes[-1], f"notes: {policy.notes}")
        return
    agree(found["Rss"] > 0.9 * whole > 4000, f"{whole} kB are not mapped: {found}")
    agree(not found["Anonymous"], f"written to: {found}")
    agree(found["Pss"] < 1.2 * found["Rss"] / ranks, f"not shared by {ranks} ranks: {found}")
    agree("is shared by the processes" in policy.notes[-1], f"notes: {policy.notes}")
