"""Records that show every change, and a checkpoint that knows how many there were."""

import json
import random
import re

import pytest

from decdpo.cli import main
from decdpo.errors import DataError
from decdpo.records import Mark, Writer, keep_until, read_records

ROUNDS = 6


def record(round):
    return {"round": round, "loss": 0.7 / round, "nan": float("nan"), "system": {"bytes": round}}


@pytest.fixture
def path(tmp_path):
    writer = Writer(tmp_path / "metrics.jsonl")
    for round in range(1, ROUNDS + 1):
        writer.write(record(round))
    writer.close()
    return tmp_path / "metrics.jsonl"


def mark_of(path):
    writer = Writer(path)
    writer.close()
    return writer.mark


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def unsealed(lines):
    return [re.sub(rb', "crc": "[0-9a-f]{8}"', b"", line) for line in lines]


def test_every_line_is_json_with_its_checksum_in_system(path):
    found = [json.loads(line) for line in lines_of(path)]
    assert [len(r["system"].pop("crc")) for r in found] == [8] * ROUNDS
    assert str(found) == str([record(r) for r in range(1, ROUNDS + 1)]) == str(read_records(path))


def test_a_record_without_system_is_sealed_too(tmp_path):
    writer = Writer(tmp_path / "x")
    writer.write({"round": 1, "ages": [0]})
    writer.close()
    assert read_records(tmp_path / "x") == [{"round": 1, "ages": [0]}]


def test_writing_goes_on_where_it_ended(path):
    writer = Writer(path)
    writer.write(record(ROUNDS + 1))
    writer.close()
    assert [r["round"] for r in read_records(path)] == list(range(1, ROUNDS + 2))


def test_any_changed_bit_is_found(path):
    original = path.read_bytes()
    rng = random.Random(1)
    for _ in range(300):
        content = bytearray(original)
        # The end of the last line is what a kill may leave out.
        content[rng.randrange(len(content) - 1)] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        with pytest.raises(DataError, match="line"):
            read_records(path)


@pytest.mark.parametrize(
    "harm",
    [
        lambda lines: lines[:2] + lines[3:],
        lambda lines: lines[1:],
        lambda lines: lines[:2] + lines[1:],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: lines[:3] + unsealed(lines[3:]),
        lambda lines: lines[:3] + [b"\n"] + lines[3:],
        lambda lines: lines[:-1] + [lines[-1][:20] + b"\n"],
    ],
    ids=["removed", "first removed", "doubled", "swapped", "unsealed", "empty", "cut"],
)
def test_lines_that_are_not_those_written_are_found(path, harm):
    path.write_bytes(b"".join(harm(lines_of(path))))
    with pytest.raises(DataError, match=r"line \d"):
        read_records(path)


@pytest.mark.parametrize("left", [1, 30, 200])
def test_a_torn_last_line_is_left_out(path, left):
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: min(left, len(lines[-1]) - 1)])
    assert len(read_records(path)) == ROUNDS - 1


def test_records_of_an_earlier_version_are_read_and_continued(path):
    path.write_bytes(b"".join(unsealed(lines_of(path))))
    keep_until(path, 4)
    writer = Writer(path)
    writer.write(record(5))
    writer.close()
    assert [r["round"] for r in read_records(path)] == [1, 2, 3, 4, 5]
    # From the first checksum on, it covers what was written before.
    path.write_bytes(path.read_bytes().replace(b'"round": 2', b'"round":  2'))
    with pytest.raises(DataError, match="line 5 does not match"):
        read_records(path)


def test_a_checkpoint_knows_a_file_that_was_cut_or_made_anew(path):
    lines, mark = lines_of(path), mark_of(path)
    for kept in (lines[:4], unsealed(lines)[1:], []):
        path.write_bytes(b"".join(kept))
        with pytest.raises(DataError, match="not what it was at the checkpoint of round 6"):
            keep_until(path, 6, mark)
        assert path.read_bytes() == b"".join(kept)


def test_damage_after_the_checkpoint_goes_with_the_records_after_it(path):
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:4]))
    mark = mark_of(path)
    path.write_bytes(b"".join(lines[:4]) + b"\xff\n" + lines[5])
    keep_until(path, 4, mark)
    assert lines_of(path) == lines[:4]


def test_a_mark_survives_json():
    mark = Mark(3, 0xFF)
    assert Mark.from_json(json.loads(json.dumps(mark.to_json()))) == mark
    for other in (None, [], {"round": "3", "crc": "00000000"}, {"round": 3, "crc": 5}):
        assert Mark.from_json(other) is None


def test_a_run_refuses_to_go_on_over_damaged_records(shards, capsys):
    small = [word for key in ("policy.dimension=64", "checkpoint.every=2", "run.rounds=4")
             for word in ("--set", key)]  # fmt: skip
    with open("a.toml", "w") as file:
        file.write(f'[data]\nshards = "{shards}"\n')
    assert main(["train", "a.toml", "--out", "run", *small]) == 0
    path = shards.parent / "run" / "metrics.jsonl"
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:2]))
    assert main(["resume", "run", "--set", "run.rounds=5"]) == 2
    assert "metrics.jsonl is not what it was" in capsys.readouterr().err
    assert lines_of(path) == lines[:2]
    path.unlink()
    assert main(["resume", "run", "--set", "run.rounds=5"]) == 0
    assert "metrics.jsonl is missing: the records begin anew" in capsys.readouterr().err
    assert [r["round"] for r in read_records(path)] == [5]


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    rows = [{**row, "prompt": f"p{k}"} for k in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["shard", "rows.jsonl", "--agents", "2", "--out", "shards"]) == 0
    return tmp_path / "shards"
