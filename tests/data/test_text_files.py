"""Files of text: compressed and encoded in any way, CSV as people's programs write it, and JSON in
layouts that are no rows.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import itertools
import json
import lzma
import os
import shlex
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from sftpipe import terminal
from sftpipe.config.schema import DatasetConfig, FormatConfig
from sftpipe.data.encoding_guess import guess_encodings
from sftpipe.data.json_layouts import layouts_of_object
from sftpipe.data.rows import Rows
from sftpipe.data.source import load_sources
from sftpipe.errors import DataError
from support.configs import compose, config_error
from support.errors import Pin, named, places, refused, told

Row = dict[str, Any]
Write = Callable[[str, Any], Path]

INSTRUCTION = FormatConfig(type="instruction")
ROWS = [{"instruction": f"question {at}", "output": f"answer {at}"} for at in range(3)]
TABLE = pd.DataFrame(ROWS)
KOREAN = [
    {"instruction": "서울은 어디에 있나요?", "output": "한국의 수도입니다."},
    {"instruction": "부산은?", "output": "남쪽 항구입니다."},
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write bytes or a text; returns the file."""

    def written(name: str, content: Any) -> Path:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return written


def read(path: str, file: Any, form: FormatConfig = INSTRUCTION, **keys: Any) -> Rows:
    files = [str(one) for one in file] if isinstance(file, list) else str(file)
    (source,) = load_sources(DatasetConfig(path, data_files=files, **keys), form)
    return source.splits["train"]


def error_of(path: str, file: Any, form: FormatConfig = INSTRUCTION, **keys: Any) -> DataError:
    return refused(DataError, lambda: read(path, file, form, **keys))


def typed(error: DataError, path: str, file: Path, number: int = 0) -> Rows:
    """The rows that the fix of an error gives when it is typed."""
    (word,) = shlex.split(error.problems[0].commands[number])
    cfg = compose([f"dataset={path}", f"dataset.data_files={file}", word])
    (source,) = load_sources(cfg.dataset, cfg.format)
    return source.splits["train"]


def json_lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def csv_of(rows: list[Row], mark: str = ",") -> str:
    lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
    return "\n".join(lines) + "\n"


def origins(rows: Rows) -> list[str]:
    return [rows.origin(index).partition(", ")[2] for index in range(len(rows))]


# --- compression ----------------------------------------------------------------------------------


def zipped(content: bytes) -> bytes:
    held = BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder/rows", content)
    return held.getvalue()


def zstd(content: bytes) -> bytes:
    made: bytes = pa.Codec("zstd").compress(content, asbytes=True)
    return made


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "zst": zstd,
    "": bytes,
}
CONTENT = {"json": json_lines(ROWS), "csv": csv_of(ROWS), "text": "a\n\nb\n"}


@pytest.mark.parametrize("way", COMPRESSED)
@pytest.mark.parametrize("kind", CONTENT)
def test_the_bytes_of_a_file_say_how_it_is_compressed_and_its_name_does_not(
    write: Write, kind: str, way: str
) -> None:
    content = COMPRESSED[way](CONTENT[kind].encode())
    expected = [{"text": "a"}, {"text": "b"}] if kind == "text" else ROWS
    for name in ("rows", "rows.gz", f"rows.{kind}.{way}", "rows.zip"):
        assert list(read(kind, write(name, content))) == expected


