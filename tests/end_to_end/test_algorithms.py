"""Every algorithm stopped and resumed on other ranks: all of its state is in the checkpoint."""

import pytest

RUNS = {
    "dsgd": ["algorithm.local_steps=2", "optim.kind=adamw", "optim.lr=0.01"],
    "centralized": ["optim.kind=adamw", "optim.lr=0.01"],
    "fedavg": ["algorithm.participants=3", "algorithm.local_steps=2", "optim.momentum=0.9"],
    "fedavg with momentum": ["algorithm.participants=2", "algorithm.server_momentum=0.9"],
    "outer_momentum": ["algorithm.local_steps=2", "optim.kind=adamw", "optim.lr=0.01"],
    "gradient_tracking": ["optim.momentum=0.9", "topology.graph=one_peer_exponential"],
    "exact_diffusion": ["topology.graph=random_matching"],
    "quasi_global_momentum": ["algorithm.local_steps=2", "topology.graph=exponential"],
    "push_sum": ["optim.momentum=0.9", "topology.graph=exponential"],
    "choco": ["algorithm.codec=randomk", "algorithm.gamma=0.1", "optim.momentum=0.9"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_with_the_bits_of_one_never_stopped(shell, config, name):
    pairs = [f"algorithm.kind={name.split()[0]}", *RUNS[name]]
    options = [word for pair in pairs for word in ("--set", pair)]
    shell("train", config, "--out", "whole", *options)
    shell("train", config, "--out", "part", *options, "--set", "run.rounds=7", ranks=2)
    assert shell.digests("part") != shell.digests("whole")
    shell("resume", "part", "--set", "run.rounds=12")
    assert shell.digests("part") == shell.digests("whole")
    assert shell.metrics("part") == shell.metrics("whole")
