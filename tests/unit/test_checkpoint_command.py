"""decdpo checkpoint show, verify, digest."""

import argparse
import hashlib
import json
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from decdpo.checkpoint.format import MANIFEST
from decdpo.checkpoint.inspect import digests, locate, verify
from decdpo.checkpoint.store import CheckpointStore
from decdpo.comm.local import LocalWorld
from decdpo.commands.after import checkpoint as command
from decdpo.errors import CheckpointError, ConfigError

AGENTS = 5


@dataclass
class State:
    x: Tensor
    moment: Tensor
    steps: int


def states(round):
    rng = torch.Generator().manual_seed(round)
    return {
        agent: State(torch.randn(40, generator=rng), torch.randn(3, generator=rng), round)
        for agent in range(AGENTS)
    }


class Unthreaded(LocalWorld):
    """A world whose library has no thread support: checkpoints are written on the spot."""

    def side_channel(self):
        return None


@pytest.fixture
def run_folder(tmp_path):
    store = CheckpointStore(
        tmp_path / "run" / "checkpoints",
        world=LocalWorld(AGENTS),
        identity={"layout": "abc"},
        config="[run]\nseed = 3\n",
        versions={"torch": "9.9"},
        keep=5,
    )
    for round in (10, 20):
        store.save(round, states(round), {"records": round})
    store.flush()
    return tmp_path / "run"


