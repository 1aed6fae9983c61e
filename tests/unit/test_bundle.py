"""What a support desk is sent: enough to help, no text of users, no secrets."""

import json
import tarfile
from pathlib import Path

import pytest
from shells import Shell

from decdpo.session.bundle import clean, log_lines

TEXT = "canary-of-a-prompt"
SECRETS = {
    "HF_TOKEN": "planted-one-token", "WANDB_API_KEY": "planted-two-key",
    "SLURM_JWT": "planted-three-jwt", "OMPI_MCA_password": "planted-four-pass",
}  # fmt: skip
PLANTED = (TEXT, "hf_" + "a" * 30, "alice:opensesame", *SECRETS.values())


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell(tmp_path)
    rows = [
        {"prompt": f"{TEXT} {k}", "chosen": f"{TEXT} good", "rejected": f"{TEXT} bad", "user": TEXT}
        for k in range(20)
    ]
    shell.write("rows.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    shell("shard", "rows.jsonl", "--partition", "by:user", "--out", "shards")
    shell.write(
        "run.toml", '[run]\nrounds = 4\n[data]\nshards = "shards"\n[policy]\ndimension = 64\n'
    )
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    shell("train", "run.toml", "--out", "run")
    return shell


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            entry.name: archive.extractfile(entry).read().decode() for entry in archive.getmembers()
        }


def test_it_holds_what_helps_and_nothing_planted(shell: Shell) -> None:
    record = json.loads((shell.folder / "run/run.json").read_text())
    record["command"] += f" --set policy.model=https://alice:opensesame@hub/{'hf_' + 'a' * 30}"
    (shell.folder / "run/run.json").write_text(json.dumps(record))
    shell.write("decdpo-4711.out", f"""2026-11-26 22:00:00 job 4711.0: threads: 1 a rank
{TEXT} was printed by somebody
decdpo: error: the prompt '{TEXT} and more' of agent 3 is too long
  remedy: shorten "{TEXT} and more", password=planted-one-token
srun: error: node1: task 0: Killed
""")  # fmt: skip
    path = shell("bundle", "run", "--log", "rows.jsonl").strip()
    assert path == "run-bundle.tar.gz"
    found = contents(shell.folder / path)
    names = {name.removeprefix("run-bundle/") for name in found}
    assert names == {
        "config.toml", "run.json", "environment.json", "checkpoints.json", "files.txt",
        "metrics.jsonl", "logs/decdpo-4711.out",
    }  # fmt: skip
    everything = "".join(found.values())
    assert [planted for planted in PLANTED if planted in everything] == []
    log = found["run-bundle/logs/decdpo-4711.out"]
    assert "threads: 1 a rank" in log and "of agent 3 is too long" in log and "Killed" in log
    environment = json.loads(found["run-bundle/environment.json"])
    assert environment["variables"]["SLURM_JOB_ID"] == "4711"
    assert "SLURM_JWT" not in environment["variables"]
    assert environment["versions"]["decdpo"] and environment["machine"]["cores"]
    saved = json.loads(found["run-bundle/checkpoints.json"])
    assert [checkpoint["round"] for checkpoint in saved] == [0, 4]
    assert len(found["run-bundle/metrics.jsonl"].splitlines()) == 5
    assert (shell.folder / path).stat().st_mode & 0o077 == 0


def test_a_damaged_run_is_packed_as_it_is(shell: Shell) -> None:
    (shell.folder / "run/run.json").write_text("{")
    (shell.folder / "run/checkpoints/round_000004/manifest.json").write_text("{}")
    (shell.folder / "run/config.toml").write_bytes(b"\xff")
    found = contents(shell.folder / shell("bundle", "run", "--out", "b.tgz").strip())
    assert "is not the record of a run" in found["run-bundle/run.json"]
    assert "damaged" in found["run-bundle/checkpoints.json"]
    assert "unreadable" in found["run-bundle/config.toml"]


def test_it_can_be_made_in_the_run_folder(shell: Shell) -> None:
    whole = shell.folder
    shell.folder = whole / "run"
    found = contents(whole / "run" / shell("bundle", ".").strip())
    assert "run-bundle/config.toml" in found


def test_wrong_uses_are_named(shell: Shell) -> None:
    shell("bundle", "ran", status=3)
    assert "ran is not a run folder" in shell.said
    shell("bundle", "run", "--log", "none", status=2)
    assert "--log none: there is no such file" in shell.said
    shell("bundle", "run", "--out", "run.toml", status=2)
    assert "--out run.toml exists" in shell.said


@pytest.mark.parametrize("text", [
    "ghp_0123456789abcdef", "https://me:pass@host/x", "Authorization: Bearer abcdefgh",
    "token=abcdefgh12", "AKIA0123456789ABCDEF", "eyJhbGciOiJIUzI1NiJ9.e30.abc",
])  # fmt: skip
def test_what_looks_like_a_secret_is_blotted_out(text: str) -> None:
    assert "[removed]" in clean(text, [])
    for secret in ("0123456789", "pass@", "abcdefgh", "e30"):
        assert secret not in clean(text, [])


@pytest.mark.parametrize("line, kept", [
    ("round 3/9  loss 0.5", "round 3/9  loss 0.5"),
    ("decdpo: no 'x' but 'a text'", "decdpo: no 'x' but [removed]"),
    ("decdpo: agent's 'a text'", "decdpo: agent's [removed]"),
    ("decdpo: 'it's a text' at \"k\" 'no end", 'decdpo: [removed] at "k" [removed]'),
    ("decdpo: section.key = 'value' is", "decdpo: section.key = 'value' is"),
    ("a user's line", None),
])  # fmt: skip
def test_of_a_log_only_our_lines_stay_and_no_quoted_text(line: str, kept: str | None) -> None:
    assert log_lines(f"text\r{line}\n") == ("" if kept is None else f"{kept}\n")
