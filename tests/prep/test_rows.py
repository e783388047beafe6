"""Readers of rows: every place of a fault is named, and memory does not grow with the file."""

import gzip
import json
import tracemalloc

import pytest

from skytrain.errors import UserError
from skytrain.prep import rows
from skytrain.prep.rows import Unreadable, read_rows

ROWS = [{"id": i, "text": text} for i, text in enumerate(["a", "é🙂", "line\u2028separator", 'quote " and \\ ]},', ""])]


def parsed(path):
    """(where, row or the fault's text) of every row of a file."""
    found = []
    for raw in read_rows(path):
        try:
            found.append((raw.where, raw.parse()))
        except Unreadable as error:
            found.append((raw.where, str(error)))
    return found


def written(tmp_path, data, name="chats.jsonl"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.fixture(params=[rows.CHUNK, 7], ids=["one read", "7 bytes a read"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", request.param)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n", "\n \r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [True, False])
def test_json_lines_with_bom_crlf_blank_lines_and_line_separators(tmp_path, newline, bom, end):
    text = newline.join(json.dumps(row, ensure_ascii=False) for row in ROWS) + (newline if end else "")
    path = written(tmp_path, bom + text.encode())
    step = 2 if newline.count("\n") == 2 else 1
    assert parsed(path) == [(f"{path}:{1 + step * i}", row) for i, row in enumerate(ROWS)]


def test_faults_of_json_lines_name_the_line_and_spoil_no_other(tmp_path):
    lines = [b'{"a": 1}', b'{"a": "caf\xe9"}', b"{'a': 1}", b'{"a": 2}', b'{"a": "cut o']
    path = written(tmp_path, b"\n".join(lines))
    found = parsed(path)
    assert [found[0], found[3]] == [(f"{path}:1", {"a": 1}), (f"{path}:4", {"a": 2})]
    assert found[1] == (f"{path}:2", "not UTF-8 (byte 0xe9 in column 11)")
    assert found[2][0] == f"{path}:3" and "not JSON" in found[2][1] and "column 2" in found[2][1]
    assert found[4][0] == f"{path}:5" and "not JSON" in found[4][1]


def test_json_that_breaks_parsers_is_a_fault_of_its_line(tmp_path):
    path = written(tmp_path, b"{" * 3 + b"\n" + b'{"a":' * 100_000 + b"\n" + b"9" * 5000 + b"\n[1]\n")
    assert [isinstance(row, str) for _, row in parsed(path)] == [True, True, True, False]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_one_json_array(tmp_path, chunk, indent, bom):
    text = json.dumps(ROWS, ensure_ascii=False, indent=indent)
    path = written(tmp_path, bom + b" \n" + text.encode() + b"\n", "chats.json")
    found = parsed(path)
    assert [row for _, row in found] == ROWS
    for i, (where, _) in enumerate(found, 1):
        line = 2 if indent is None else 3 + 4 * (i - 1)
        assert where.split(" ")[0] == f"{path}:{line}" and (f"element {i}" in where or line == i)


def test_an_empty_array_and_an_empty_file_have_no_rows(tmp_path, chunk):
    assert parsed(written(tmp_path, b"[ ]\n")) == [] and parsed(written(tmp_path, b" \n")) == []


@pytest.mark.parametrize(
    "data, good, fault",
    [
        (b'[{"a": 1}, {"a": "\xe9"}, {"a": 2}]', [{"a": 1}, {"a": 2}], "not UTF-8 (byte 0xe9)"),
        (b'[{"a": 1},\n {"a": "cut o', [{"a": 1}], "nothing behind it can be read"),
        (b'[{"a": 1},\n {"a": 2}', [{"a": 1}, {"a": 2}], "the array is cut off"),
        (b'[{"a": 1},\n {"a": 2},', [{"a": 1}, {"a": 2}], "nothing behind it can be read"),
        (b'[{"a": 1},\n {a: 2}, {"a": 3}]', [{"a": 1}], "nothing behind it can be read"),
        (b'[{"a": 1}\n {"a": 2}]', [{"a": 1}], "no comma"),
        (b'[{"a": 1}]\n[{"a": 2}]', [{"a": 1}], "text after the end"),
    ],
)
def test_faults_of_an_array_name_the_line_and_keep_what_stands_before(tmp_path, chunk, data, good, fault):
    path = written(tmp_path, data)
    found = parsed(path)
    assert [row for _, row in found if isinstance(row, dict)] == good
    (bad,) = [(where, row) for where, row in found if isinstance(row, str)]
    line = 1 if b"\xe9" in data else 2
    assert fault in bad[1] and bad[0].startswith(f"{path}:{line}")


def test_a_broken_element_ends_the_reading_within_bounds(tmp_path, monkeypatch):
    """Without a closing quote the rest of a file is one string: it is given up before it fills the memory."""
    monkeypatch.setattr(rows, "LARGEST_ROW", 1 << 20)
    path = written(tmp_path, b'[{"a": "' + b"x" * (40 << 20) + b'"}]')
    tracemalloc.start()
    assert "nothing behind it" in parsed(path)[0][1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_value_cut_by_the_end_of_a_read_is_not_taken_for_a_shorter_one(tmp_path, chunk):
    path = written(tmp_path, b"[12345678901234567890, 1234567]")
    assert [row for _, row in parsed(path)] == [12345678901234567890, 1234567]


def test_a_long_element_is_tried_few_times(tmp_path, monkeypatch):
    tries, more = [], rows._Array._more
    monkeypatch.setattr(rows, "CHUNK", 7)
    monkeypatch.setattr(rows._Array, "_more", lambda array: tries.append(array) or more(array))
    assert parsed(written(tmp_path, json.dumps(["x" * 100_000]).encode()))[0][1] == "x" * 100_000
    assert len(tries) <= 16  # each read doubles what is held


@pytest.mark.parametrize("kind", ["array", "lines"])
def test_a_large_file_is_read_in_bounded_memory(tmp_path, kind):
    path = tmp_path / "large"
    row = json.dumps({"messages": [{"role": "user", "content": "x" * 20_000}]})
    with open(path, "w") as file:
        between = ",\n" if kind == "array" else "\n"
        file.write(("[" if kind == "array" else "") + between.join([row] * 2000) + ("]" if kind == "array" else ""))
    tracemalloc.start()
    count = sum(len(raw.parse()["messages"]) for raw in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000 and path.stat().st_size > 38 << 20 and peak < 12 << 20


def test_sizes_add_up_to_the_file_for_the_progress_bar(tmp_path, chunk):
    for data in (json.dumps(ROWS).encode(), b"\n".join(json.dumps(row).encode() for row in ROWS)):
        path = written(tmp_path, data)
        assert sum(raw.size for raw in read_rows(path)) == len(data)


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    chats = [
        {"messages": [{"role": "user", "content": f"é{i}"}, {"role": "assistant", "content": None}]} for i in range(99)
    ]
    path = tmp_path / "chats.parquet"
    pq.write_table(pa.Table.from_pylist(chats), path)
    assert parsed(path) == [(f"{path} row {i}", chat) for i, chat in enumerate(chats, 1)]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"chats\.parquet.*Parquet"):
        parsed(path)


def test_arrow_as_datasets_saves_it(tmp_path):
    """A stream of record batches: read row by row, packed or not, and told where it is cut off or damaged."""
    pa = pytest.importorskip("pyarrow")

    chats = [{"question": f"é{i}", "tests": {"inputs": ["1"] * i}} for i in range(9)]
    path = tmp_path / "data-00000-of-00001.arrow"
    table = pa.Table.from_pylist(chats)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=4)
    assert parsed(path) == [(f"{path} row {i}", chat) for i, chat in enumerate(chats, 1)]
    whole = path.read_bytes()
    packed = tmp_path / "data.arrow.gz"
    packed.write_bytes(gzip.compress(whole))
    assert [row for _, row in parsed(packed)] == chats
    path.write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"\.arrow: is cut off \(no mark of its end\)"):
        parsed(path)
    for end in (len(whole) - 100, 40):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"\.arrow: (cannot be read as Arrow|is cut off)"):
            parsed(path)


def test_a_time_that_python_cannot_hold_spoils_its_row_alone(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": pa.array([1, 2**62], pa.timestamp("us"))}), tmp_path / "times.parquet")
    good, bad = read_rows(tmp_path / "times.parquet")
    assert good.parse()["x"].year == 1970
    with pytest.raises(Unreadable):
        bad.parse()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"skytrain\[prep\]"):
        parsed(written(tmp_path, b"PAR1...."))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        parsed(tmp_path / "nowhere.jsonl")


@pytest.mark.usefixtures("chunk")
def test_a_key_twice_spoils_its_element_alone(tmp_path):
    path = written(tmp_path, b'[{"id": 1}, {"id": 2, "deep": [{"a": 1, "a": 2}]}, {"id": 3}]', "chats.json")
    assert [row for _, row in parsed(path)] == [
        {"id": 1},
        "not JSON that can be read (the key 'a' stands twice in an object)",
        {"id": 3},
    ]


def test_a_column_twice_in_parquet_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "chats.parquet")
    with pytest.raises(UserError, match="column 'text' stands twice"):
        parsed(tmp_path / "chats.parquet")


