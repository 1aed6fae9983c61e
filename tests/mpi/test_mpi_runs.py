"""Whole runs on the ranks of these tests: the bits of one process, also after a stop."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from shells import CONFIG, RankShell, shards_of_users
from small_models import write_model

pytestmark = pytest.mark.mpi
PAIRS = 16
"""Pairs of each of the 8 users."""
ALGORITHMS = {
    "dsgd": ["algorithm.local_steps=2", "optim.kind=adamw", "optim.lr=0.01"],
    "dsgd with privacy": ["algorithm.local_steps=2", "privacy.kind=dp_sgd", "privacy.clip=0.1"],
    "fedavg at own pace": [
        "pace.kind=given", "pace.steps=[1, 2, 3, 1, 2, 3, 1, 2]", "algorithm.weighting=pairs",
    ],
    "dsgd in fragments": ["algorithm.fragments=5", "optim.momentum=0.9"],
    "centralized": ["optim.kind=adamw", "optim.lr=0.01"],
    "fedavg": ["algorithm.participants=3", "algorithm.local_steps=2", "optim.momentum=0.9"],
    "fedavg with momentum": ["algorithm.participants=2", "algorithm.server_momentum=0.9"],
    "outer_momentum": ["algorithm.local_steps=2", "optim.kind=adamw", "optim.lr=0.01"],
    "gossip_outer_momentum": [
        "algorithm.local_steps=2", "optim.kind=adamw", "topology.graph=random_matching",
    ],
    "gossip_outer_momentum in fragments": ["algorithm.local_steps=2", "algorithm.fragments=3"],
    "gradient_tracking": ["optim.momentum=0.9", "topology.graph=one_peer_exponential"],
    "exact_diffusion": ["topology.graph=random_matching"],
    "gradient_tracking in fragments": ["algorithm.fragments=5", "optim.momentum=0.9"],
    "exact_diffusion in fragments": ["algorithm.fragments=3", "topology.graph=random_matching"],
    "quasi_global_momentum in fragments": ["algorithm.fragments=5", "algorithm.overlap=true"],
    "push_sum in fragments": ["algorithm.fragments=3", "topology.graph=exponential"],
    "choco in fragments": ["algorithm.fragments=3", "algorithm.codec=int8"],
    "clipped_gossip in fragments": ["algorithm.fragments=3", "topology.graph=complete"],
    "trimmed_mean in fragments": ["algorithm.fragments=3", "topology.graph=complete"],
    "quasi_global_momentum": ["algorithm.local_steps=2", "topology.graph=exponential"],
    "push_sum": ["optim.momentum=0.9", "topology.graph=exponential"],
    "clipped_gossip": ["topology.graph=exponential", "optim.momentum=0.9"],
    "trimmed_mean": ["topology.graph=complete", "algorithm.dishonest=2"],
    "choco": ["algorithm.codec=randomk", "algorithm.gamma=0.1", "optim.momentum=0.9"],
}
LATE = ["staleness.kind=seeded", "staleness.max_age=3"]
CHOCO = ["algorithm.kind=choco", "algorithm.gamma=0.3"]
STALE = {
    "late": LATE,
    "compressed": [*CHOCO, "algorithm.codec=int4"],
    "late, with a statistic": ["loss.kind=beta_dpo", *LATE],
    "late, clipped": ["algorithm.kind=clipped_gossip", "topology.graph=complete", *LATE],
    "late, trimmed": ["algorithm.kind=trimmed_mean", "topology.graph=complete", *LATE],
}
SYNTHETIC = {
    "loglinear": ("choices", ["policy.features=columns"]),
    "trajectory": ("trajectories", []),
    "tabular": ("trajectories", ["policy.states=20", "policy.actions=5", "policy.hidden=4"]),
}


def options(pairs):
    return [word for pair in pairs for word in ("--set", pair)]


@pytest.fixture
def shell(tmp_path, agree):
    """Return a shell in a folder that all ranks share."""
    folder = Path(agree.texts(str(tmp_path))[0])
    return RankShell(folder, lambda text: agree.texts(text)[0], agree.rank)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Return a folder with one shard for each of 8 users, the same on every rank."""
    return shards_of_users(tmp_path_factory.mktemp("few"), PAIRS)


@pytest.fixture
def config(shell, few):
    """Write run.toml, a short run on a part of the embedded data set."""
    shards = shell.share(str(few))
    if shell.rank == 0:
        shell.write("run.toml", CONFIG.format(shards=shards))
    shell.share("written")
    return "run.toml"


