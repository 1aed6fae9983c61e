"""Files that were damaged or forged: one error that names them, no hang, no other content."""

import copy
import errno
import hashlib
import json
import os
import random
import signal
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import h5py
import numpy as np
import pytest
import torch

from decdpo import hdf5
from decdpo.checkpoint.checksum import file_crc
from decdpo.checkpoint.format import MANIFEST, Damaged, Manifest, Part, _seal
from decdpo.checkpoint.parts import check_part, open_part, write_part
from decdpo.checkpoint.state import Snapshot
from decdpo.config import parse
from decdpo.config.places import find_paths
from decdpo.data.index import ShardEntry, ShardIndex, _checksum
from decdpo.data.ingest.files.places import files_of
from decdpo.data.shard import PreferenceShard
from decdpo.data.storage import COLUMNS, ShardHeader, checksum, content_digest
from decdpo.errors import ConfigError, DataError, DecdpoError
from decdpo.files import open_regular, parse_json, read_bytes
from decdpo.session.record import run_id
from decdpo.studies.cells import GRADIENTS, Gradients, Value, read_result
from decdpo.studies.custom import load
from decdpo.theory.constants import Constants

FORGERIES = 400


@contextmanager
def within(seconds):
    """Fail rather than hang."""

    def expire(*_):
        raise AssertionError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# What is wrong with a dataset, whoever reads it


def external(file, name, values, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    file.create_dataset(name, values.shape, values.dtype,
                        external=[(str(tmp_path / "pipe"), 0, values.nbytes)])  # fmt: skip


def virtual(file, name, values, tmp_path):
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", values.shape)
    file.create_virtual_dataset(name, layout)


def soft_link(file, name, values, tmp_path):
    file[name + " there"] = values
    file[name] = h5py.SoftLink(file[name + " there"].name)


def external_link(file, name, values, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = values
    file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")


def chunked(file, name, values, tmp_path):
    file.create_dataset(name, (1 << 40, *values.shape[1:]), values.dtype, chunks=True)


def compressed(file, name, values, tmp_path):
    file.create_dataset(name, data=values, compression="gzip")


def huge(file, name, values, tmp_path):
    file.create_dataset(name, (1 << 40, *values.shape[1:]), values.dtype)


def objects(file, name, values, tmp_path):
    kind = h5py.vlen_dtype(values.dtype)
    file.create_dataset(name, values.shape, kind)


def compound(file, name, values, tmp_path):
    file.create_dataset(name, values.shape, np.dtype([("a", values.dtype)]))


def a_group(file, name, values, tmp_path):
    file.create_group(name)


def big_attribute(file, name, values, tmp_path):
    dataset = file.create_dataset(name, data=values)
    for key in ("sha256", "crc32"):
        dataset.attrs.create(key, np.zeros(8000, "u1"))


DATASETS = (external, virtual, soft_link, external_link, chunked, compressed, huge, objects,
            compound, a_group, big_attribute)  # fmt: skip


def replace_dataset(path, name, forge, tmp_path):
    """Put another dataset of that name into a file, with the attributes of the old one."""
    with h5py.File(path, "r+") as file:
        group, _, last = name.rpartition("/")
        group = file[group] if group else file
        values, attributes = group[last][...], dict(group[last].attrs)
        del group[last]
        forge(group, last, values, tmp_path)
        if isinstance(group.get(last, getlink=True), h5py.HardLink) and forge is not big_attribute:
            group[last].attrs.update(attributes)


@pytest.fixture
def shard(tmp_path):
    pairs = [(f"p\u00e9 {k}", "good", "bad") for k in range(8)]
    made = PreferenceShard.from_pairs(pairs, 6, columns={"weight": np.ones(8)}, users=["a"] * 8)
    made.save(tmp_path / "agent_000000.h5")
    return tmp_path / "agent_000000.h5"


@pytest.mark.parametrize("name", ["text", "spans", "weight"])
@pytest.mark.parametrize("forge", DATASETS, ids=lambda forge: forge.__name__)
def test_a_shard_with_a_strange_dataset_is_refused_at_once(shard, tmp_path, name, forge):
    replace_dataset(shard, name, forge, tmp_path)
    with within(5), pytest.raises(DataError, match="agent_000000.h5"):
        PreferenceShard.open(shard)


@dataclass
class State:
    x: torch.Tensor
    steps: int = 3
    on: bool = True
    none: None = None
    name: str = "n"


@pytest.fixture
def part(tmp_path):
    records = Snapshot().take({0: State(torch.arange(6.0)), 1: State(torch.ones(2, 3))})
    write_part(tmp_path / "part_0000.h5", records, {"round": 4, "config": "c" * 5000})
    return tmp_path / "part_0000.h5"


@pytest.mark.parametrize("forge", DATASETS, ids=lambda forge: forge.__name__)
def test_a_part_with_a_strange_dataset_is_damaged(part, tmp_path, forge):
    replace_dataset(part, "agents/000000/x", forge, tmp_path)
    with within(5), pytest.raises(Damaged, match="part_0000.h5"):
        with open_part(part) as reader:
            reader.record(0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("dtype", "float23"), ("dtype", "load"), ("dtype", 3), ("shape", [-1, -6]),
     ("shape", [1 << 40]), ("shape", "six"), ("shape", [2.5]), ("shape", [0, 1 << 62, 1 << 62])],
)  # fmt: skip
def test_a_part_with_a_strange_tensor_is_damaged(part, key, value):
    with h5py.File(part, "r+") as file:
        file["agents/000000/x"].attrs[key] = value
    with within(5), pytest.raises(Damaged):
        with open_part(part) as reader:
            reader.record(0)


@pytest.mark.parametrize("link", [h5py.SoftLink("/agents"), h5py.ExternalLink("o.h5", "/")])
def test_agents_behind_a_link_are_damage(part, link):
    with h5py.File(part, "r+") as file:
        file.move("agents", "others")
        file["agents"] = link
    with pytest.raises(Damaged, match="link"):
        with open_part(part) as reader:
            reader.record(0)


def test_scalars_come_back_as_they_were(part):
    with open_part(part) as reader:
        assert reader.record(0).scalars == {"steps": 3, "on": True, "none": None, "name": "n"}
        assert reader.round == 4 and reader.agents == (0, 1)
        assert type(reader.record(0).scalars["on"]) is bool


@pytest.mark.parametrize(
    "fault",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), TypeError("a mistake"),
     MemoryError(), torch.OutOfMemoryError("CUDA"), OSError(errno.ENOSPC, "full"), KeyError("k")],
    ids=lambda fault: type(fault).__name__,
)  # fmt: skip
def test_a_fault_of_who_reads_a_part_is_not_its_damage(part, fault):
    with pytest.raises(type(fault)) as caught:
        with open_part(part):
            raise fault
    assert caught.value is fault


