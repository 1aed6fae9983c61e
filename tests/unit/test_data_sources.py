"""Files to records: every container gives the same records; faults are named by their place."""

import bz2
import gzip
import json
import lzma
import math
import os
import random
import sys
import threading
import tracemalloc

import pytest

from decdpo.data.ingest.files import json_values, streams
from decdpo.data.ingest.files.sources import records, stems
from decdpo.errors import DataError, EnvironmentFault

NOISE = random.Random(0).randbytes(9999)
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
    "several arrays": json.dumps(ROWS[:1]) + "\n" + json.dumps(ROWS[1:], indent=1) + "[]",
    "objects over many lines": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "objects in a row": "".join(map(json.dumps, ROWS)),
    "lines with carriage returns": "\r\n".join(map(json.dumps, ROWS)) + "\r\n\r\n",
    "record separators": "".join("\x1e" + json.dumps(row) + "\n" for row in ROWS),
    "csv": csv_text(","),
    "tsv": csv_text("\t"),
    "semicolons": csv_text(";"),
    "csv with a byte order mark": "\ufeff" + csv_text(","),
    "byte order mark": "\ufeff" + json.dumps(ROWS),
    "byte order marks of joined files": "".join("\ufeff" + json.dumps(row) for row in ROWS),
}


def zstandard(data):
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "two members": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard,
}


def each_way(container, packer):
    return container == "csv" or packer in ("plain", "gzip")


@pytest.mark.parametrize(
    "container, packer", [(c, p) for c in CONTAINERS for p in PACKERS if each_way(c, p)]
)
def test_every_container_gives_the_same_records(tmp_path, container, packer):
    # The name says nothing on purpose: what a file is, is read from its content.
    path = tmp_path / "data.bin"
    path.write_bytes(PACKERS[packer](CONTAINERS[container].encode()))
    assert list(records(path)) == ROWS


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("rows", [1, 2000])
def test_a_pipe_is_read_once_from_its_beginning(tmp_path, packer, rows):
    data = "".join(json.dumps({"n": n, "text": "x" * 40}) + "\n" for n in range(rows)).encode()
    path = tmp_path / "pipe"
    os.mkfifo(path)
    packed = PACKERS[packer](data)

    def write():
        with open(path, "wb", buffering=0) as pipe:
            pipe.write(packed[:3])
            pipe.write(packed[3:])

    writer = threading.Thread(target=write)
    writer.start()
    found = list(records(path))
    writer.join()
    assert [record["n"] for record in found] == list(range(rows))


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