@pytest.fixture
def interleaved(monkeypatch):
    """Return a context in which agent k lives on rank k mod R, whatever R is."""
    from decdpo.comm.mpi import boot
    from decdpo.comm.mpi import world as mpi

    contiguous = mpi.connect

    def connect(num_agents, **options):
        ranks = boot.start()
        return contiguous(num_agents, home={k: k % ranks for k in range(num_agents)}, **options)

    @contextmanager
    def placed():
        with monkeypatch.context() as patch:
            patch.setattr(mpi, "connect", connect)
            yield

    return placed


@pytest.fixture
def same_bits(shell, config):
    """Train on all ranks and on one; check the bits and the records, return the records."""

    def check(*pairs):
        words = options(pairs)
        shell("train", config, "--out", "spread", *words)
        shell.alone("train", config, "--out", "alone", *words)
        assert shell.digests("spread") == shell.digests("alone")
        assert shell.metrics("spread") == shell.metrics("alone")
        return shell.metrics("alone")

    return check


@pytest.mark.parametrize("overlap", ["true", "false"])
def test_the_bits_of_one_process(shell, same_bits, overlap):
    records = same_bits(f"algorithm.overlap={overlap}")
    assert len(shell.digests("spread")) == 8
    assert [record["round"] for record in records] == list(range(13))
    assert records[0]["loss"] == pytest.approx(np.log(2), rel=1e-6)
    assert records[0]["heldout/average/accuracy"] == 0.5
    assert records[-1]["messages"] == 12 * 16
    assert records[-1]["bytes"] == 12 * 16 * 4 * 4096


def test_a_rank_for_each_agent_gives_the_bits_of_one_process(shell, same_bits, agree):
    ranks = len(agree.texts(""))
    same_bits("algorithm.overlap=true", f"agents.count={ranks}")
    assert len(shell.digests("spread")) == ranks


@pytest.mark.parametrize("transport", ["p2p", "window"])
@pytest.mark.parametrize(
    "graph", ["exponential", "one_peer_exponential", "random_matching", "star"]
)
def test_every_kind_of_graph_and_transport(same_bits, graph, transport):
    same_bits(f"topology.graph={graph}", f"comm.transport={transport}", "log.every=6")


@pytest.mark.parametrize("kind", ["centralized", "local"])
def test_the_baselines(shell, same_bits, kind):
    records = same_bits(f"algorithm.kind={kind}", "optim.momentum=0.9")
    assert records[-1]["messages"] == (12 * 2 * 7 if kind == "centralized" else 0)
    different = {agent["x"] for agent in shell.digests("alone").values()}
    assert len(different) == (1 if kind == "centralized" else 8)


def test_on_the_complete_graph_outer_momentum_by_gossip_is_that_of_a_server(shell, config):
    words = ["algorithm.local_steps=3", "optim.kind=adamw", "optim.lr=0.01"]
    gossip = ["algorithm.kind=gossip_outer_momentum", "topology.graph=complete"]
    shell("train", config, "--out", "gossip", *options([*words, *gossip]))
    shell("train", config, "--out", "server", *options([*words, "algorithm.kind=outer_momentum"]))
    assert shell.digests("gossip") == shell.digests("server")
    different = {agent["x"] for agent in shell.digests("gossip").values()}
    assert len(different) == 1


@pytest.mark.parametrize("name", [*ALGORITHMS, *STALE])
def test_a_run_goes_on_wherever_its_agents_are(shell, config, interleaved, name):
    algorithm = ALGORITHMS.get(name)
    pairs = STALE[name] if algorithm is None else [f"algorithm.kind={name.split()[0]}", *algorithm]
    words = options(pairs)
    shell.alone("train", config, "--out", "whole", *words)
    with interleaved():
        shell("train", config, "--out", "part", *words, "--set", "run.rounds=5")
    assert shell.digests("part") != shell.digests("whole")
    shell.alone("resume", "part", "--set", "run.rounds=8")
    shell("resume", "part", "--set", "run.rounds=12")
    assert shell.digests("part") == shell.digests("whole")
    assert shell.metrics("part") == shell.metrics("whole")


def test_a_pace_measured_on_these_ranks_is_replayed_in_one_process(shell, config, interleaved):
    words = ["algorithm.local_steps=2", "pace.kind=measured", "pace.every=3", "run.rounds=7"]
    with interleaved():
        shell("train", config, "--out", "part", *options([*words, "topology.weights=pairs"]))
    shell("resume", "part", "--set", "run.rounds=10")
    shell.alone("replay", "part")


