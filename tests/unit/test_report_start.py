"""What a start says: the block of lines, and what is doubtful."""

import json

import pytest

from decdpo.cli import main
from decdpo.comm import machine as place
from decdpo.comm.links.window import no_room
from decdpo.comm.machine import expand, gpus_present, machine
from decdpo.comm.transport import Choice
from decdpo.errors import EnvironmentFault
from decdpo.report.start import block, warnings


def process(host="a", **changes):
    facts = {
        "host": host, "device": "cpu", "device_name": "EPYC", "threads": 1, "cores": "0-7",
        "cores_quota": None, "gpus_present": 0, "gpus_usable": 0, "torch": "2.9.0",
        "cpu_bfloat16": None,
        "torch_cuda": "12.8", "cuda_visible_devices": None,
    }  # fmt: skip
    return {**facts, **changes}


def facts(processes, **changes):
    found = {
        "agents": 8, "most_on_one": 2, "processes": processes, "wanted_device": "auto",
        "gpu_of_use": True,
        "policy": "causal_lm m", "precision": "float32", "parameters": 1234567,
        "pairs": {"training": 4000, "heldout": 400, "fewest": 400, "most": 600, "equal": 0},
        "method": "dsgd, E = 1", "graph": "ring", "rho": 0.75, "transport": ["within one process"],
        "doubts": [], "rounds": [0, 200], "folder": "runs/a", "saves": "a checkpoint every 50",
    }  # fmt: skip
    return {**found, **changes}


def test_the_block_names_everything_that_was_chosen():
    gpus = [
        process(h, device=f"cuda:{k}", device_name="H100", gpus_present=2, gpus_usable=2, threads=4)
        for h in ("a", "b") for k in range(2)
    ]  # fmt: skip
    text = "\n".join(block(facts(gpus)))
    for part in (
        "8 in 4 ranks on 2 hosts (a, b), at most 2 on one", "cuda:0, cuda:1 (H100)",
        "4 threads a rank, which may use 8", "causal_lm m in float32, 1,234,567 parameters",
        "4,000 to train on, 400 to 600 an agent; 400 held out", "dsgd, E = 1",
        "ring, spectral gap 0.25 (rho 0.75)", "within one process",
        "runs/a, rounds 1 to 200, a checkpoint every 50",
    ):  # fmt: skip
        assert part in text
    assert warnings(facts(gpus)) == []


def test_a_resumed_run_and_one_without_a_graph():
    text = "\n".join(block(facts([process()], rounds=[120, 200], graph=None, rho=None)))
    assert "rounds 121 to 200" in text and "graph" not in text and "8 in 1 process on 1" in text


def test_a_finished_run_that_is_resumed_has_nothing_left_to_do():
    text = "\n".join(block(facts([process()], rounds=[200, 200])))
    assert "runs/a, all 200 rounds are done: nothing is left to do" in text
    assert "201" not in text


@pytest.mark.parametrize(
    ("changes", "ranks", "wanted", "said"),
    [
        ({"gpus_present": 4, "gpus_usable": 4}, 8, "auto", "4 GPUs are there and not used: device"),
        ({"gpus_present": 1, "torch_cuda": None}, 1, "auto", "1 GPU is there and not used: torch"),
        ({"gpus_present": 2, "cuda_visible_devices": ""}, 1, "auto", "CUDA_VISIBLE_DEVICES is ''"),
        ({"gpus_present": 4, "gpus_usable": 4}, 8, "cpu", None),
        ({}, 8, "auto", None),
    ],
)
def test_a_gpu_that_is_there_and_not_used_is_a_warning(changes, ranks, wanted, said):
    ranked = [process(**changes) for _ in range(ranks)]
    found = warnings(facts(ranked, wanted_device=wanted))
    assert [said in line for line in found] == ([True] if said else [])
    assert warnings(facts(ranked, wanted_device=wanted, gpu_of_use=False)) == []


def test_gpus_left_over_are_a_warning_only_if_agents_could_use_them():
    some = [process(device="cuda:0", gpus_present=4, gpus_usable=4)]
    assert warnings(facts(some)) == ["a: 1 of 4 GPUs are used: start one rank per GPU"]
    assert warnings(facts(some, agents=1)) == []


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ([{"threads": 4, "cores": "0-1"}], "1 rank has 4 threads each on the 2 cores"),
        ([{"cores": "3"}] * 2, "2 ranks have 1 thread each on the 1 cores"),
        ([{"cores": "0"}, {"cores": "1"}], None),
        ([{"threads": 2}] * 4, None),
        ([{"threads": 2}] * 5, "5 ranks have 2 threads each on the 8 cores"),
        ([{"cores_quota": 1.5}] * 2, "1.5 cores, to which their container is limited"),
    ],
)
def test_ranks_that_share_cores_are_a_warning(group, said):
    found = warnings(facts([process(**changes) for changes in group]))
    assert [said in line for line in found] == ([True] if said else [])
    # Those of another host have cores of their own.
    apart = [process(host=str(k), **changes) for k, changes in enumerate(group)]
    assert len(warnings(facts(apart))) == sum(p["threads"] > len(expand(p["cores"])) for p in apart)