@pytest.mark.parametrize("kind", ["lines", "array", "in a row"])
def test_values_are_whole_wherever_a_read_ends(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(json_values, "_CHUNK", 7)
    odd = [
        {"a": -1.5e-7, "b": [True, None, {"c": "\\\"€😀"}]},
        {"nan": math.inf, "big": 10**40, "half": "\ud800"},
    ]
    values = [*odd, 12345, -0.25, "text", *odd]
    text = {
        "lines": "\n".join(map(json.dumps, values)),
        "array": json.dumps(values, indent=1),
        "in a row": " ".join(map(json.dumps, values)),
    }[kind]
    (tmp_path / "a").write_text(text)
    assert list(records(tmp_path / "a")) == [*odd, *["not an object"] * 3, *odd]


def test_what_json_calls_no_number_is_read(tmp_path):
    (tmp_path / "a").write_text('{"a": NaN, "b": Infinity, "c": -Infinity}')
    (record,) = records(tmp_path / "a")
    assert math.isnan(record["a"]) and (record["b"], record["c"]) == (math.inf, -math.inf)


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


def test_a_header_may_hold_line_breaks_and_other_delimiters(tmp_path):
    path = tmp_path / "a"
    path.write_text('"a\n(best)";"b, c, d, e"\n1;2\n')
    assert list(records(path)) == [{"a\n(best)": "1", "b, c, d, e": "2"}]
    path.write_text('"a, b, c"\td\n1\t2\n')
    assert list(records(path)) == [{"a, b, c": "1", "d": "2"}]


@pytest.mark.parametrize(
    "body, row",
    [
        ('Q0\t"Yes\tno 0\nQ1\tyes\tno\nQ4\tye"\tno 4\n', 1),
        ('Q0\tyes\tno\nQ1\tyes\t"no\nQ2\tyes\tno"\n', 2),
        ('"Q0\tyes\tno\nQ1"\tyes\tno\n', 1),
        ('Q0\t"yes\tno\n\n\nQ1\tyes\tno\nx"\tno\n', 1),
    ],
)
def test_a_stray_quote_does_not_swallow_rows_of_tabs(tmp_path, body, row):
    (tmp_path / "a.tsv").write_text("prompt\tchosen\trejected\n" + body)
    with pytest.raises(DataError, match=rf"line {row + 1} \(row {row}\): a quoted cell") as error:
        list(records(tmp_path / "a.tsv"))
    assert "written twice" in error.value.remedy


def test_quoted_cells_of_a_table_of_tabs_may_hold_code(tmp_path):
    code = "def f(x):\n\treturn x\n"
    (tmp_path / "a.tsv").write_text(f'prompt\tchosen\trejected\np\t"{code}"\tno\n')
    assert list(records(tmp_path / "a.tsv"))[0]["chosen"] == code


def test_a_quote_inside_a_cell_is_text(tmp_path):
    (tmp_path / "a.tsv").write_text('a\tb\nsay "hi" now\t5" wide\n')
    assert list(records(tmp_path / "a.tsv")) == [{"a": 'say "hi" now', "b": '5" wide'}]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"\x89HDF\r\n\x1a\n\x00\x00", "is an HDF5 file"),
        (b"\x7fELF\x00\x00", "binary file"),
        (b'{"a": 1}\n{"a": ', r"line 2, column [67] \(row 2\): not JSON"),
        (b'{\n "a": 1,\n}\n', r"line 3, column 1 \(row 1\): not JSON"),
        (b'{"a": 1}, {"a": 2}', r"line 1, column 9 \(row 2\)"),
        (b'{"a": "x\n{"a": 2}\n', r"line 1, column 9 \(row 1\).*control character"),
        (b'[{"a": 1}, {"a": ', r"line 1, column 1[78] \(row 2\)"),
        (b'[{"a": 1}', r"\(row 2\): not JSON \(',' or ']' is missing.*cut off"),
        (b'[{"a": 1} {"a": 2}]', r"column 11 \(row 2\): not JSON \(',' or ']' is missing"),
        (b'[{"a": 1},]', r"column 11 \(row 2\): not JSON"),
        (b'[{"a": 1}] this is no JSON', r"column 12 \(row 2\): not JSON"),
        (b'[{"a": 1}]]', r"column 11 \(row 2\): not JSON"),
        (b'[{"a": 1}]\n\n[{"a": 1}, oh]', r"line 3, column 12 \(row 3\): not JSON"),
        (b"[" * 100_000, r"column 2 \(row 1\): not JSON \(nested too deeply"),
        (b'a,b\n1,2\n"1,2\n3,4\n', r"line 3 to 4 \(row 2\): a quote is opened"),
        (b'a,b\n1,2\n\n"he said "no"",2\n', r"line 4 \(row 2\): ',' expected after"),
        (b'a,b\n1,x\ry\n', r"line 2 \(row 1\): a carriage return"),
        (b'a,"b\n1,2\n', r"line 1 to 2 \(the header\): a quote is opened"),
        (b"a,b\r1,2\r", "carriage returns alone"),
        (b"just some words\n", "no table header"),
        (b"a,b,a\n1,2,3\n", "names column 'a' twice"),
        (b'{"a": "\xff\xfe"}\n', r"line 1: not UTF-8 text \(byte 0xff"),
        (b"a,b\n" + b"1,2\n" * 99999 + b"1,caf\xe9,3\n", r"line 100001: not UTF-8.*0xe9"),
        (b'[\n' + b'{"a": "\xe2\x82\xac"},\n' * 99999 + b'{"a": "\xe9"}', "line 100001: not UTF-8"),
        (b'{"a": "\xe2\x82', "line 1: not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "is UTF-16 text, not UTF-8"),
        ('[{"a": 1}]'.encode("utf-16-be"), "is UTF-16BE text"),
        ("a,b\n1,2\n".encode("utf-32"), "is UTF-32 text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "is a Git LFS pointer"),
        (b"/annex/objects/SHA256E-s1\n", "is a git-annex pointer"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"PK\x03\x04\x14\x00", "is a zip archive"),
        (b"\x80\x04\x95", "is a pickle, which is never read"),
        (gzip.compress(b'{"a": 1}\n' * 9999, mtime=0)[:-20], "cannot be read"),
        (gzip.compress(NOISE.hex().encode(), mtime=0)[:-2000], "cannot be read|no table"),
        (bz2.compress(b'{"a": 1}\n' * 9999)[:-20], "cannot be read"),
        (lzma.compress(b'{"a": 1}\n' * 9999)[:-20], "cannot be read"),
        (gzip.compress(b'{"a": 1}\n', mtime=0)[:-4] + b"abcd", "cannot be read"),
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


def test_the_last_row_before_damage_is_named(tmp_path):
    data = b"".join(b'{"a": "%s"}\n' % os.urandom(50).hex().encode() for _ in range(5000))
    (tmp_path / "a").write_bytes(gzip.compress(data)[:-60_000])
    found = []
    with pytest.raises(DataError, match="cannot be read after row") as error:
        found.extend(iter(records(tmp_path / "a")))
    assert f"after row {len(found)}:" in str(error.value)


def test_lines_without_an_end_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LARGEST_RECORD", 1000)
    (tmp_path / "a").write_text("a,b\n1,2\n" + "x" * 5000)
    with pytest.raises(DataError, match="line 3 is longer"):
        list(records(tmp_path / "a"))


def arrow_table():
    pyarrow = pytest.importorskip("pyarrow")
    text = pyarrow.string()
    talk = pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))
    return pyarrow.table(
        {
            "large": pyarrow.array(["a", "b"], pyarrow.large_string()),
            "coded": pyarrow.array(["x", "x"]).dictionary_encode(),
            "talk": pyarrow.array([[{"role": "user", "content": "q"}], []], talk),
            "raw": pyarrow.array([b"yes", None], pyarrow.binary()),
            "number": pyarrow.array([1.0, float("nan")]),
        }
    )


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream"])
def test_arrow_types_become_python_values(tmp_path, kind):
    table = arrow_table()
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "data"
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        new = {"arrow file": pyarrow.ipc.new_file, "arrow stream": pyarrow.ipc.new_stream}[kind]
        with new(path, table.schema) as writer:
            for _ in range(3):
                writer.write_table(table)
    one, two = list(records(path))[-2:]
    assert (one["large"], one["coded"], one["raw"]) == ("a", "x", b"yes")
    assert one["talk"] == [{"role": "user", "content": "q"}]
    assert two["raw"] is None and math.isnan(two["number"])
    content = path.read_bytes()
    for cut in (len(content) // 3, len(content) // 2, len(content) - 9):
        path.write_bytes(content[:cut])
        if kind == "arrow file" and cut == len(content) - 9:
            continue  # The stream inside is whole; only the footer, which is not read, is cut.
        with pytest.raises(DataError, match="cannot be read|cut off"):
            list(records(path))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_texts_of_arrow_that_are_not_utf8_are_named(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    wrong = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
    table, path = pyarrow.table({"prompt": wrong}), tmp_path / "data"
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match="data cannot be read: .*(UTF|utf)"):
        list(records(path))


def test_a_stream_that_announces_more_than_there_is_takes_no_memory(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "data"
    path.write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 1000)
    tracemalloc.start()
    with pytest.raises(DataError, match="cannot be read"):
        list(records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


def test_parquet_in_a_pipe_is_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[b"PAR1"])
    writer.start()
    with pytest.raises(DataError, match="Parquet in a pipe"):
        list(records(tmp_path / "pipe"))
    writer.join()


def test_stems_tell_files_apart(tmp_path):
    paths = [tmp_path / name for name in ("a/x.jsonl.gz", "b/x.json", "c/y.csv")]
    assert stems(paths) == [str(paths[0]), str(paths[1]), "y"]