def test_lack_of_memory_while_a_state_is_filled_is_not_damage(part, monkeypatch):
    plain = torch.empty

    def empty(*sizes, **options):
        if str(options.get("device")) == "meta":
            return plain(*sizes, **options)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with open_part(part) as reader:
        state = State(torch.zeros(12)[::2])  # not contiguous: filled by way of a copy
        monkeypatch.setattr(torch, "empty", empty)
        with pytest.raises(RuntimeError, match="allocate"):
            reader.restore(0, state)


def test_too_many_open_files_are_not_damage(part, monkeypatch):
    def refuse(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(hdf5, "open_regular", refuse)
    monkeypatch.setattr("decdpo.checkpoint.checksum.open_regular", refuse)
    for read in (lambda: open_part(part).__enter__(),
                 lambda: check_part(part, part.stat().st_size, "0")):  # fmt: skip
        with pytest.raises(OSError, match="Too many open files"):
            read()


# Named pipes, devices and large files in the place of files


def make_pipe(path):
    os.mkfifo(path)


def make_device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [make_pipe, make_device])
def test_what_is_no_file_is_never_waited_for(tmp_path, make):
    folder = tmp_path / "round_000004"
    folder.mkdir()
    for name in ("index.json", "agent.h5"):
        make(tmp_path / name)
    for name in (MANIFEST, "part_0000.h5"):
        make(folder / name)
    with within(5):
        with pytest.raises(DataError, match="not a file"):
            ShardIndex.load(tmp_path)
        with pytest.raises(DataError, match="not a file"):
            PreferenceShard.open(tmp_path / "agent.h5")
        with pytest.raises(Damaged, match="not a file"):
            Manifest.read(folder)
        with pytest.raises(Damaged):
            with open_part(folder / "part_0000.h5"):
                pass
        with pytest.raises(OSError, match="not a file"):
            file_crc(folder / "part_0000.h5")


