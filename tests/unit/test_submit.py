"""Job templates filled in and compared with what a run needs."""

import os
from pathlib import Path

import pytest
from shells import ROOT, Shell

from decdpo.errors import ConfigError
from decdpo.session.jobscript import TRAINING, fill, options, seconds


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path)
    shell.make_shards(4, 24)
    shell.write("run.toml", '[data]\nshards = "shards"\n[policy]\ndimension = 64\n')
    return shell


@pytest.mark.parametrize("name", TRAINING)
def test_every_template_of_a_run_can_be_filled_in(shell: Shell, name: str) -> None:
    words = ("--nodes", "2", "--ntasks-per-node", "2", "--account", "mine", "--qos", "low")
    script = shell("submit", name, "run.toml", "--dry-run", *words)
    asked = options(script)
    assert {asked[key] for key in ("nodes", "ntasks-per-node")} == {"2"}
    assert asked["account"] == "mine" and asked["qos"] == "low" and "CHANGE_ME" not in asked
    original = options((ROOT / "jobs" / f"{name}.slurm").read_text())
    assert {**asked, **original}.keys() == asked.keys() and asked["signal"] == original["signal"]
    assert "4 agents on 4 ranks, at most 1 on one" in shell.said
    assert "would submit: sbatch --parsable runs/run.slurm run.toml runs/run" in shell.said
    assert not (shell.folder / "runs").exists()


def test_only_the_lines_of_sbatch_are_changed() -> None:
    text = "#!/bin/bash\n# --time=5\n#SBATCH --time=1:00 --nodes=1\n##SBATCH --mem=4G\n"
    text += "echo --time=9\n"
    filled = fill(text, {"time": "2-00", "mem": "8G", "qos": "q"})
    assert filled.splitlines() == [
        "#!/bin/bash", "# --time=5", "#SBATCH --time=2-00 --nodes=1", "#SBATCH --mem=8G",
        "#SBATCH --qos=q", "echo --time=9",
    ]  # fmt: skip


@pytest.mark.parametrize("words, doubt", [
    (("--nodes", "2"), "8 ranks for 4 agents"),
    (("--mem-per-cpu", "100M"), "a rank gets 0.1 GB and needs"),
    (("--mem", "500M"), "a rank gets 0.13 GB and needs"),
    (("--gpus-per-node", "a100:4"), "policy.kind = 'loglinear' has no use for the 4 GPUs"),
    (("--time", "0:04:00"), "--time=0:04:00 leaves no time to train before the signal"),
    (("--account", "CHANGE_ME"), "--account is still CHANGE_ME"),
])  # fmt: skip
def test_what_does_not_fit_is_named_and_not_submitted(
    shell: Shell, words: tuple[str, str], doubt: str
) -> None:
    shell("submit", "train", "run.toml", *words, status=1)
    assert f"does not fit: {doubt}" in shell.said
    assert not (shell.folder / "runs").exists()


def test_ranks_that_share_gpus_are_named(shell: Shell, make_model) -> None:
    words = ["--set", "policy.kind=causal_lm", "--set", f"policy.model={make_model()}"]
    shell.write("lm.toml", '[data]\nshards = "shards"\n')
    shell("submit", "train", "lm.toml", "--gpus-per-node", "2", "--dry-run", *words, status=1)
    assert "4 ranks for 2 GPUs on a node: give --ntasks-per-node=2" in shell.said
    shell("submit", "train", "lm.toml", "--gpus-per-node", "4", "--dry-run", *words)


@pytest.mark.parametrize("words, message", [
    (("trian", "run.toml"), "there is no template trian (did you mean 'train'?)"),
    (("train", "run.toml", "--time", "soon"), "--time=soon is no time limit"),
    (("train", "run.toml", "--mem", "much"), "--mem=much is no amount of memory"),
    (("train", "run.toml", "--gpus-per-node", "a100"), "--gpus-per-node=a100 is no number of GPUs"),
    (("train", "run.toml", "--nodes", "0"), "--nodes=0 is no number"),
    (("train", "run.toml", "--account", "a b"), "--account 'a b' cannot stand in a job script"),
    (("train", "none.toml"), "none.toml"),
    (("train", "run.toml", "--out", "."), "--out . has no name"),
    (("train", "run.toml", "--out", ".."), "--out .. has no name"),
])  # fmt: skip
def test_a_wrong_request_is_named(shell: Shell, words: tuple[str, ...], message: str) -> None:
    shell("submit", *words, status=2)
    assert message in shell.said


def test_a_line_that_cannot_be_read_is_named(shell: Shell) -> None:
    shell.write("mine.slurm", '#!/bin/bash\n#SBATCH --comment="it\n')
    shell("submit", "mine.slurm", "run.toml", status=2)
    assert '#SBATCH --comment="it cannot be read: No closing quotation' in shell.said


@pytest.mark.parametrize("text, wanted", [
    ("90", 5400), ("10:30", 630), ("1:00:00", 3600), ("2-12", 216000), ("1-0:30", 88200),
    ("1-01:01:01", 90061),
])  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(text: str, wanted: int) -> None:
    assert seconds(text) == wanted
    with pytest.raises(ConfigError):
        seconds(f"{text}:x")


SBATCH = """#!/bin/bash
printf '%s\\n' "$*" "$DECDPO_HOME" "$DECDPO_VENV" >given
[ -z "$REFUSED" ] || { echo "$REFUSED" >&2; exit 1; }
echo '4711;cluster'
"""


def test_it_submits_what_it_has_checked(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.folder / "bin").mkdir()
    shell.write("bin/sbatch", SBATCH).chmod(0o755)
    monkeypatch.setenv("PATH", f"{shell.folder}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("DECDPO_VENV", "/my/venv")
    monkeypatch.delenv("DECDPO_HOME", raising=False)
    out = shell("submit", "chain", "run.toml", "--out", "a/b", "--set", "run.rounds=9")
    assert out == "4711\n"
    given = (shell.folder / "given").read_text().splitlines()
    assert given == [
        "--parsable a/b.slurm run.toml a/b --set run.rounds=9", str(ROOT), "/my/venv",
    ]  # fmt: skip
    script = shell.folder / "a" / "b.slurm"
    assert script.stat().st_mode & 0o100 and "DECDPO_NEXT=chain" in script.read_text()
    monkeypatch.setenv("REFUSED", "invalid account")
    shell("submit", "chain", "run.toml", status=2)
    assert "sbatch did not take runs/run.slurm: invalid account" in shell.said
    monkeypatch.setenv("PATH", str(shell.folder))
    shell("submit", "chain", "run.toml", status=2)
    assert "sbatch is not on PATH" in shell.said
