"""What is the work of one process, started by mpirun all the same."""

import json

ROWS = "".join(
    json.dumps({"prompt": f"p{k}", "chosen": f"yes {k}", "rejected": f"no {k}"}) + "\n"
    for k in range(40)
)


def test_under_mpirun_one_process_does_it_once(shell):
    shell.write("rows.jsonl", ROWS)
    words = ("--agents", 2, "--out", "s")
    out = shell("shard", "rows.jsonl", *words, ranks=2)
    assert out.count("2 shards") == 1
    assert shell.said.count("is the work of one process: the first of 2 does it") == 1
    assert sorted(path.name for path in (shell.folder / "s").glob("agent*")) == [
        "agent_0000.h5",
        "agent_0001.h5",
    ]
    # A fault of the one process is printed once, and ends all with its status.
    shell("synthesize", "choices", *words, ranks=2, status=2)
    assert shell.said.count("is not empty") == 1
