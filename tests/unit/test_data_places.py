"""Folders and hub names to files: what is in a folder, which split, and nothing read twice."""

import json
import os
import re
import shutil
import sys
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest

from decdpo.data.ingest.files import hub
from decdpo.data.ingest.files.places import files_of
from decdpo.data.sharding import Plan, make_shards
from decdpo.errors import DataError, EnvironmentFault

ROWS = [{"prompt": f"q{k}", "chosen": f"yes {k}", "rejected": f"no {k}"} for k in range(12)]


def fill(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({**row, "file": number}) + "\n" for row in ROWS))
    return folder


def found(folder, **options):
    return [str(path.relative_to(folder)) for path in files_of([folder], **options)]


def test_a_folder_stands_for_the_data_files_in_it(tmp_path):
    fill(tmp_path, "b.jsonl.gz", "a.json", "deep/c.csv", "d.parquet.zst")
    fill(tmp_path, "README.md", "LICENSE", ".git/x.json", ".hidden.json", "dataset_infos.json")
    lines = []
    names = ["a.json", "b.jsonl.gz", "d.parquet.zst", "deep/c.csv"]
    assert sorted(found(tmp_path, progress=lines.append)) == names
    assert lines == [f"{tmp_path}: not read: LICENSE, README.md, dataset_infos.json"]


def test_files_and_folders_mix_and_nothing_is_read_twice(tmp_path):
    fill(tmp_path, "x/a.jsonl", "b.jsonl")
    paths = [tmp_path / "b.jsonl", tmp_path / "x" / "a.jsonl"]
    assert files_of([tmp_path / "b.jsonl", tmp_path / "x"]) == paths
    with pytest.raises(DataError, match="are the same file"):
        files_of([tmp_path / "x", paths[1]])
    os.symlink(tmp_path / "x" / "a.jsonl", tmp_path / "x" / "z.jsonl")
    with pytest.raises(DataError, match="are the same file"):
        files_of([tmp_path / "x"])


def test_a_link_to_a_folder_above_does_not_go_on_for_ever(tmp_path):
    fill(tmp_path, "x/a.jsonl")
    os.symlink(tmp_path, tmp_path / "x" / "up")
    assert found(tmp_path) == ["x/a.jsonl"]


@pytest.mark.parametrize(
    "names, split, expected",
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "eval.jsonl"], "test", ["eval.jsonl"]),
        (["base/train.jsonl.gz", "base/test.jsonl.gz"], "train", ["base/train.jsonl.gz"]),
        (["train/a.jsonl", "train/b.jsonl", "dev/a.jsonl"], "val", ["dev/a.jsonl"]),
        (["train/a.jsonl", "train/b.jsonl"], None, ["train/a.jsonl", "train/b.jsonl"]),
        (
            ["data/train_prefs-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"],
            "train_prefs",
            ["data/train_prefs-00000-of-00001.parquet"],
        ),
        (["a.jsonl", "b.jsonl"], "train", ["a.jsonl", "b.jsonl"]),
        (["constraints.jsonl", "latest.jsonl"], None, ["constraints.jsonl", "latest.jsonl"]),
    ],
)
def test_one_split_of_a_folder_is_read(tmp_path, names, split, expected):
    fill(tmp_path, *names)
    assert found(tmp_path, split=split) == expected


@pytest.mark.parametrize(
    "names, split, message",
    [
        (["train.jsonl", "test.jsonl"], None, r"several splits: test \(1\), train \(1\)"),
        (["a.jsonl", "test.jsonl"], None, r"several splits: none named \(1\), test \(1\)"),
        (["train.jsonl", "test.jsonl"], "extra", "no split 'extra'"),
        (["a.jsonl", "test.jsonl"], "extra", "no split 'extra'"),
        (["a.jsonl"], "test", "no split 'test'"),
        (["train.jsonl"], "test", "no split 'test'"),
        (["notes.txt"], None, "holds no data files"),
        ([], None, "holds no data files"),
        (["index.json", "agent_0000.h5"], None, "holds shards, not sources"),
    ],
)
def test_folders_that_leave_it_open_are_refused(tmp_path, names, split, message):
    fill(tmp_path, *names)
    with pytest.raises(DataError, match=message) as error:
        files_of([tmp_path], split)
    assert error.value.remedy


def test_a_split_of_files_is_refused(tmp_path):
    fill(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match="--split train, but the sources are files"):
        files_of([tmp_path / "a.jsonl"], "train")