def test_a_column_whose_name_is_no_text_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "chats.parquet"
    pq.write_table(pa.table({"messages": pa.array(["a"])}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"messages", b"mess\xff\xffes"))
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        parsed(path)


@pytest.mark.parametrize("kind", ["lines", "array"])
def test_files_packed_by_gzip_and_broken_ones(tmp_path, kind):
    text = json.dumps(ROWS) if kind == "array" else "".join(json.dumps(row) + "\n" for row in ROWS)
    packed = gzip.compress(text.encode())
    assert [row for _, row in parsed(written(tmp_path, packed, "rows.jsonl.gz"))] == ROWS
    for broken in (packed[:-10], packed[:30] + b"\xff" * 40 + packed[70:], packed[:12]):
        with pytest.raises(UserError, match=r"rows.jsonl.gz: cannot be (unpacked|read)"):
            parsed(written(tmp_path, broken, "rows.jsonl.gz"))


# CSV.


def csv_rows(tmp_path, text, name="rows.csv"):
    return parsed(written(tmp_path, text if isinstance(text, bytes) else text.encode(), name))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", [True, False])
def test_csv_with_quotes_and_fields_of_several_lines(tmp_path, newline, bom, end):
    lines = [
        'Question,"the ""right"" one",',
        "one,a b,",
        "",
        '"two\nlines\r\n\r, and ""quotes""",é🙂\u2028,"  kept "',
        '"",,"3"',
    ]
    text = bom + newline.join(lines) + (newline if end else "")
    path = tmp_path / "rows.csv"
    names = ("Question", 'the "right" one', "")
    assert csv_rows(tmp_path, text) == [
        (f"{path}:2 (element 1)", dict(zip(names, ("one", "a b", "")))),
        (f"{path}:4 (element 2)", dict(zip(names, ('two\nlines\r\n\r, and "quotes"', "é🙂\u2028", "  kept ")))),
        (f"{path}:7 (element 3)", dict(zip(names, ("", "", "3")))),
    ]
    assert sum(raw.size for raw in read_rows(path)) == len(path.read_bytes())


