"""Random inputs, the same in every run: never a traceback, never other content than was written.

Hypothesis makes configurations, overrides, graphs, sources and damaged files from fixed seeds, and
reduces what fails to its smallest form.
"""

import contextlib
import io
import json
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decdpo.checkpoint.format import Damaged, Manifest
from decdpo.checkpoint.inspect import digests, verify
from decdpo.cli import main
from decdpo.config import load, parse, parse_override
from decdpo.config.schema import SECTIONS
from decdpo.data.index import ShardIndex
from decdpo.errors import ConfigError, DataError, DecdpoError, TopologyError
from decdpo.topology.files import count_agents, read_graph, read_matrix, read_weights

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format_1"


def some(examples: int) -> Any:
    """Return settings under which so many examples are made, the same in every run."""
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, print_blob=False
    )


@dataclass(frozen=True)
class Mutation:
    """A change to bytes: at ``place`` of the whole, ``old`` bytes become ``new``."""

    place: float
    old: int
    new: bytes

    def of(self, content: bytes) -> bytes:
        at = int(self.place * len(content))
        return content[:at] + self.new + content[at + self.old :]


mutations = st.lists(
    st.builds(
        Mutation,
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 64),
        st.binary(max_size=16),
    ),
    min_size=1,
    max_size=3,
)


def mutated(content: bytes, changes: list[Mutation]) -> bytes:
    for change in changes:
        content = change.of(content)
    return content


# Configurations

values = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(-2, 20), st.floats(), st.booleans(),
    st.text(max_size=12), st.lists(st.floats(0, 2), max_size=3),
    st.sampled_from(["auto", "ring", "adamw", "dsgd", "loglinear", "causal_lm", "none", "choco"]),
)  # fmt: skip


def keys_of(section: str) -> list[str]:
    schema = SECTIONS[section]
    classes = schema.values() if isinstance(schema, dict) else [schema]
    return sorted({field.name for cls in classes for field in fields(cls)})


keys = st.sampled_from([(section, key) for section in SECTIONS for key in keys_of(section)])


def as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return repr(value)


@some(150)
@given(st.dictionaries(keys, values, max_size=4))
def test_any_values_make_a_configuration_or_one_error(chosen: dict[tuple[str, str], Any]) -> None:
    tables: dict[str, list[str]] = {}
    for (section, key), value in chosen.items():
        tables.setdefault(section, []).append(f"{key} = {as_toml(value)}")
    text = "".join(f"[{name}]\n" + "\n".join(rows) + "\n" for name, rows in tables.items())
    try:
        config = parse(text)
    except ConfigError as fault:
        assert fault.what and fault.remedy
        return
    assert parse(config.to_toml()) == config


@some(200)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8")))
def test_any_file_is_a_configuration_or_one_error(content: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(ConfigError):
            load(file.name, [])


@some(200)
@given(st.text(max_size=60))
def test_any_override_is_understood_or_one_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        section, key, _ = parse_override(text)
        assert section and key


# Graphs

words = st.one_of(
    st.integers(-2, 9).map(str), st.floats(-1, 2).map(repr),
    st.sampled_from(["nan", "inf", "1e999", "#", "x", "9999999999999999999999", "0x1", "\u0661"]),
)  # fmt: skip
lines = st.lists(st.lists(words, max_size=4).map(" ".join), max_size=8).map("\n".join)


@some(200)
@given(lines, st.sampled_from([".edges", ".csv"]), st.none() | st.integers(1, 9))
def test_any_lines_are_a_graph_or_one_error(text: str, suffix: str, agents: int | None) -> None:
    if suffix == ".csv":
        text = text.replace(" ", ",")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"graph{suffix}"
        path.write_text(text)
        for read in (read_graph, read_weights):
            with contextlib.suppress(TopologyError):
                found = read(path, agents)
                if read is read_weights:
                    assert np.isfinite(found.toarray()).all()
        with contextlib.suppress(TopologyError):
            assert count_agents(path) >= 1


def matrix_bytes() -> bytes:
    content = io.BytesIO()
    np.savez(content, weights=np.full((4, 4), 0.25))
    return content.getvalue()


@some(150)
@given(mutations)
def test_a_damaged_matrix_is_a_matrix_or_one_error(changes: list[Mutation]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.npz"
        path.write_bytes(mutated(matrix_bytes(), changes))
        with contextlib.suppress(TopologyError):
            assert np.isfinite(read_matrix(path, 4).toarray()).all()


# Sources

leaves = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=8))
texts = st.text(min_size=1, max_size=12)
rows = st.one_of(
    st.fixed_dictionaries({"prompt": texts, "chosen": texts, "rejected": texts}),
    st.fixed_dictionaries(
        {"prompt": leaves, "chosen": leaves | st.lists(leaves, max_size=2), "rejected": leaves}
    ),
    st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "user"]), leaves, max_size=4),
    leaves,
)