@pytest.mark.parametrize(
    ("here", "precision", "warned"),
    [
        ({"cpu_bfloat16": False}, "bfloat16, trained in float32", True),
        ({"cpu_bfloat16": True}, "bfloat16, trained in float32", False),
        ({"cpu_bfloat16": None}, "bfloat16, trained in float32", False),
        ({"cpu_bfloat16": False}, "float32", False),
        ({"cpu_bfloat16": False, "device": "cuda:0"}, "bfloat16, trained in float32", False),
    ],
)
def test_a_processor_that_emulates_bfloat16_is_named(here, precision, warned):
    found = warnings({**facts([process(**here)]), "precision": precision})
    assert [line for line in found if "no instructions for bfloat16" in line] == found
    assert len(found) == warned


def test_the_facts_of_this_machine(tmp_path, monkeypatch):
    found = json.loads(json.dumps(machine("cpu")))
    assert found["host"] and found["device_name"] and found["threads"] >= 1
    assert expand(found["cores"]) and expand("0-3,8") == {0, 1, 2, 3, 8}
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    for flags, known in (("flags : fpu amx_bf16", True), ("flags : fpu avx2", False), ("", None)):
        (tmp_path / "cpuinfo").write_text(f"model name : X\n{flags}\n")
        monkeypatch.setattr(place, "CPUINFO", tmp_path / "cpuinfo")
        assert machine("cpu")["cpu_bfloat16"] is known
    monkeypatch.setattr(place, "DEVICES", tmp_path)
    assert gpus_present() == 2 and machine("cpu")["gpus_present"] == 2
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(place, "QUOTA", tmp_path / "cpu.max")
    assert machine("cpu")["cores_quota"] == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine("cpu")["cores_quota"] is None


def choice(**changes):
    usual = {
        "ranks": 4, "on_node": 4, "window": True, "wanted": "auto", "no_room": None,
        "device": "cpu", "direct": False, "late": False, "driven": False, "progress": "thread",
        "threads": True, "large": True,
    }  # fmt: skip
    return Choice(**{**usual, **changes})


def test_why_messages_travel_as_they_do():
    assert choice(ranks=1).transport == "within one process" and choice(ranks=1).doubts == ()
    assert choice().transport.startswith("shared memory within a node; nothing to drive")
    assert "messages between nodes; a thread" in choice(on_node=2, driven=True).transport
    assert "as comm.transport asks" in choice(window=False, wanted="p2p").transport
    assert "pinned host memory" in choice(window=False, device="cuda:0").transport
    small = choice(window=False, no_room=no_room(1 << 60))
    assert "for want of shared memory" in small.transport
    assert "/dev/shm has" in small.doubts[0] and "not read in place" in small.doubts[0]
    single = choice(threads=False, window=False, wanted="p2p")
    assert "without MPI_THREAD_MULTIPLE" in single.transport
    assert "no MPI_THREAD_MULTIPLE" in single.doubts[0] and len(single.doubts) == 1
    assert choice(no_room=EnvironmentFault("x")).doubts == ()


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def train(chosen, rejected, *options):
        rows = [{"prompt": f"p{k}", "chosen": chosen(k), "rejected": rejected(k)} for k in range(6)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        assert main(["shard", "rows.jsonl", "--agents", "1", "--out", "shards"]) == 0
        (tmp_path / "run.toml").write_text('[data]\nshards = "shards"\n[run]\nrounds = 2\n')
        words = [word for option in options for word in ("--set", option)]
        return main(["train", "run.toml", "--out", "run", "--progress", "none", *words])

    return train


def test_the_block_is_printed_and_kept(trained, tmp_path, capsys):
    assert trained(lambda k: f"good {k}", lambda k: f"bad {k}") == 0
    said = capsys.readouterr().err
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["start"]
    for line in block(kept):
        assert line in said
    assert kept["pairs"]["training"] >= 5 and kept["transport"] == ["within one process"]