def test_a_run_by_arrival_is_replayed_in_one_process(shell, config, interleaved):
    arrival = options(["staleness.kind=arrival", "log.every=6"])
    shell("train", config, "--out", "live", *arrival, "--set", "run.rounds=6")
    with interleaved():
        shell("resume", "live", "--set", "run.rounds=12")
    replay = options(["staleness.kind=replay", "staleness.run=live"])
    shell.alone("train", config, "--out", "again", *replay)
    again, live = ({i: d["x"] for i, d in shell.digests(r).items()} for r in ("again", "live"))
    assert again == live
    lines = (shell.folder / "live" / "metrics.jsonl").read_text().splitlines()
    assert sum(sum(json.loads(line)["system"]["ages"]) for line in lines) == 12 * 16
    for words, part in (
        (["--out", "longer", "--set", "run.rounds=13"], "no ages of 2 messages in round 12"),
        (["--out", "none", "--set", "staleness.run=again"], "agent_000000.jsonl"),
    ):
        assert part in shell.alone("train", config, *replay, *words, status=2)


def test_the_theory_says_the_same_on_any_number_of_ranks(shell, config):
    alone = json.loads(shell.alone("theory", config, "--json"))
    assert json.loads(shell("theory", config, "--json")) == alone and "prediction" in alone


def test_what_the_run_folder_holds_with_figures_and_who_made_it(shell, config, agree):
    ranks = len(agree.texts(""))
    shell("train", config, "--out", "run", "--trace", "--set", "log.figure=true")
    run = shell.folder / "run"
    names = sorted(p.name for p in run.iterdir() if p.name != ".lock")
    assert names == [
        "checkpoints", "config.toml", "curves.png", "curves.svg", "metrics.jsonl", "run.json",
        "summary.txt", "trace",
    ]  # fmt: skip
    facts = json.loads((run / "run.json").read_text())
    assert facts["processes"] == ranks and facts["seed"] == 0 and len(facts["agents"]) == 8
    assert facts["versions"]["torch"]
    traces = [json.loads(p.read_text()) for p in sorted((run / "trace").iterdir())]
    assert [{e["pid"] for e in t["traceEvents"]} for t in traces] == [{r} for r in range(ranks)]
    names = {e["name"] for e in traces[0]["traceEvents"]}
    assert {"compute", "post", "mix", "measure", "checkpoint"} <= names
    rounds = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert rounds == ["round_000008", "round_000012"]
    shell.alone("resume", "run", "--set", "run.rounds=14")
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert [(s["processes"], s["first_round"]) for s in starts] == [(ranks, 0), (1, 12)]
    assert starts[0]["hosts"] == starts[1]["hosts"]


@pytest.mark.parametrize("name", ["dsgd", "fedavg", "gradient_tracking", "choco"])
def test_new_agents_begin_alike_on_any_ranks(shell, config, interleaved, name):
    words = options([f"algorithm.kind={name}", *ALGORITHMS.get(name, [])])
    few = options(["agents.count=5", "run.rounds=5"])
    more = (*options(["agents.count=8", "run.rounds=9"]), "--allow", "agents.count")
    for out in ("spread", "alone"):
        shell.alone("train", config, "--out", out, *words, *few)
    with interleaved():
        shell("resume", "spread", *more)
    shell.alone("resume", "alone", *more)
    assert len(shell.digests("spread")) == 8
    assert shell.digests("spread") == shell.digests("alone")
    assert shell.metrics("spread") == shell.metrics("alone")


def test_fragments_divide_the_bytes_of_a_round(shell, same_bits, agree):
    records = same_bits("algorithm.fragments=4", "algorithm.overlap=true")
    assert [r["messages"] for r in records] == [16 * r["round"] for r in records]
    assert [r["bytes"] for r in records] == [16 * r["round"] * 4096 for r in records]
    ranks = len(agree.texts(""))
    crossing = 2 * ranks if ranks > 1 else 0
    lines = (shell.folder / "spread" / "metrics.jsonl").read_text().splitlines()
    system = [json.loads(line)["system"] for line in lines]
    assert [s["bytes_between_processes"] for s in system] == [0, *[crossing * (64 + 4096)] * 12]


def test_compressed_messages_are_counted_as_they_travel(shell, same_bits, agree):
    records = same_bits(*CHOCO, "algorithm.ratio=0.05")
    code = 8 + (int(0.05 * 4 * 4096) - 8) // 6 * 6
    ranks = len(agree.texts(""))
    # Each border between the blocks of agents of two processes is crossed both ways.
    crossing = 2 * ranks if ranks > 1 else 0
    lines = (shell.folder / "spread" / "metrics.jsonl").read_text().splitlines()
    system = [json.loads(line)["system"] for line in lines]
    assert [s["messages_between_processes"] for s in system] == [0, *[crossing] * 12]
    assert [s["bytes_between_processes"] for s in system] == [0, *[crossing * (64 + code)] * 12]
    assert [s["messages_between_nodes"] for s in system] == [0] * 13
    assert [r["messages"] for r in records] == [16 * r["round"] for r in records]
    assert [r["bytes"] for r in records] == [16 * r["round"] * code for r in records]


