"""Resuming with more agents than were saved: what the new ones begin from, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shells import CONFIG, Shell

from decdpo.checkpoint.format import MANIFEST, Manifest
from decdpo.checkpoint.inspect import locate
from decdpo.checkpoint.parts import open_part
from decdpo.comm.history import HISTORY, MEAN, Change

MORE = ("--set", "agents.count=6", "--set", "run.rounds=8")
ALLOWED = (*MORE, "--allow", "agents.count")


def make_shards(folder: Path, word: str) -> Path:
    """Make shards of six people, each of whom likes another ``word``; return their folder."""
    rows = [
        {"user": f"u{k % 6}", "prompt": f"p{k}", "chosen": f"{word}{k % 6}", "rejected": f"bad{k}"}
        for k in range(60)
    ]
    shell = Shell(folder)
    shell.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    shell("shard", "rows.jsonl", "--partition", "by:user", "--out", word)
    return folder / word


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of six shards."""
    return make_shards(tmp_path_factory.mktemp("six"), "good")


@pytest.fixture
def shell(tmp_path: Path, shards: Path) -> Shell:
    """Return a shell in a folder with run.toml."""
    shell = Shell(tmp_path)
    shell.write("run.toml", CONFIG.format(shards=shards).replace("4096", "64"))
    return shell


def train(shell: Shell, *options: str, agents: int = 4) -> None:
    """Train ``agents`` agents for 4 rounds in ``run``."""
    words = [word for option in options for word in ("--set", option)]
    fixed = ("--set", "run.rounds=4", "--set", f"agents.count={agents}")
    shell("train", "run.toml", "--out", "run", *fixed, *words)


def saved(shell: Shell, round: int, name: str = "x") -> dict[int, np.ndarray]:
    """Return a tensor of every agent's state after ``round``."""
    found = {}
    for path in sorted(locate(shell.folder / "run", round).glob("part_*.h5")):
        with open_part(path) as reader:
            for agent in reader.agents:
                tensor = reader.tensor(agent, name)
                assert tensor is not None
                found[agent] = tensor.numpy()
    return found


@pytest.mark.parametrize("optimizer, moment", [("sgd", ""), ("adamw", "optim.second")])
def test_new_agents_begin_at_the_mean_of_their_neighbours_that_were_saved(
    shell: Shell, optimizer: str, moment: str
) -> None:
    train(shell, f"optim.kind={optimizer}")
    before = saved(shell, 4)
    assert len({x.tobytes() for x in before.values()}) == 4
    shell("resume", "run", *ALLOWED)
    assert "agents 4, 5 are new beside 4 that were saved" in shell.said
    after = saved(shell, 4)
    for agent in range(4):
        np.testing.assert_array_equal(after[agent], before[agent])
    # On the ring of six, agent 4 has 3 and 5 beside it, agent 5 has 4 and 0: 4 and 5 are new.
    np.testing.assert_array_equal(after[4], before[3])
    np.testing.assert_array_equal(after[5], before[0])
    if moment:
        moments = saved(shell, 4, moment)
        assert [bool(moments[agent].any()) for agent in range(6)] == [True] * 4 + [False] * 2
    assert sorted(saved(shell, 8)) == list(range(6))
    # It is a run of six agents from now on, which nobody needs to allow again.
    shell("resume", "run", "--set", "run.rounds=9")
    assert "resuming after round 8 of 9" in shell.said and "new beside" not in shell.said
    assert json.loads(shell("evaluate", "run", "--json"))["round"] == 9
    shell("report", "run", "--html", "page.html")
    assert "joined" in (shell.folder / "page.html").read_text()