def save_to_disk(folder, rows, parts=2):
    """Write what ``datasets.Dataset.save_to_disk`` writes."""
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    names = [f"data-{part:05}-of-{parts:05}.arrow" for part in range(parts)]
    for part, name in enumerate(names):
        table = pyarrow.Table.from_pylist(rows[part::parts])
        with pyarrow.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_folders_of_save_to_disk_are_read(tmp_path):
    save_to_disk(tmp_path / "set", ROWS)
    index = make_shards([tmp_path / "set"], tmp_path / "s", Plan("iid", 2))
    pairs = [pair.prompt for agent in (0, 1) for pair in index.open(agent).pairs(range(6))]
    assert sorted(pairs) == sorted(row["prompt"] for row in ROWS)


def test_a_split_of_several_saved_ones_is_read(tmp_path):
    for name in ("train", "test"):
        save_to_disk(tmp_path / "sets" / name, ROWS, parts=1)
    (tmp_path / "sets" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"several splits: train \(1\), test \(1\)"):
        files_of([tmp_path / "sets"])
    assert found(tmp_path / "sets", split="test") == ["test/data-00000-of-00001.arrow"]
    index = make_shards([tmp_path / "sets"], tmp_path / "s", Plan("iid", 1, split="train"))
    assert index.report["rows_read"] == 12


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "names no data files"),
        ("state.json", '{"_data_files": [{"filename": ".."}]}', "names no data files"),
        ("state.json", '{"_data_files": [3]}', "names no data files"),
        ("state.json", '{"_data_files": []}', "names no data files"),
        ("state.json", '{"_data_files": {"filename": "x"}}', "names no data files"),
        ("state.json", "[1]", "names no data files: Expected `object`"),
        ("state.json", "{", "cannot be read"),
        ("state.json", '{"_indices_data_files": [{"filename": "i"}]}', "an index of rows"),
        ("dataset_dict.json", '{"splits": ["../up"]}', "names no splits"),
        ("dataset_dict.json", '{"splits": 3}', "names no splits"),
    ],
)
def test_forged_descriptions_of_saved_sets_are_refused(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        files_of([tmp_path])
    assert error.value.remedy


class Hub:
    """A stand-in for the hub's client that serves the folders below ``root``."""

    def __init__(self, root, cache):
        self.root, self.cache, self.asked = root, cache, []

    def snapshot_download(self, name, *, repo_type, revision, allow_patterns):
        self.asked.append((name, repo_type, revision))
        target = self.cache / "0123abc"
        for path in sorted((self.root / name).rglob("*")):
            below = path.relative_to(self.root / name)
            if path.is_file() and any(fnmatch(str(below), p) for p in allow_patterns):
                (target / below).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / below)
        if not target.exists():
            raise ConnectionError("no route\nto the host")
        return str(target)


@pytest.fixture
def online(tmp_path, monkeypatch):
    names = ("base/train.jsonl", "base/test.jsonl", "more/train.jsonl")
    fill(tmp_path / "root" / "org" / "set", *names)
    stand_in = Hub(tmp_path / "root", tmp_path / "cache")
    module = SimpleNamespace(snapshot_download=stand_in.snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    return stand_in


def test_names_on_the_hub_are_fetched_if_asked(tmp_path, online):
    plan = Plan("iid", 2, split="train", hub=True)
    lines = []
    index = make_shards(["org/set/base@v1"], tmp_path / "s", plan, progress=lines.append)
    assert online.asked == [("org/set", "dataset", "v1")]
    assert lines == ["org/set/base@v1 from the hub, revision 0123abc"]
    assert [file["rows"] for file in index.report["sources"]] == [12]
    assert not (tmp_path / "cache" / "0123abc" / "more").exists()


def test_nothing_is_fetched_unasked(tmp_path, online):
    with pytest.raises(DataError, match="there is no file org/set") as error:
        make_shards(["org/set"], tmp_path / "s", Plan("iid", 2))
    assert "--hub" in error.value.remedy and online.asked == []


def test_paths_that_exist_are_not_fetched(tmp_path, online):
    fill(tmp_path, "here.jsonl")
    make_shards(["here.jsonl"], tmp_path / "s", Plan("iid", 2, hub=True))
    assert online.asked == []


@pytest.mark.parametrize(
    "name, message",
    [
        ("org/none", "org/none cannot be fetched from the hub: no route$"),
        ("org/set/none", "cannot be fetched|no data files in it"),
        ("plain", "neither a path that exists nor a name on the hub"),
        ("a/../b", "neither a path that exists nor a name on the hub"),
        ("./data.jsonl", "neither a path|cannot be fetched"),
    ],
)
def test_names_that_cannot_be_fetched_are_named(online, name, message):
    with pytest.raises(DataError) as error:
        hub.fetch(name, print)
    assert re.search(message, error.value.what) and error.value.remedy


def test_the_hub_without_its_client_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EnvironmentFault, match="needs huggingface_hub") as error:
        hub.fetch("org/set", print)
    assert "decdpo[hf]" in error.value.remedy


def test_the_real_client_without_a_network_is_named(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="org/set cannot be fetched from the hub"):
        hub.fetch("org/set", print)
