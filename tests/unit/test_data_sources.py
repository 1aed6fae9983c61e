"""Files to records: every container gives the same records; damaged and unknown files are named."""

import gzip
import json
import sys

import pytest

from decdpo.data.ingest.sources import records, stems
from decdpo.errors import DataError, EnvironmentFault

ROWS = [
    {"prompt": "a, b?", "chosen": 'say "yes"\nplease', "rejected": "no\u2028never"},
    {"prompt": "Größe", "chosen": "x" * 3000, "rejected": "y"},
    {"prompt": "p\tq", "chosen": "1", "rejected": "2"},
]


def csv_text(delimiter):
    def cell(value):
        return '"' + value.replace('"', '""') + '"'

    lines = [delimiter.join(ROWS[0])]
    return "\n".join(lines + [delimiter.join(map(cell, row.values())) for row in ROWS]) + "\n"


CONTAINERS = {
    "lines": "\n".join(json.dumps(row) for row in ROWS) + "\n",
    "lines without the last newline": "\n\n".join(json.dumps(row) for row in ROWS),
    "unescaped": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "array": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "compact array": "  " + json.dumps(ROWS),
    "csv": csv_text(","),
    "tsv": csv_text("\t"),
    "byte order mark": "\ufeff" + json.dumps(ROWS),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_records(tmp_path, container, zipped):
    data = CONTAINERS[container].encode()
    # The name says nothing on purpose: what a file is, is read from its content.
    path = tmp_path / "data.bin"
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert list(records(path)) == ROWS


def test_parquet_gives_the_same_records(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "data")
    assert list(records(tmp_path / "data")) == ROWS
    content = (tmp_path / "data").read_bytes()
    (tmp_path / "data").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        list(records(tmp_path / "data"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "data.parquet").write_bytes(b"PAR1....PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentFault, match="needs pyarrow") as error:
        list(records(tmp_path / "data.parquet"))
    assert "decdpo[parquet]" in error.value.remedy


def test_arrays_larger_than_a_read_are_streamed(tmp_path):
    rows = [{"n": n, "text": "é" * (n % 977)} for n in range(6000)]
    path = tmp_path / "large.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert path.stat().st_size > 4 << 20
    stream = records(path)
    assert next(stream) == rows[0]
    assert [rows[0], *stream] == rows


@pytest.mark.parametrize("text", ['{"a": 1}\n[2]\n', '[{"a": 1}, 7]'])
def test_values_that_are_not_objects_are_reported(tmp_path, text):
    path = tmp_path / "a"
    path.write_text(text)
    assert list(records(path)) == [{"a": 1}, "not an object"]


def test_table_rows_of_another_width_are_reported(tmp_path):
    path = tmp_path / "a"
    path.write_text("a,b\n1,2\n1,2,3\n\n4\n")
    wrong = "not as many cells as the header"
    assert list(records(path)) == [{"a": "1", "b": "2"}, wrong, wrong]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"\x89HDF\r\n\x1a\n\x00\x00", "binary file"),
        (b'{"a": 1}\n{"a": ', "line 2: not a JSON object"),
        (b'{\n "a": 1\n}\n', "line 1: not a JSON object"),
        (b'[{"a": 1}, {"a": ', "element 2 of the array"),
        (b'[{"a": 1}', "element 2 of the array"),
        (b"[" * 100_000, "element 1 of the array"),
        (b'a,b\n"1,2\n', "not a table"),
        (b"just some words\n", "no table header"),
        (b"a,b,a\n1,2,3\n", "no table header"),
        (b'{"a": "\xff\xfe"}\n', "not UTF-8"),
        (gzip.compress(b'{"a": 1}\n' * 9999)[:-20], "cannot be read"),
        (gzip.compress(b'{"a": 1}\n')[:-4] + b"abcd", "cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "source"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(records(path))
    assert str(path) in str(error.value) and error.value.remedy


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        list(records(tmp_path / "none"))
    with pytest.raises(DataError, match="is a folder"):
        list(records(tmp_path))


def test_stems_tell_files_apart(tmp_path):
    paths = [tmp_path / name for name in ("a/x.jsonl.gz", "b/x.json", "c/y.csv")]
    assert stems(paths) == [str(paths[0]), str(paths[1]), "y"]