def test_an_agent_with_several_neighbours_begins_at_their_mean(shell: Shell) -> None:
    train(shell, "topology.graph=complete")
    before = saved(shell, 4)
    shell("resume", "run", *ALLOWED)
    mean = np.mean([before[agent] for agent in range(4)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(saved(shell, 4)[4], mean, rtol=1e-6)


def test_it_is_recorded(shell: Shell) -> None:
    train(shell)
    shell("resume", "run", *ALLOWED)
    (event,) = json.loads((shell.folder / "run/run.json").read_text())["events"]
    assert event["joined"] == [4, 5] and event["before"] == 4 and event["agents"] == 6
    assert event["round"] == 5
    lines = (shell.folder / "run/metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[5])
    assert record["round"] == 5 and record["system"]["events"] == [event]
    assert len(record["heldout/accuracy_by_agent"]) == 6
    manifest = json.loads((locate(shell.folder / "run") / "manifest.json").read_text())
    (change,) = manifest["extra"]["history"]
    assert change["grown"] and change["joined"] == {"4": -1, "5": -1} and change["round"] == 4
    shell("replay", "run", status=3)
    assert "agents 4, 5 were added before round 5" in shell.said


def test_without_leave_it_is_refused(shell: Shell) -> None:
    train(shell)
    shell("resume", "run", *MORE, status=3)
    assert "agents: saved 4, now 6" in shell.said
    assert "pass --allow agents.count if" in shell.said and "topology: saved" not in shell.said
    assert sorted(saved(shell, 4)) == list(range(4))


def test_the_saved_agents_keep_their_shards_unless_that_is_allowed(shell: Shell) -> None:
    train(shell)
    make_shards(shell.folder, "others")
    words = (*ALLOWED, "--set", "data.shards=others")
    shell("resume", "run", *words, status=3)
    assert "data: saved" in shell.said and "agents: saved" not in shell.said
    shell("resume", "run", *words, "--allow", "data")
    assert "agents 4, 5 are new" in shell.said


def test_agents_can_be_added_but_not_taken_away(shell: Shell) -> None:
    train(shell)
    shell("resume", "run", "--set", "agents.count=3", "--allow", "agents.count", status=3)
    assert "agents: saved 4, now 3" in shell.said and "take as many" in shell.said


@pytest.mark.parametrize("options, says", [
    (["algorithm.kind=centralized"], "centralized' takes no new agents"),
    (["algorithm.kind=local"], "local' takes no new agents"),
    (["algorithm.kind=outer_momentum"], "momentum that all agents hold in common"),
    (["algorithm.kind=fedavg", "algorithm.server_momentum=0.5"], "hold in common"),
    (["staleness.kind=seeded", "staleness.max_age=2"], "older messages"),
])  # fmt: skip
def test_what_a_new_agent_cannot_know_is_refused(
    shell: Shell, options: list[str], says: str
) -> None:
    train(shell, *options)
    shell("resume", "run", *ALLOWED, status=2)
    assert says in shell.said and sorted(saved(shell, 4)) == list(range(4))
    shell("resume", "run", "--set", "run.rounds=5")


@pytest.mark.parametrize("kind", ["gradient_tracking", "exact_diffusion", "choco", "push_sum"])
def test_the_mean_of_all_models_follows_the_mean_gradient_again(shell: Shell, kind: str) -> None:
    """Conserved sums hold with the new agents: sum_i (x_i(t+1) - x_i(t)) is that of steps alone,
    here nothing; the trackers have the sum of the gradients."""
    train(shell, f"algorithm.kind={kind}")
    shell("resume", "run", *ALLOWED, "--set", "optim.lr=1e-30", "--allow", "optim.lr")
    again = "the algorithm restarts on all agents" in shell.said
    assert again == (kind != "push_sum")
    if kind == "gradient_tracking":
        sums = [sum(saved(shell, 8, name).values()) for name in ("y", "grad")]
        np.testing.assert_allclose(sums[0], sums[1], atol=1e-6)
        assert np.abs(sums[0]).max() > 1e-3
    first, last = saved(shell, 4), saved(shell, 8)
    mean = np.mean(list(first.values()), axis=0)
    np.testing.assert_allclose(np.mean(list(last.values()), axis=0), mean, atol=1e-7)
    assert np.ptp(list(last.values()), axis=0).max() < np.ptp(list(first.values()), axis=0).max()


@pytest.mark.parametrize("kind, fragments", [("gossip_outer_momentum", 1), ("dsgd", 3)])
def test_a_new_agent_is_in_the_same_round_as_the_others(
    shell: Shell, kind: str, fragments: int
) -> None:
    train(shell, f"algorithm.kind={kind}", f"algorithm.fragments={fragments}")
    shell("resume", "run", *ALLOWED)
    assert "the algorithm restarts on all agents" in shell.said
    if fragments > 1:
        with open_part(locate(shell.folder / "run", 4) / "part_0000.h5") as reader:
            assert {reader.contents(agent)[2]["turn"] for agent in range(6)} == {4}
    else:
        models, anchors = saved(shell, 4), saved(shell, 4, "anchor")
        for agent in range(6):
            np.testing.assert_array_equal(models[agent], anchors[agent])


def test_a_server_gives_new_agents_its_model(shell: Shell) -> None:
    train(shell, "algorithm.kind=fedavg", "algorithm.participants=2")
    shell("resume", "run", *ALLOWED)
    assert "each begins at the common model" in shell.said
    after = saved(shell, 4)
    assert len({after[agent].tobytes() for agent in range(6)}) == 1


def write_history(shell: Shell, *changes: Change, held: tuple[int, ...]) -> None:
    """Let the newest checkpoint be one of a run that lost agents, and adopted some of them."""
    folder = locate(shell.folder / "run")
    found = Manifest.read(folder)
    (part,) = found.parts
    extra = {**found.extra, HISTORY: [change.to_json() for change in changes]}
    parts = (replace(part, agents=held),)
    changed = replace(found, agents=len(held), parts=parts, extra=extra)
    (folder / MANIFEST).write_bytes(changed.to_bytes())


def history(shell: Shell) -> list[dict[str, object]]:
    """Return the history in the newest checkpoint."""
    found: list[dict[str, object]] = Manifest.read(locate(shell.folder / "run")).extra[HISTORY]
    return found


def test_an_agent_that_was_lost_comes_back_if_that_is_allowed(shell: Shell) -> None:
    train(shell)
    write_history(shell, Change(1, True, (1,)), held=(0, 2, 3))
    shell("resume", "run", "--set", "run.rounds=5")
    before = saved(shell, 5)
    assert sorted(before) == [0, 2, 3]
    shell("resume", "run", "--set", "run.rounds=6", "--allow", "agents.count")
    assert "agent 1 is new beside 3 that were saved" in shell.said
    after = saved(shell, 5)
    mean = (before[0].astype(np.float64) + before[2]) / 2
    np.testing.assert_allclose(after[1], mean, rtol=1e-6)
    assert [change["joined"] for change in history(shell)] == [{}, {"1": MEAN}]
    assert json.loads((shell.folder / "run/run.json").read_text())["start"]["agents"] == 4
    assert sorted(saved(shell, 6)) == [0, 1, 2, 3]
    # With nobody to come back, the leave changes nothing.
    shell("resume", "run", "--set", "run.rounds=7", "--allow", "agents.count")
    assert "new beside" not in shell.said


def test_the_history_stays_where_all_lost_agents_were_adopted(shell: Shell) -> None:
    train(shell)
    changes = Change(1, True, (1,)), Change(2, False, (), {"1": MEAN})
    write_history(shell, *changes, held=(0, 1, 2, 3))
    shell("resume", "run", "--set", "run.rounds=5")
    assert history(shell) == [json.loads(json.dumps(change.to_json())) for change in changes]


def test_a_model_from_before_is_measured_with_as_many_agents_as_there_were(shell: Shell) -> None:
    train(shell, "checkpoint.every=2", "checkpoint.keep=5")
    shell("resume", "run", *ALLOWED)
    shell("evaluate", "run", "--round", "2", status=3)
    assert "agents: saved 4, now 6" in shell.said and "as many agents as were saved" in shell.said
    few = ("--set", "agents.count=4")
    assert json.loads(shell("evaluate", "run", "--round", "2", "--json", *few))["round"] == 2