def test_an_evaluation_gives_the_numbers_of_one_process(shell, config):
    shell("train", config, "--out", "run", "--set", "optim.lr=10", "--set", "run.rounds=60")
    alone = json.loads(shell.alone("evaluate", "run", "--json"))
    assert json.loads(shell("evaluate", "run", "--json")) == alone and len(alone["agents"]) == 8
    last = shell.metrics("run")[-1]
    assert alone["average"]["accuracy"] == last["heldout/average/accuracy"]
    assert alone["own"]["accuracy"] == last["heldout/accuracy"] > 0.5


@pytest.mark.parametrize("kind", SYNTHETIC)
def test_synthetic_users(shell, config, kind):
    users, pairs = SYNTHETIC[kind]
    shell.alone("synthesize", users, "--agents", "6", "--pairs", "24", "--out", "users")
    if shell.rank == 0:
        (shell.folder / config).write_text("[run]\nrounds = 6\n[comm]\ntimeout = 60.0\n")
    words = options(["data.shards=users", f"policy.kind={kind}", *pairs])
    shell("train", config, "--out", "spread", *words)
    shell.alone("train", config, "--out", "alone", *words)
    assert shell.digests("spread") == shell.digests("alone")
    assert shell.metrics("spread") == shell.metrics("alone")


@pytest.mark.parametrize("row", [0, 400], ids=["pair by pair", "packed"])
def test_a_language_model_goes_on_on_these_ranks(shell, config, row):
    pytest.importorskip("transformers")
    if shell.rank == 0:
        write_model(shell.folder / "model", layers=2)
        path = shell.folder / config
        path.write_text(path.read_text().replace("dimension = 4096", ""))
    words = ["policy.kind=causal_lm", "policy.model=model", "agents.count=4"]
    words += ["optim.kind=adamw", "data.batch_size=2", "policy.max_length=64"]
    words += [f"policy.tokens_at_once={row}"]
    words = options([*words, "log.gradient_pairs=2", "log.heldout_pairs=2", "log.every=1"])
    shell.alone("train", config, "--out", "one", *words, "--set", "run.rounds=4")
    shell("train", config, "--out", "two", *words, "--set", "run.rounds=2")
    shell.alone("resume", "two", "--set", "run.rounds=3")
    shell("resume", "two", "--set", "run.rounds=4")
    assert shell.digests("two") == shell.digests("one")
    assert shell.metrics("two") == shell.metrics("one")
    assert shell.metrics("one")[0]["rewards/margins"] == pytest.approx(0, abs=1e-6 if row else 0)


def records(folder):
    """Return what a file of reference values holds, in no order."""
    content = (folder / "reference.cache").read_bytes()[16:]
    size = 4 + 4 + 32 + 32
    assert len(content) % size == 0
    return {content[i : i + size] for i in range(0, len(content), size)}


def test_ranks_fill_one_file_of_reference_values_and_train_alike(shell, config, make_model, few):
    model = shell.share(str(make_model()))
    here = [shell.folder / name for name in ("by_one", "by_all", "before")]
    if shell.rank == 0:
        for folder in here:
            shutil.copytree(few, folder, ignore=shutil.ignore_patterns("*.cache", "*.tokens"))
        path = shell.folder / config
        path.write_text(path.read_text().replace("dimension = 4096", ""))
    shell.share("copied")
    words = ["policy.kind=causal_lm", f"policy.model={model}", "agents.count=4", "run.rounds=1"]
    words = options([*words, "data.batch_size=2", "log.gradient_pairs=2", "log.heldout_pairs=2"])
    shell.alone("train", config, "--out", "one", *words, "--set", f"data.shards={here[0]}")
    shell("train", config, "--out", "all", *words, "--set", f"data.shards={here[1]}")
    assert shell.digests("all") == shell.digests("one")
    assert shell.metrics("all") == shell.metrics("one")
    shell("shard", "--reference", model, "--out", here[2])
    assert shell.share("written")
    one, everybody, before = map(records, here)
    assert one == everybody and len(one) > 4
    assert one < before, "beforehand the other four agents' pairs are scored as well"
    shell("train", config, "--out", "later", *words, "--set", f"data.shards={here[2]}")
    assert records(here[2]) == before and shell.digests("later") == shell.digests("one")
