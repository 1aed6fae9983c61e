"""What is the work of one process, started by mpirun all the same."""

import json

import pytest

ROWS = "".join(
    json.dumps({"prompt": f"p{k}", "chosen": f"yes {k}", "rejected": f"no {k}"}) + "\n"
    for k in range(40)
)


@pytest.mark.parametrize("words", ["shard rows.jsonl --agents 2", "synthesize choices --agents 2"])
def test_under_mpirun_one_process_does_it_once(shell, words):
    shell.write("rows.jsonl", ROWS)
    out = shell(*words.split(), "--out", "s", ranks=2)
    assert out.count("2 shards") == 1
    assert shell.said.count("is the work of one process: the first of 2 does it") == 1
    assert sorted(path.name for path in (shell.folder / "s").glob("agent*")) == [
        "agent_0000.h5",
        "agent_0001.h5",
    ]
    # A fault of the one process is printed once, and ends all with its status.
    shell(*words.split(), "--out", "s", ranks=2, status=2)
    assert shell.said.count("is not empty") == 1