@pytest.mark.parametrize("way", [way for way in COMPRESSED if way])
def test_a_compressed_file_that_is_cut_off_is_named(write: Write, way: str) -> None:
    random = json_lines([{"instruction": os.urandom(50).hex(), "output": "a"}] * 99)
    content = COMPRESSED[way](random.encode())
    file = write("rows", content[: len(content) // 2])
    error = error_of("json", file)
    assert places(error) == [f"dataset.data_files: {file}"]
    assert "damaged or cut off" in error.problems[0].found


def test_frames_one_behind_another_are_read_to_the_end(write: Write) -> None:
    for way in ("gz", "bz2", "xz", "zst"):
        parts = [COMPRESSED[way](json_lines([row]).encode()) for row in ROWS]
        assert list(read("json", write(f"rows.{way}", b"".join(parts)))) == ROWS


def tar(content: bytes) -> bytes:
    held = BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        entry = tarfile.TarInfo("rows.jsonl")
        entry.size = len(content)
        archive.addfile(entry, BytesIO(content))
    return held.getvalue()


def excel(_: bytes) -> bytes:
    held = BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
        archive.writestr("[Content_Types].xml", "<Types/>")
    return held.getvalue()


def parquet(_: bytes) -> bytes:
    held = BytesIO()
    TABLE.to_parquet(held)
    return held.getvalue()


@pytest.mark.parametrize("made", [tar, excel, parquet], ids=lambda made: made.__name__)
def test_a_file_of_another_kind_is_told_what_it_is(
    write: Write, made: Callable[[bytes], bytes], golden_error: Pin
) -> None:
    error = error_of("csv", write("rows", made(CONTENT["csv"].encode())))
    assert "UTF-8" not in error.problems[0].found
    golden_error(error)


# --- encodings ------------------------------------------------------------------------------------

ENCODINGS = ["cp949", "euc-kr", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8", "utf-8-sig"]


@pytest.mark.parametrize("encoding", [*ENCODINGS, "iso2022_kr", "UTF-7"])
@pytest.mark.parametrize("kind", ["json", "csv", "text"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_of_any_encoding_is_read_where_it_is_named(
    write: Write, kind: str, encoding: str, end: str
) -> None:
    content = {
        "json": "\n" + json_lines(KOREAN),
        "csv": csv_of(KOREAN),
        "text": "\n서울\n",
    }[kind].replace("\n", end)
    rows = read(kind, write("rows", content.encode(encoding)), encoding=encoding)
    expected = [{"text": "서울"}] if kind == "text" else KOREAN
    assert list(rows) == expected
    assert origins(rows) == [f"line {at}" for at in (2, 3)][: len(expected)]


def test_a_line_feed_may_be_half_of_another_character(write: Write) -> None:
    text = "ਊ\u0a0d,\u0d0a\n둘\n"  # their bytes are those of line ends
    for encoding in ("utf-16-le", "utf-16-be", "utf-16"):
        rows = read("text", write("rows", text.encode(encoding)), encoding=encoding)
        assert [row["text"] for row in rows] == ["ਊ\u0a0d,\u0d0a", "둘"]
        assert origins(rows) == ["line 1", "line 2"]


def test_a_character_over_the_end_of_a_block_is_whole(write: Write) -> None:
    lines = ["가" * length for length in range(65_500, 65_510)]
    for encoding in ("cp949", "utf-16-be", "utf-8"):
        file = write("rows", "\n".join(lines).encode(encoding))
        found = read("text", file, encoding=encoding)
        assert [row["text"] for row in found] == lines


@pytest.mark.parametrize("kind", ["json", "csv"])
@pytest.mark.parametrize("encoding", ["cp949", "euc-kr", "utf-16-le", "utf-16-be", "utf-16"])
def test_a_korean_file_says_in_which_encoding_it_reads_and_that_can_be_typed(
    write: Write, kind: str, encoding: str
) -> None:
    content = {"json": json_lines(KOREAN), "csv": csv_of(KOREAN)}[kind].encode(encoding)
    file = write("rows", content)
    error = error_of(kind, file)
    (place,) = places(error)
    line = 1 if encoding.startswith("utf") or kind == "json" else 2
    assert place == f"dataset.data_files: {file}, line {line}"
    named_one = {"euc-kr": "cp949"}.get(encoding, encoding)
    assert error.problems[0].commands == (f"dataset.encoding={named_one}",)
    assert "서울" in error.problems[0].found
    assert list(typed(error, kind, file)) == KOREAN


def test_how_a_guess_is_told(write: Write, golden_error: Pin) -> None:
    error = error_of("csv", write("rows.csv", csv_of(KOREAN).encode("cp949")))
    golden_error(error)


def test_how_two_guesses_are_told(write: Write, golden_error: Pin) -> None:
    file = write("rows.jsonl", '{"text": "배고파"}\n'.encode("cp949"))
    error = error_of("json", file)
    assert "dataset.encoding=cp949" in error.problems[0].commands
    assert len(error.problems[0].commands) > 1
    golden_error(error)


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        ("사과\n", "cp949", "cp949"),
        ("prompt,completion\n안녕하세요,네\n", "euc-kr", "cp949"),
        ("나는 학교에 갑니다.\n", "utf-16-be", "utf-16-be"),
        ("日本の首都はどこですか\n", "shift_jis", "shift_jis"),
        ("①日本の首都はどこですか\n", "cp932", "cp932"),
        ("東京都\n", "shift_jis", "shift_jis"),
        ("日本の首都はどこですか\n", "euc_jp", "euc_jp"),
        ("问题,答案\n中国的首都是哪里？,北京。\n", "gb18030", "gb18030"),
        ("你好\n", "gb2312", "gb18030"),
        ("台灣的首都是哪裡？,臺北。\n", "big5", "big5"),
        ("Café crème, très bien\n", "cp1252", "cp1252"),
        ("Über Köln fließt der Rhein\n", "latin-1", "cp1252"),
        ("prix 5€ – “bon”\n", "cp1252", "cp1252"),
        ("Сколько времени сейчас? Полдень.\n", "cp1251", "cp1251"),
        ("Сколько времени сейчас? Полдень.\n", "koi8-r", "koi8_r"),
        ('{"text": "plain ASCII alone"}\n', "utf-16-le", "utf-16-le"),
        ('{"text": "plain ASCII alone"}\n', "utf-16-be", "utf-16-be"),
        ("한국어\n", "utf-32", "utf-32"),
    ],
)
def test_a_short_text_is_first_taken_for_what_it_is(text: str, encoding: str, guess: str) -> None:
    content = text.encode(encoding)
    first, *_ = guess_encodings(content, content)
    assert first.encoding == guess
    assert first.line == max(text.splitlines(), key=lambda line: not line.isascii())


def test_ascii_in_utf16_without_a_mark_is_no_text_of_zeros(write: Write) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        file = write("rows.jsonl", json_lines(ROWS).encode(encoding))
        error = error_of("json", file)
        assert error.problems[0].commands == (f"dataset.encoding={encoding}",)
        assert list(typed(error, "json", file)) == ROWS


def test_one_damaged_byte_of_a_file_of_utf8_is_no_reason_for_a_guess(write: Write) -> None:
    content = json_lines(KOREAN).encode().replace("남".encode(), b"\xff")
    error = error_of("json", write("rows.jsonl", content))
    assert places(error)[0].endswith("line 2")
    assert error.problems[0].fix == "fix the line"


def test_a_byte_that_is_none_of_the_named_encoding_is_told_with_its_line(write: Write) -> None:
    long = "\n".join(["가나다"] * 20_000).encode("cp949")
    for encoding, begin, line in (("cp949", long + b"\n", 20_001), ("ascii", b"a\n", 2)):
        error = error_of("text", write("rows", begin + b"\xff\nb"), encoding=encoding)
        assert places(error)[0].endswith(f"line {line}")
        assert f"0xff is no {encoding}" in error.problems[0].found


@pytest.mark.parametrize(
    ("name", "near"), [("cp494", "cp949"), ("utf18", "utf8"), ("base64", ""), ("x" * 50, "utf-8")]
)
def test_an_unknown_encoding_names_a_near_one(name: str, near: str, golden_error: Pin) -> None:
    error = config_error("dataset=json", "dataset.data_files=a", f"dataset.encoding={name}")
    assert places(error) == ["dataset.encoding"]
    (command,) = error.problems[0].commands
    assert codecs.lookup(command.partition("=")[2])
    assert command.endswith(near)
    if near == "cp949":
        golden_error(error)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("parquet", "encoding=cp949"),
        ("hub", "field=data"),
        ("json", "delimiter='|'"),
        ("csv", "field=data"),
    ],
)
def test_a_key_that_a_kind_of_data_set_does_not_read_is_refused(kind: str, word: str) -> None:
    files = "dataset.path=user/name" if kind == "hub" else "dataset.data_files=a"
    error = config_error(f"dataset={kind}", files, f"dataset.{word}")
    assert places(error)[0].startswith(f"dataset.{word.partition('=')[0]}")


# --- CSV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    named(
        [
            ["blanks around names", " instruction ,\toutput\n a, b\n", [[" a", " b"]]],
            ["rows of commas", "\n,,\ninstruction,output\n,\na,b\n , \n,,,\n", [["a", "b"]]],
            [
                "an unnamed column of blanks",
                "instruction,output,\na,b,\nc,d, \n",
                [["a", "b"], ["c", "d"]],
            ],
            ["two of them", ",instruction,output,\n,a,b,\n", [["a", "b"]]],
        ]
    ),
)
def test_csv_as_spreadsheets_write_it(
    write: Write, content: str, expected: list[list[str]]
) -> None:
    rows = read("csv", write("rows.csv", content))
    assert list(rows) == [
        dict(zip(("instruction", "output"), row, strict=True)) for row in expected
    ]
    assert rows.column_names == ["instruction", "output"]