@some(25)
@given(st.lists(rows, min_size=1, max_size=6), st.binary(max_size=3))
def test_any_source_is_sharded_or_one_error(found: list[Any], tail: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        content = "".join(json.dumps(row) + "\n" for row in found).encode() + tail
        Path("rows.jsonl").write_bytes(content)
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = main(["shard", "rows.jsonl", "--agents", "2", "--out", "shards"])
        assert status in (0, 2) and "Traceback" not in said.getvalue(), said.getvalue()
        if status == 0:
            index = ShardIndex.load("shards")
            assert sum(index.open(i).num_pairs for i in range(2)) <= len(found)
        else:
            assert "error" in said.getvalue()


# Shards and checkpoints


@some(80)
@given(mutations, st.sampled_from(["agent_0001.h5", "index.json"]))
def test_a_damaged_shard_is_what_was_written_or_one_error(
    changes: list[Mutation], name: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        shutil.copytree(FIXTURE / "shards", shards)
        content = (shards / name).read_bytes()
        changed = mutated(content, changes)
        (shards / name).write_bytes(changed)
        want = ShardIndex.load(FIXTURE / "shards").open(1)
        try:
            found = ShardIndex.load(shards).open(1)
            texts = [found.pair(row) for row in range(found.num_pairs)]
        except DataError as fault:
            assert changed != content and fault.what and fault.remedy
            return
        assert texts == [want.pair(row) for row in range(want.num_pairs)]


@some(80)
@given(mutations, st.sampled_from(["part_0000.h5", "part_0001.h5", "manifest.json"]))
def test_a_damaged_checkpoint_is_what_was_written_or_damaged(
    changes: list[Mutation], name: str
) -> None:
    whole = FIXTURE / "run" / "checkpoints" / "round_000006"
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "round_000006"
        shutil.copytree(whole, copied)
        content = (whole / name).read_bytes()
        changed = mutated(content, changes)
        (copied / name).write_bytes(changed)
        if changed == content:
            return
        assert verify(copied)
        with contextlib.suppress(Damaged):
            assert digests(copied) == digests(whole)
        with contextlib.suppress(Damaged):
            Manifest.read(copied)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "config.toml"])
def test_a_damaged_run_is_told_of_and_packed_or_one_error(name: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURE / "run", tmp_path / "run")
    path = tmp_path / "run" / name
    content = path.read_bytes()

    @some(15)
    @given(mutations)
    def look(changes: list[Mutation]) -> None:
        path.write_bytes(mutated(content, changes))
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main(["status", str(tmp_path / "run")])
            (tmp_path / "b.tgz").unlink(missing_ok=True)
            packed = main(["bundle", str(tmp_path / "run"), "--out", str(tmp_path / "b.tgz")])
        assert status in (0, 2, 3) and packed == 0 and "Traceback" not in said.getvalue()

    look()


def test_errors_of_the_fuzzed_readers_are_of_one_family() -> None:
    assert all(issubclass(kind, DecdpoError) for kind in (ConfigError, DataError, TopologyError))
