"""Random trials of `tools/chaos.py` and `tools/chaos_jobs.py`: whatever they draw can be run."""

import sys

import chaos
import chaos_jobs
import pytest
from limits import HANG

from decdpo.comm.mpi import mpirun
from decdpo.config import parse

SEEDS = range(120)


@pytest.mark.parametrize("on_loss", ["survive", "adopt"])
@pytest.mark.parametrize("writing", [False, True])
def test_kills_leave_a_rank_and_the_configuration_is_taken(on_loss, writing):
    trials = [chaos.Trial.draw(seed, (4, 8), on_loss, writing=writing) for seed in SEEDS]
    for trial in trials:
        config = parse(trial.config.format(shards="shards"))
        assert config.faults.on_loss == on_loss and config.run.rounds == trial.rounds
        killed = [rank for _, ranks in trial.kills for rank in ranks]
        assert 0 < len(killed) == len(set(killed)) < trial.ranks
        assert all(at >= 0 for at, _ in trial.kills)
        # It waits for a write whose losses are survived: not for that of round 0.
        writes = len({*range(0, trial.rounds, trial.save or trial.rounds), trial.rounds})
        assert trial.write is None if not writing else 2 <= trial.write <= writes
    assert {trial.algorithm for trial in trials} >= {"dsgd", "choco", "fedavg", "push_sum"}
    for trial in map(chaos.Trial.in_parts, trials):
        parts = parse(trial.config.format(shards="shards")).algorithm.fragments
        assert parts == (1 if trial.algorithm == "fedavg" else 3)
    again = chaos.Trial.draw(7, (4, 8), on_loss, writing=writing)
    assert str(again) == str(trials[7]) and again.config == trials[7].config


def test_jobs_draw_every_fault_for_configurations_that_are_taken():
    trials = [chaos_jobs.JobTrial.draw(seed, (1, 4)) for seed in SEEDS]
    ages = {parse(trial.config.replace("{shards}", "s")).staleness.max_age for trial in trials}
    assert ages == {0, 2}
    faults = [fault for trial in trials for fault in trial.faults]
    assert {name for name, _ in faults} == set(chaos_jobs.STATUSES)
    assert all(ranks > 1 for name, ranks in faults if "rank" in name)
    assert str(chaos_jobs.JobTrial.draw(7, (1, 4))) == str(trials[7])


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Start a program as if mpirun had: ``victims(code)`` is a second start of a run."""
    monkeypatch.setattr(mpirun, "find_mpirun", lambda: "/bin/true")
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "metrics.jsonl").write_text('{"round": 40, "x": 1}\n')
    (tmp_path / "run.pid.0").write_text(str(2**22 + 1))
    return out


def test_a_start_is_not_taken_for_the_one_before_it(started, monkeypatch):
    victims = chaos.Victims(1, started.parent, "run", ["resume", "run"], [sys.executable])
    assert victims.wait(HANG) == 0
    monkeypatch.setattr(victims.process, "poll", lambda: None)
    # Records of the start before do not count, nor does its process.
    victims.await_round(1, limit=0.0)
    assert not victims.recorded(1) and not victims.hit(0)
    spare = started / "spare"
    spare.write_text('{"round": 20, "x": 1}\n{"round": 21, "x": 1}\n')
    spare.replace(started / "metrics.jsonl")
    assert victims.recorded(21) and not victims.recorded(22)


def test_a_start_in_which_no_rank_began_is_made_again(tmp_path, monkeypatch):
    starts, script = tmp_path / "starts", tmp_path / "mpirun"
    # The first start fails as that of a busy machine does; the others are of one rank.
    script.write_text(
        f'#!/bin/sh\necho start >>{starts}\n[ "$(wc -l <{starts})" -gt 1 ] || exit 213\n'
        'while [ "$1" != /bin/sh ]; do shift; done\nOMPI_COMM_WORLD_RANK=0 exec "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(mpirun, "find_mpirun", lambda: str(script))
    monkeypatch.setattr(mpirun, "PAUSE", 0.01)
    program = "import sys; sys.exit(int(sys.argv[1]))"
    victims = chaos.Victims(1, tmp_path, "run", ["7"], [sys.executable, "-c", program])
    assert victims.wait(HANG) == 7
    assert starts.read_text().splitlines() == ["start", "start"]