def test_an_unnamed_column_with_values_is_called_by_its_place(write: Write) -> None:
    file = write("rows.csv", "instruction,output,,\na,b,,x\nc,d,,\n")
    rows = read("csv", file, columns={"input": "column 4"})
    assert list(rows) == [
        {"instruction": "a", "output": "b", "input": "x"},
        {"instruction": "c", "output": "d"},
    ]


def test_names_that_are_equal_without_their_blanks_are_one_column_twice(write: Write) -> None:
    error = error_of("csv", write("rows.csv", "text,a,text \n1,2,3\n"))
    assert "'text' is in the header twice" in error.problems[0].found


def console_of(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> list[str]:
    """What `run` says on the console."""
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(terminal.console, "print", lambda text, **_: said.append(text))
        run()
    return said


@pytest.mark.parametrize("mark", [";", "\t", "|"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.txt"])
def test_another_separator_is_used_where_only_it_gives_the_columns_and_that_is_told_once(
    write: Write, mark: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(name, csv_of(ROWS, mark))
    for _ in range(2):  # once from the cache, too
        said = console_of(monkeypatch, lambda: read("csv", file))
        assert said == [f"{file}: columns are split by {mark!r} (dataset.delimiter)"]
    assert list(read("csv", file)) == ROWS
    mapped = {"instruction": "x", "output": "y"}
    other = write("other.csv", csv_of([{"x": "a, b", "y": "c"}], mark))
    assert list(read("csv", other, columns=mapped)) == [{"instruction": "a, b", "output": "c"}]


def test_the_comma_of_a_tsv_file_is_found_and_each_file_has_its_own_separator(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        write("a.tsv", csv_of(ROWS)),
        write("b.csv", csv_of(ROWS, "|")),
        write("c.csv", csv_of(ROWS, "|")),
        write("d.csv", csv_of(ROWS)),
        write("e.tsv", csv_of(ROWS, "\t")),
    ]
    said = console_of(monkeypatch, lambda: read("csv", files))
    assert [one.partition(": ")[0] for one in said] == [str(files[0]), f"{files[1]} and 1 more"]
    assert list(read("csv", files)) == ROWS * 5


def test_the_comma_stays_where_it_gives_the_columns_or_no_other_does(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("rows.csv", "instruction,output,a;b\n1;2,3;4,5;6\n")
    assert console_of(monkeypatch, lambda: read("csv", file)) == []
    assert read("csv", file)[:1] == [{"instruction": "1;2", "output": "3;4", "a;b": "5;6"}]
    both = write("both.csv", "a,b;a\n1,2;3\n")
    form = FormatConfig(type="text", text_field="a")
    assert list(read("csv", both, form)) == [{"a": "1", "b;a": "2;3"}]
    lacking = write("lacking.csv", "question,answer;output\na,b\n")
    assert read("csv", lacking)[:1] == [{"question": "a", "answer;output": "b"}]


@pytest.mark.parametrize(
    ("delimiter", "mark"), [(";", ";"), ("\t", "\t"), ("\\t", "\t"), ("tab", "\t"), ("^", "^")]
)
def test_the_separator_may_be_given(write: Write, delimiter: str, mark: str) -> None:
    file = write("rows.csv", csv_of(ROWS, mark))
    assert list(read("csv", file, delimiter=delimiter)) == ROWS


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_header_that_the_comma_does_not_split_says_what_to_type(write: Write, mark: str) -> None:
    file = write("rows.csv", csv_of([{"question": "a", "answer": "b"}], mark))
    error = error_of("csv", file)
    assert places(error) == [f"dataset.data_files: {file}, line 1"]
    assert list(typed(error, "csv", file)) == [{"question": "a", "answer": "b"}]


def test_another_separator_is_another_entry_of_the_cache(write: Write) -> None:
    file = write("rows.csv", "a;b,c\n1;2,3\n")
    form = FormatConfig(type="text", text_field="c")
    other = FormatConfig(type="text", text_field="b,c")
    assert list(read("csv", file, form)) == [{"a;b": "1;2", "c": "3"}]
    assert list(read("csv", file, other)) == [{"a": "1", "b,c": "2,3"}]
    assert list(read("csv", file, form)) == [{"a;b": "1;2", "c": "3"}]


@pytest.mark.parametrize("delimiter", ["", "::", "tabs", '"', "\n"])
def test_a_separator_that_is_none_is_refused(delimiter: str) -> None:
    cfg = ["dataset=csv", "dataset.data_files=a", f"dataset.delimiter={json.dumps(delimiter)}"]
    assert places(config_error(*cfg)) == ["dataset.delimiter"]


def test_a_number_is_no_name_of_a_column_and_its_text_is() -> None:
    words = [
        "dataset=json",
        "dataset.data_files=a",
        "dataset.columns={instruction: 0, output: '1'}",
    ]
    error = config_error(*words)
    ((where, (command,)),) = told(error).items()
    assert where == "dataset.columns.instruction"
    assert compose([*words, *shlex.split(command)]).dataset.columns["instruction"] == "0"


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("value", "field"),
    named(
        [
            ["under a key", {"version": 1, "data": ROWS}, "data"],
            ["alone", {"data": ROWS}, "data"],
            ["deeper", {"a": {"b": {"rows": ROWS}}, "n": None}, "a.b.rows"],
            ["beside others", {"authors": [{"name": "x"}], "rows": ROWS}, "rows"],
            ["in splits", {"train": ROWS, "test": ROWS[:1]}, "train"],
            ["table of pandas", json.loads(TABLE.to_json(orient="table")), "data"],
        ]
    ),
)
def test_a_list_of_rows_in_an_object_is_named_and_read_by_its_key(
    write: Write, value: Any, field: str, indent: int | None
) -> None:
    file = write("rows.json", json.dumps(value, indent=indent))
    error = error_of("json", file)
    assert told(error) == {f"dataset.data_files: {file}": (f"dataset.field={field}",)}
    rows = [{name: row[name] for name in ROWS[0]} for row in typed(error, "json", file)]
    assert rows == ROWS
    assert origins(read("json", file, field=field)) == ["row 0", "row 1", "row 2"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("value", "orient"),
    [
        *((json.loads(TABLE.to_json(orient=one)), one) for one in ("columns", "index", "split")),
        (TABLE.to_dict(orient="list"), "columns"),
        ({f"id {at}": row for at, row in enumerate(ROWS)}, "index"),
        ({"instruction": {"0": "007"}, "output": {"0": "2024-01-05"}}, "columns"),
    ],
)
def test_a_table_of_pandas_is_named_and_read_by_the_line_to_run(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: Any,
    orient: str,
    indent: int | None,
) -> None:
    file = write("table.json", json.dumps(value, indent=indent))
    error = error_of("json", file)
    assert places(error) == [f"dataset.data_files: {file}"]
    line, files = error.problems[0].commands
    assert f"orient='{orient}'" in line
    python, option, code = shlex.split(line)
    assert (python, option, files) == ("python", "-c", "dataset.data_files=rows.jsonl")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        # pandas 3.1 needs dtype=False alone, and says so; before, dates would be converted
        warnings.filterwarnings("ignore", message="The 'convert_dates' keyword")
        exec(code, {})
    first = {name: column["0"] for name, column in value.items()} if "007" in str(value) else None
    assert list(read("json", tmp_path / "rows.jsonl")) == ([first] if first else ROWS)


def test_the_line_to_run_needs_nothing_of_its_surroundings(write: Write, tmp_path: Path) -> None:
    file = write("table.json", TABLE.to_json())
    line, _ = error_of("json", file).problems[0].commands
    subprocess.run([sys.executable, *shlex.split(line)[1:]], cwd=tmp_path, check=True)
    assert list(read("json", tmp_path / "rows.jsonl")) == ROWS


def test_how_layouts_are_told(write: Write, golden_error: Pin) -> None:
    values: Mapping[str, Any] = {
        "field": {"data": ROWS},
        "columns": TABLE.to_dict(orient="list"),
        "values": TABLE.to_numpy().tolist(),
    }
    for name, value in values.items():
        golden_error(error_of("json", write(f"{name}.json", json.dumps(value))), name)


MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": MESSAGES}, FormatConfig(type="messages")),
        ({"messages": MESSAGES, "tools": [{"name": "a"}, {"name": "b"}]}, FormatConfig("messages")),
        ({"instruction": "q", "output": "a", "data": ROWS}, INSTRUCTION),
        ({"instruction": "q", "output": "a", "meta": {"0": 1}}, INSTRUCTION),
        ({"other": "x"}, INSTRUCTION),  # no column, which the format says
    ],
)
def test_one_row_in_a_file_is_a_row(write: Write, row: Row, form: FormatConfig) -> None:
    assert list(read("json", write("rows.json", json.dumps(row)), form)) == [row]


def test_one_row_over_lines_is_told_to_be_written_on_one(write: Write) -> None:
    file = write("rows.json", json.dumps({"messages": MESSAGES}, indent=2))
    error = error_of("json", file, FormatConfig(type="messages"))
    assert "on one line" in error.problems[0].fix


@pytest.mark.parametrize(
    ("field", "found", "commands"),
    [
        ("dta", "no 'dta'", ("dataset.field=data",)),
        ("data.rows", "no 'rows' in data", ()),
        ("version", "int '1'", ()),
        ("inner.row", "no 'row' in inner", ("dataset.field=inner.rows",)),
    ],
)
def test_a_field_that_holds_no_list_is_told(
    write: Write, field: str, found: str, commands: tuple[str, ...]
) -> None:
    value = {"data": ROWS, "version": 1, "inner": {"rows": ROWS}}
    error = error_of("json", write("rows.json", json.dumps(value)), field=field)
    assert found in error.problems[0].found
    assert error.problems[0].commands == commands


def test_a_field_of_no_rows_or_of_other_values_is_told(write: Write) -> None:
    empty = error_of("json", write("a.json", '{"data": []}'), field="data")
    assert "no rows" in empty.problems[0].found
    odd = error_of("json", write("b.json", '{"data": [{}, 7]}'), field="data")
    assert places(odd)[0].endswith("row 1")


def test_nan_and_infinity_are_read(write: Write) -> None:
    content = '{"instruction": NaN, "output": [Infinity, -Infinity]}\n'
    for text in (content, f"[{content}]"):
        (row,) = read("json", write("rows.json", text))
        assert row["instruction"] != row["instruction"]
        assert row["output"] == [float("inf"), float("-inf")]


def test_no_ordinary_row_is_a_layout() -> None:
    rows: list[Any] = [
        {},
        {"a": 1},
        {"a": "x", "b": []},
        {"a": []},
        {"a": {}},
        {"a": {"x": 1}},
        {"a": [1], "b": "x"},
        "text",
        None,
        [],
        [1, 2],
        ROWS,
    ]
    assert [layouts_of_object(row) for row in rows] == [[]] * len(rows)


def test_the_order_of_keys_does_not_change_what_a_table_is() -> None:
    table = json.loads(TABLE.to_json(orient="split"))
    for keys in itertools.permutations(table):
        (layout,) = layouts_of_object({key: table[key] for key in keys})
        assert (layout.orient, layout.columns) == ("split", ("instruction", "output"))