def test_a_file_too_large_to_be_one_of_ours_is_not_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with within(5), pytest.raises(OSError, match="more than"):
        read_bytes(tmp_path / "large")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


@pytest.mark.parametrize(
    "text", [b"\xff", b"[" * 100_000, b"[" * 500 + b"]" * 500, rb'"\ud800"', b"9" * 5000, b"{"]
)
def test_json_that_nobody_could_write_again_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


# Seeded forgeries of JSON whose checksums fit

VALUES = (None, True, -1, 0, 1, 2**63, 10**30, 1e308, float("nan"), "", "x", "../x", "/etc/passwd",
          "a\x00b", "\udc80", [], [1], [[]], {}, {"a": 1}, "0" * 64)  # fmt: skip


def places(value, path=()):
    """Yield the path of everything within a JSON value."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from places(value[index], (*path, index))


def forged(original, rng):
    """Return a copy with one to three values changed, removed, doubled or added."""
    content = copy.deepcopy(original)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(list(places(content)))
        parent = content
        for step in path[:-1]:
            parent = parent[step]
        kind = rng.randrange(5)
        if kind == 0:
            del parent[path[-1]]
        elif kind == 1 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif kind == 2 and isinstance(parent, dict):
            parent["extra key"] = rng.choice(VALUES)
        else:
            parent[path[-1]] = rng.choice(VALUES)
        if not content:
            break
    return content


@pytest.fixture
def shards(tmp_path):
    entries = []
    for agent in range(2):
        made = PreferenceShard.from_pairs([("p", "good", "bad")] * 5, 4, agent=agent, sharding="u")
        name = f"agent_{agent:06d}.h5"
        made.save(tmp_path / name)
        entries.append(ShardEntry(agent, f"n{agent}", name, made.digest, 4, 1, 40))
    index = ShardIndex(tmp_path, "u", 0, 0.2, "iid", "plain", tuple(entries), {"rows": 10})
    index.save()
    return tmp_path


def test_a_forged_index_is_refused_or_leads_to_the_same_pairs(shards):
    path, rng = shards / "index.json", random.Random(8)
    original = json.loads(path.read_text())
    del original["checksum"]
    whole = ShardIndex.load(shards)
    for _ in range(FORGERIES):
        content = forged(original, rng)
        content["checksum"] = _checksum(content)
        path.write_text(json.dumps(content))
        with within(10):
            try:
                index = ShardIndex.load(shards)
                found = [index.open(agent) for agent in range(index.num_agents)]
            except DataError as fault:
                assert fault.remedy and str(shards) in fault.what
                continue
        assert [entry.digest for entry in index.agents] == [shard.digest for shard in found]
        # What nothing can be compared with may be another; the pairs are not.
        assert set(index.agents) <= set(whole.agents) or [
            (e.agent, e.file, e.digest, e.num_train, e.num_heldout) for e in index.agents
        ] == [
            (e.agent, e.file, e.digest, e.num_train, e.num_heldout)
            for e in whole.agents[: index.num_agents]
        ]


def test_a_forged_manifest_is_damaged_or_says_the_same_of_its_parts(tmp_path):
    part = Part("part_0000.h5", 10, "0123abcd", (0, 1))
    manifest = Manifest(4, 2, 2, (part,), {"model": "m"}, "c", {"h5py": "3"}, {"k": [1]}, "now")
    path, rng = tmp_path / MANIFEST, random.Random(8)
    path.write_bytes(manifest.to_bytes())
    assert Manifest.read(tmp_path) == manifest
    original = json.loads(path.read_bytes())
    del original["sha256"]
    for _ in range(FORGERIES):
        content = forged(original, rng)
        path.write_bytes(_seal(content))
        with within(10):
            try:
                found = Manifest.read(tmp_path)
            except Damaged as fault:
                assert str(path) in fault.what
                continue
        assert sorted(a for p in found.parts for a in p.agents) == list(range(found.agents))
        for named in (found.identity, found.versions):
            assert all(type(value) is str for pair in named.items() for value in pair)
        json.dumps(asdict(found), ensure_ascii=False).encode()


def test_a_manifest_with_a_flipped_bit_is_damaged(tmp_path):
    manifest = Manifest(4, 2, 1, (Part("part_0000.h5", 10, "0123abcd", (0,)),))
    original, rng = manifest.to_bytes(), random.Random(2)
    for _ in range(FORGERIES):
        content = bytearray(original)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (tmp_path / MANIFEST).write_bytes(content)
        with pytest.raises(Damaged):
            Manifest.read(tmp_path)


# Seeded forgeries of JSON and TOML without a checksum: an error, or values of the right types


def constants_of(folder):
    return read_result(folder / "constants.json", Constants).to_json()


def records_of(folder):
    return read_result(folder / "records.json", list[dict[str, Value]])


def gradients_of(folder):
    return asdict(read_result(folder / GRADIENTS, Gradients))


def id_of(folder):
    return run_id(folder)


def paths_of(folder):
    """Look for a path that is nowhere, which is said whatever run.json holds."""
    with pytest.raises(ConfigError) as caught:
        find_paths(parse('[data]\nshards = "it"'), folder / "config.toml", print)
    return str(caught.value)


def files_in(folder):
    return [str(path.relative_to(folder)) for path in files_of([folder])]


CONSTANTS = Constants(1.0, 2.0, "found", 0.7, None, "unknown", 0.1, 0.2, 0.3, 0.4, 16, 4, 100, 80)
STARTS = {"id": "a" * 32, "agents": {"0": {"host": "h", "device": "cpu"}},
          "starts": [{"folder": "/start", "hosts": ["h"], "first_round": 0}]}  # fmt: skip
UNSEALED = {
    "constants.json": (constants_of, asdict(CONSTANTS)),
    "records.json": (records_of, [{"round": 0, "loss": 0.5, "method": "x", "diverged": True}]),
    GRADIENTS: (gradients_of, {"clipped_gradient_sq": 0.5}),
    "run.json": (id_of, STARTS),
    "run.json of elsewhere": (paths_of, STARTS),
    "state.json": (files_in, {"_data_files": [{"filename": "a.arrow"}, {"filename": "b.arrow"}],
                              "_indices_data_files": None}),
    "dataset_dict.json": (files_in, {"splits": ["train"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSEALED)
def test_a_forgery_without_a_checksum_is_an_error_or_of_the_right_types(tmp_path, name):
    read, original = UNSEALED[name]
    path, rng = tmp_path / name.split()[0], random.Random(8)
    if name == "dataset_dict.json":
        (tmp_path / "train").mkdir()
        state = {"_data_files": [{"filename": "a.arrow"}]}
        (tmp_path / "train" / "state.json").write_text(json.dumps(state))
    path.write_text(json.dumps(original))
    whole, refused = read(tmp_path), 0
    for _ in range(FORGERIES):
        path.write_text(json.dumps(forged(original, rng)))
        with within(10):
            try:
                found = read(tmp_path)
            except DecdpoError as fault:
                assert fault.remedy and str(tmp_path) in fault.what
                refused += 1
                continue
        refused += "is damaged" in found if isinstance(found, str) else 0
        same_types(found, whole)
    assert refused > FORGERIES / 10


def same_types(found, whole):
    """Fail unless values that are there in both are of one kind."""
    if isinstance(whole, dict):
        assert isinstance(found, dict)
        for key in whole.keys() & found.keys():
            same_types(found[key], whole[key])
    elif isinstance(whole, list):
        assert isinstance(found, list)
    else:
        assert found is None or isinstance(found, (str, int, float))


@pytest.mark.parametrize("name", UNSEALED)
@pytest.mark.parametrize("make", [make_pipe, make_device])
def test_a_pipe_in_the_place_of_json_is_never_waited_for(tmp_path, name, make):
    read, _ = UNSEALED[name]
    make(tmp_path / name.split()[0])
    with within(5):
        if read is paths_of:
            assert "is damaged: it is a" in read(tmp_path)
        elif name in ("state.json", "dataset_dict.json"):
            # What is no file is none of a saved set.
            with pytest.raises(DataError, match="no data files"):
                read(tmp_path)
        else:
            with pytest.raises(DataError, match="not a file"):
                read(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "missing required field `grid`"),
        ("grid = 3", "grid = 3: Expected `object`"),
        ('[grid]\n"lr" = [1]', "grid key 'lr' = .1.: "),
        ('[grid]\n"optim.lr" = 1', "grid key 'optim.lr' = 1: Expected `array`"),
        ('[grid]\n"optim.lr" = []', "grid key 'optim.lr' = ..: Expected `array` of length >= 1"),
        ('[grid]\n"optim.lr" = [1979-05-27]', "grid key 'optim.lr'.*got `date`"),
        ("seeds = 0", "seeds = 0: Expected `int` >= 1"),
        ("seeds = true", "seeds = True: Expected `int`, got `bool`"),
        ("hue = 3", "hue = 3: "),
        ("title = [1]", "title = .1.: "),
        ("base = 3", "base = 3: "),
        ("[base]\nrun = 3", "base = {'run': 3}: "),
        ('base = "forged.toml"', "Expected `object`, got `str`"),
        ("sedes = 3", "did you mean 'seeds'"),
    ],
)
def test_a_study_of_one_s_own_is_read_through_its_schema(tmp_path, monkeypatch, text, said):
    (tmp_path / "forged.toml").write_text('run = "x"')
    if "grid" not in text and text:
        grid = '[grid]\n"optim.lr" = [0.1]\n'
        text = f"{grid}{text}" if text.startswith("[") else f"{text}\n{grid}"
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(tmp_path / "study.toml")
    assert str(tmp_path) in caught.value.what and caught.value.remedy


# Shards whose checksums fit


def reseal(path, name, change):
    """Change one column of a shard, and every checksum with it."""
    with h5py.File(path, "r+") as file:
        values = np.asarray(change(file[name][...]), dtype=COLUMNS[name][0])
        del file[name]
        file[name] = values
        columns = {n: file[n][...] for n in COLUMNS if n in file}
        for n in columns:
            file[n].attrs["sha256"] = checksum(columns[n])
        described = {n: (COLUMNS[n][0], v.shape, checksum(v)) for n, v in columns.items()}
        keys = ("sharding", "agent", "num_train", "prompt_format")
        header = ShardHeader(
            *(v if isinstance(v, str) else int(v) for v in (file.attrs[key] for key in keys))
        )
        file.attrs["digest"] = content_digest(header, described)


def put(index, value):
    def change(values):
        values[index] = value
        return values

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("text", put(0, 0xFF), "not UTF-8"),
        ("text", put(-1, 0xC3), "not UTF-8"),
        ("spans", put((0, 1), 2), "cut a character"),
        ("spans", put((0, 0), -1), "do not fit"),
        ("spans", put((7, 3), 10_000), "do not fit"),
        ("weight", put(2, np.nan), "weight of pair 2 is not finite"),
        ("weight", lambda values: values[:4], "4 rows for 8 pairs"),
        ("user", put(1, 7), "codes outside"),
        ("user", put(1, -1), "codes outside"),
        ("user_names", put(0, 0xFF), "not JSON"),
        ("user_names", lambda _: np.frombuffer(b"[1]", "u1"), "not a list of names"),
        ("user_names", lambda _: np.frombuffer(b"{}", "u1"), "not a list of names"),
    ],
)
def test_a_resealed_shard_is_refused(shard, name, change, said):
    reseal(shard, name, change)
    with pytest.raises(DataError, match=said):
        PreferenceShard.open(shard)


def test_a_resealed_shard_that_is_sound_is_read(shard):
    reseal(shard, "weight", put(2, 3.0))
    assert PreferenceShard.open(shard).weight[2] == 3.0


@pytest.mark.parametrize("which", ["shard", "part"])
def test_flipped_bytes_of_hdf5_are_errors_or_change_nothing(which, request, tmp_path):
    path, rng = request.getfixturevalue(which), random.Random(3)
    original = path.read_bytes()

    def read():
        if which == "shard":
            found = PreferenceShard.open(path)
            return found.digest, found.pairs(range(8))
        with open_part(path) as reader:
            return [(r.structure, {k: v.tolist() for k, v in r.tensors.items()})
                    for r in map(reader.record, reader.agents)]  # fmt: skip

    whole = read()
    for _ in range(FORGERIES):
        content = bytearray(original)
        # Near the beginning lie what describes the datasets.
        for _ in range(rng.choice((1, 1, 8))):
            content[int(rng.random() ** 2 * len(content))] = rng.randrange(256)
        path.write_bytes(content)
        with within(10):
            try:
                found = read()
            except DecdpoError as fault:
                assert str(path) in fault.what
                continue
        # The names in a part are covered by the checksum of the whole file alone.
        assert found == whole or which == "part"


def test_hashlib_is_what_the_index_is_sealed_with(shards):
    content = json.loads((shards / "index.json").read_text())
    sealed = content.pop("checksum")
    text = json.dumps(content, sort_keys=True)
    assert sealed == hashlib.sha256(text.encode()).hexdigest()