def test_csv_is_told_by_the_files_name_alone(tmp_path):
    text = b'[a],"{b}"\n1,2\n'
    rows_of = [{"[a]": "1", "{b}": "2"}]
    assert [row for _, row in csv_rows(tmp_path, text, "x.CSV")] == rows_of
    assert [row for _, row in csv_rows(tmp_path, gzip.compress(text), "x.csv.gz")] == rows_of
    assert [row for _, row in csv_rows(tmp_path, text, "x.jsonl")] != rows_of


@pytest.mark.parametrize(
    "line, fault",
    [
        (b"1", "1 fields, where the first row names 2 columns"),
        (b"1,2,3", "3 fields, where"),
        (b'"1"x,2', "not CSV"),
        (b"caf\xe9,2", "not UTF-8 (byte 0xe9)"),
        (b"1\r2,3", "not CSV"),
    ],
)
def test_a_fault_of_csv_names_its_line_and_spoils_no_other(tmp_path, line, fault):
    found = csv_rows(tmp_path, b'a,b\n"x\ny",2\n' + line + b"\n3,4\n")
    assert [row for _, row in found if isinstance(row, dict)] == [{"a": "x\ny", "b": "2"}, {"a": "3", "b": "4"}]
    assert found[1][0] == f"{tmp_path / 'rows.csv'}:4 (element 2)" and fault in found[1][1]


def test_a_quote_that_is_never_closed_is_a_fault(tmp_path):
    found = csv_rows(tmp_path, 'a,b\n1,2\n3,"4\n5,6\n')
    assert found[0][1] == {"a": "1", "b": "2"} and found[1:] == [
        (f"{tmp_path / 'rows.csv'}:3 (element 2)", "not CSV (unexpected end of data)")
    ]


def test_names_of_csv_that_stand_twice_or_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(UserError, match="column 'a' stands twice"):
        csv_rows(tmp_path, "a,b,a\n1,2,3\n")
    with pytest.raises(UserError, match=r"rows\.csv:2: .*not UTF-8"):
        csv_rows(tmp_path, b"\na,\xff\n1,2\n")
    assert csv_rows(tmp_path, "") == [] and csv_rows(tmp_path, "a,b\n") == []


def test_a_field_of_csv_may_be_as_large_as_the_tests_of_a_program(tmp_path):
    found = csv_rows(tmp_path, "a,b\n1," + "x" * (8 << 20) + "\n")
    assert len(found[0][1]["b"]) == 8 << 20


def test_a_large_file_of_csv_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "large.csv"
    with open(path, "w") as file:
        file.write("a,b\n")
        for _ in range(2000):
            file.write("1,\"" + "x" * 10_000 + "\n" + "y" * 10_000 + "\"\n")  # fmt: skip
    tracemalloc.start()
    count = sum(len(raw.parse()["b"]) == 20_001 for raw in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000 and path.stat().st_size > 38 << 20 and peak < 4 << 20


def test_a_row_that_is_cut_off_is_told_by_the_column_of_its_end(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": [1\n')
    [row] = read_rows(tmp_path / "x.jsonl")
    with pytest.raises(Unreadable, match="column 9"):
        row.parse()