def call(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_a_path_may_be_the_run_its_checkpoints_or_one_of_them(run_folder):
    folder = run_folder / "checkpoints"
    newest = folder / "round_000020"
    assert locate(run_folder) == locate(folder) == locate(newest) == newest
    assert locate(run_folder, 10) == locate(folder, 10) == folder / "round_000010"
    newest.rename(run_folder / "copy")
    assert locate(run_folder / "copy", 20) == run_folder / "copy"


@pytest.mark.parametrize(
    "path, round, says",
    [
        ("nowhere", None, "no such folder"),
        (".", 30, "no checkpoint of round 30"),
        ("checkpoints/round_000010", 20, "is not the checkpoint of round 20"),
        ("empty", None, "there is no checkpoint"),
    ],
)
def test_a_path_without_a_checkpoint(run_folder, path, round, says):
    (run_folder / "empty").mkdir()
    with pytest.raises(CheckpointError, match=says) as caught:
        locate(run_folder / path, round)
    assert caught.value.exit_code == 3


def test_checkpoints_of_another_run_are_not_taken(run_folder, capsys):
    mine, theirs = "a" * 32, "b" * 32
    (run_folder / "run.json").write_text(json.dumps({"id": mine}))
    for round, run in ((20, mine), (30, theirs)):
        store = CheckpointStore(
            run_folder / "checkpoints",
            world=LocalWorld(AGENTS),
            run=run,
            identity={},
            config="",
            versions={},
            keep=5,
        )
        store.save(round, states(round), {})
        store.flush()
    for path in (run_folder, run_folder / "checkpoints"):
        assert call("show", path, "--json") == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["round"] == 20
        assert "round_000020 is of this run" in said.err and "30" in said.err
        assert call("digest", path, "--json") == 0
        assert json.loads(capsys.readouterr().out)["round"] == 20
    with pytest.raises(CheckpointError, match="of another run"):
        call("show", run_folder, "--round", 30)
    assert call("show", run_folder / "checkpoints" / "round_000030") == 0


def test_show(run_folder, capsys):
    assert call("show", run_folder, "--round", 10) == 0
    text = capsys.readouterr().out
    for words in (
        "round 10, 5 agents in 1 part",
        "part_0000.h5",
        "torch: 9.9",
        "layout: abc",
        "records: 10",
        "State(x, moment, steps)",
        "x: float32 (40,)",
        "steps: 10",
        "  seed = 3",
    ):
        assert words in text
    assert call("show", run_folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["round"], found["agents"], found["serial"]) == (20, AGENTS, 2)
    assert found["config"] == "[run]\nseed = 3\n" and found["extra"] == {"records": 20}
    assert found["bytes"] == (run_folder / "checkpoints/round_000020/part_0000.h5").stat().st_size


def test_digest_is_the_sha256_of_the_parameters_bytes(run_folder, capsys):
    want = {a: hashlib.sha256(s.x.numpy().tobytes()).hexdigest() for a, s in states(20).items()}
    assert call("digest", run_folder) == 0
    assert capsys.readouterr().out == "".join(f"{a}  {want[a]}\n" for a in range(AGENTS))
    assert call("digest", run_folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["round"] == 20
    assert {int(a): value["x"] for a, value in found["agents"].items()} == want
    assert call("digest", run_folder, "--state") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{a}  {found['agents'][str(a)]['state']}" for a in range(AGENTS)]
    assert len({value["state"] for value in found["agents"].values()}) == AGENTS


def test_digest_of_the_state_sees_what_the_parameters_do_not(tmp_path):
    seen = set()
    for name, moment, steps in (("a", 1.0, 1), ("b", 2.0, 1), ("c", 1.0, 2), ("d", 1.0, 1)):
        store = CheckpointStore(tmp_path / name, world=Unthreaded(1), identity={"who": name})
        store.save(1, {0: State(torch.ones(3), torch.full((2,), moment), steps)})
        [(_, found)] = digests(tmp_path / name / "round_000001")
        seen.add((found.x, found.state))
    assert len(seen) == 3 and len({x for x, _ in seen}) == 1


def test_a_whole_checkpoint_is_verified(run_folder, capsys):
    assert call("verify", run_folder) == 0
    assert "every byte" in capsys.readouterr().out
    assert call("verify", run_folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True


@pytest.mark.parametrize("name", ["part_0000.h5", MANIFEST])
def test_any_flipped_bit_is_found(run_folder, name):
    folder = run_folder / "checkpoints" / "round_000020"
    path, chance = folder / name, random.Random(5)
    content = path.read_bytes()
    every = range(len(content)) if len(content) < 2500 else chance.sample(range(len(content)), 600)
    for offset in [*every, 0, len(content) - 1]:
        changed = bytearray(content)
        changed[offset] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        assert verify(folder), f"the change at byte {offset} was not found"
    path.write_bytes(content)
    assert verify(folder) == []


def test_damage_is_an_error_with_status_3(run_folder, capsys):
    path = run_folder / "checkpoints" / "round_000020" / "part_0000.h5"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not whole(.|\n)*part_0000.h5 is damaged") as caught:
        call("verify", run_folder)
    assert caught.value.exit_code == 3 and caught.value.remedy
    assert call("verify", run_folder, "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["valid"] is False and len(found["problems"]) == 1
    for action in ("show", "digest"):
        with pytest.raises(CheckpointError, match="part_0000.h5"):
            call(action, run_folder)


def test_other_harm_that_verify_names(run_folder):
    folder = run_folder / "checkpoints" / "round_000020"
    (folder / "notes").write_text("mine")
    assert verify(folder) == [f"{folder / 'notes'} does not belong here"]
    (folder / "notes").unlink()
    moved = folder.rename(folder.with_name("round_000021"))
    assert verify(moved) == [f"{moved} holds the checkpoint of round 20"]
    (moved / "part_0000.h5").unlink()
    assert any("part_0000.h5 is missing" in problem for problem in verify(moved))
    (moved / MANIFEST).unlink()
    assert any("not a whole checkpoint" in problem for problem in verify(moved))


@pytest.mark.parametrize("text", ["", "[]", "3", "[" * 100_000, '{"format": 3}'])
@pytest.mark.parametrize("action", ["show", "digest"])
def test_a_manifest_that_is_none_is_named(run_folder, action, text):
    (run_folder / "checkpoints" / "round_000020" / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="not the manifest of a checkpoint"):
        call(action, run_folder)


def test_show_names_a_missing_part(run_folder):
    (run_folder / "checkpoints" / "round_000020" / "part_0000.h5").unlink()
    with pytest.raises(CheckpointError, match="part_0000.h5 is missing"):
        call("show", run_folder)


def test_an_option_without_meaning_is_refused(run_folder):
    with pytest.raises(ConfigError, match="--state"):
        call("verify", run_folder, "--state")
