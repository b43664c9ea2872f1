"""Requests and answers as Parquet files. Run: pytest test/tables/test_tables.py"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet as pyarrow_parquet

from sglang.srt.blendserve import cli
from sglang.srt.blendserve.batch_file.results import Response, answer, refusal
from sglang.srt.blendserve.batch_file.types import BatchLine, ErrorCode, LineError
from sglang.srt.blendserve.batch_file.validation import Rules, parse_lines
from sglang.srt.blendserve.run import table_output
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.run.source import BatchSource
from sglang.srt.blendserve.tables import answer_rows, parquet, request_rows

CHAT = [{"role": "user", "content": "Hello"}]


def parsed(rows: list[dict[str, Any]]) -> list[BatchLine | LineError]:
    """What a run makes of the rows."""
    return [*parse_lines(BytesIO(b"".join(request_rows.lines_of(rows))), Rules())]


def bodies(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = parsed(rows)
    assert all(isinstance(line, BatchLine) for line in lines), lines
    return [line.body for line in lines if isinstance(line, BatchLine)]


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as a user's tool would, types and all."""
    pyarrow_parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


# --- requests --------------------------------------------------------------------------------


def test_columns_are_the_parameters_of_each_request(tmp_path: Path) -> None:
    messages = [*CHAT, {"role": "assistant", "content": "Hi", "tool_calls": None}]
    path = table(
        tmp_path / "in.parquet",
        [
            {"custom_id": 7, "messages": messages, "max_tokens": 5, "stop": ["a"], "label": "x"},
            {"custom_id": 8, "messages": CHAT, "max_tokens": None, "stop": None, "label": "y"},
        ],
    )
    assert request_rows.unused(parquet.columns_of(path)) == ["label"]
    rows = [*parquet.rows_of(path)]
    assert bodies(rows) == [
        {
            "messages": [*CHAT, {"role": "assistant", "content": "Hi"}],
            "max_tokens": 5,
            "stop": ["a"],
        },
        {"messages": CHAT},
    ]
    first, second = parsed(rows)
    assert (first.custom_id, second.custom_id) == ("7", "8")
    assert first.url == second.url == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("row", "url", "body"),
    [
        ({"prompt": "A", "max_tokens": 3}, "completions", {"prompt": "A", "max_tokens": 3}),
        ({"input": "A", "dimensions": None}, "embeddings", {"input": "A"}),
        ({"messages": json.dumps(CHAT)}, "chat/completions", {"messages": CHAT}),
        ({"body": json.dumps({"prompt": "A", "n": 2})}, "completions", {"prompt": "A", "n": 2}),
        ({"body": {"messages": CHAT, "n": None}}, "chat/completions", {"messages": CHAT}),
        (
            {"body": {"prompt": "A"}, "url": "/v1/completions", "n": 3},
            "completions",
            {"prompt": "A"},
        ),
        ({"prompt": "[1] What?"}, "completions", {"prompt": "[1] What?"}),
        ({"prompt": "A", "stop": "[END"}, "completions", {"prompt": "A", "stop": "[END"}),
        (
            {"prompt": "A", "response_format": '{"type": "text"}'},
            "completions",
            {"prompt": "A", "response_format": {"type": "text"}},
        ),
    ],
)
def test_the_forms_of_a_request(row: dict[str, Any], url: str, body: dict[str, Any]) -> None:
    [line] = parsed([row])
    assert isinstance(line, BatchLine)
    assert (line.url, line.body, line.custom_id) == (f"/v1/{url}", body, "row-1")


def test_a_row_that_is_no_request_is_an_error_of_its_own() -> None:
    rows = [
        {"custom_id": "good", "body": json.dumps({"prompt": "A"})},
        {"custom_id": "text", "body": "not JSON"},
        {"custom_id": None, "body": json.dumps({"prompt": "A"})},
        {"custom_id": "none", "prompt": None},
        {"custom_id": "good", "body": json.dumps({"prompt": "B"})},
    ]
    lines = parsed(rows)
    assert [line.line for line in lines] == [1, 2, 3, 4, 5]
    assert isinstance(lines[0], BatchLine)
    assert [line.param for line in lines[1:] if isinstance(line, LineError)] == [
        "body",
        "custom_id",
        "body.prompt",
        "custom_id",
    ]
    assert [line.code for line in lines[1:] if isinstance(line, LineError)] == [
        ErrorCode.INVALID_TYPE,
        ErrorCode.MISSING_REQUIRED_PARAMETER,
        ErrorCode.MISSING_REQUIRED_PARAMETER,
        ErrorCode.DUPLICATE_CUSTOM_ID,
    ]


def test_the_files_of_a_folder_are_read_by_name(tmp_path: Path) -> None:
    table(tmp_path / "b.parquet", [{"prompt": "second"}])
    table(tmp_path / "a.parquet", [{"prompt": "first"}])
    (tmp_path / "readme.txt").write_text("no table")
    with BatchSource(str(tmp_path), Rules()) as source:
        found = source.scan(lambda _: False)
        assert (found.total, found.bad) == (2, 0)
        assert [json.loads(line)["body"]["prompt"] for line in source.plain().open()] == [
            "first",
            "second",
        ]


def test_a_table_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path, draw = tmp_path / "in.parquet", random.Random(0)
    texts = pyarrow.array([draw.randbytes(1000).hex() for _ in range(8000)])
    pyarrow_parquet.write_table(pyarrow.table({"prompt": texts}), path, row_group_size=500)
    del texts
    before, most = pyarrow.total_allocated_bytes(), 0
    for number, _ in enumerate(parquet.rows_of(path)):
        if number % 250 == 0:
            most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most < path.stat().st_size / 3


def test_a_run_reads_the_same_table_twice_alike(tmp_path: Path) -> None:
    path = table(tmp_path / "in.parquet", [{"prompt": str(n)} for n in range(2500)])
    digests = []
    for _ in range(2):
        with BatchSource(str(path), Rules()) as source:
            source.scan(lambda _: False)
            digests.append(source.digest)
    assert digests[0] == digests[1]


def test_what_is_no_table_is_said(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    path.write_text("no table")
    with pytest.raises(RunFailure, match=r"in\.parquet cannot be read as Parquet"):
        BatchSource(str(path), Rules())
    with pytest.raises(RunFailure, match=r"absent\.parquet cannot be read"):
        BatchSource(str(tmp_path / "absent.parquet"), Rules())


def test_values_that_are_no_json_refuse_their_row_alone(tmp_path: Path) -> None:
    deep = "[" * 300 + "]" * 300
    schema = pyarrow.schema([("custom_id", "string"), ("prompt", "string"), ("stop", "string")])
    columns = [["a", "b", "c"], [b"A", b"\xff", b"C"], [None, None, deep]]
    arrays = [
        pyarrow.array(columns[0]),
        pyarrow.array(columns[1], pyarrow.binary()).view("string"),
        pyarrow.array(columns[2], pyarrow.string()),
    ]
    path = tmp_path / "in.parquet"
    pyarrow_parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), path)
    lines = parsed([*parquet.rows_of(path)])
    assert isinstance(lines[0], BatchLine)
    assert [(one.line, one.custom_id, one.param) for one in lines[1:]] == [
        (2, "b", "body"),
        (3, "c", "body"),
    ]


def test_bytes_are_text_and_maps_are_objects(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "prompt": pyarrow.array([b"hello"], pyarrow.binary()),
            "logit_bias": pyarrow.array(
                [[("5", 1.0)]], pyarrow.map_(pyarrow.string(), pyarrow.float64())
            ),
        }
    )
    pyarrow_parquet.write_table(table, tmp_path / "in.parquet")
    rows = [*parquet.rows_of(tmp_path / "in.parquet")]
    assert bodies(rows) == [{"prompt": "hello", "logit_bias": {"5": 1.0}}]
    [refused] = parsed([{"prompt": "A", "max_tokens": Decimal(5)}])
    assert isinstance(refused, LineError)


def test_parts_that_would_be_left_out_or_are_no_parts(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", [{"prompt": "A", "label": 1}])
    table(tmp_path / "b.parquet", [{"prompt": "B", "source": 1}])
    (tmp_path / ".c.parquet").write_text("being written")
    assert len([*parquet.rows_of(tmp_path)]) == 2
    assert request_rows.unused(parquet.columns_of(tmp_path)) == ["label", "source"]
    (tmp_path / "day=1").mkdir()
    table(tmp_path / "day=1" / "d.parquet", [{"prompt": "D"}])
    with pytest.raises(RunFailure, match="tables in folders of its own"):
        BatchSource(str(tmp_path), Rules())


def test_without_pyarrow_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RunFailure, match=r"pip install 'sglang-blendserve\[tables\]'"):
        BatchSource(str(tmp_path / "in.parquet"), Rules())
    with pytest.raises(RunFailure, match=r"pip install 'sglang-blendserve\[tables\]'"):
        table_output.check(tmp_path / "out.parquet", overwrite=False)


# --- answers ---------------------------------------------------------------------------------


def completion(text: str, **more: Any) -> dict[str, Any]:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    return {"choices": [{"text": text, "finish_reason": "length"}], "usage": usage, **more}


def results() -> list[bytes]:
    chat = completion("")
    chat["choices"] = [
        {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for text in ("first", "second")
    ]
    refused = {"error": {"message": "too long", "type": "BadRequest", "code": 400, "param": None}}
    error = LineError(
        code=ErrorCode.INVALID_VALUE, message="no such url", param="url", line=4, custom_id="d"
    )
    made = [
        answer("job", 1, "a", Response(status_code=200, request_id="r1", body=completion("A"))),
        answer("job", 2, "b", Response(status_code=200, request_id="r2", body=chat)),
        answer("job", 3, "c", Response(status_code=400, request_id="r3", body=refused)),
        refusal("job", error),
    ]
    return [line.to_json() for line in made]


def test_columns_of_answers() -> None:
    rows = [*answer_rows.rows_of(results())]
    plain = [
        [row.get(name) for name in ("custom_id", "status_code", "text", "finish_reason")]
        for row in rows
    ]
    assert plain == [
        ["a", 200, "A", "length"],
        ["b", 200, "first", "stop"],
        ["c", 400, None, None],
        ["d", None, None, None],
    ]
    assert [row.get("error_code") for row in rows] == [None, None, "400", "invalid_value"]
    assert [row.get("error_message") for row in rows] == [None, None, "too long", "no such url"]
    counts = ("prompt_tokens", "completion_tokens", "cached_tokens")
    assert [rows[0][name] for name in counts] == [5, 2, 3]


def test_an_odd_answer_has_its_row(tmp_path: Path) -> None:
    odd = [{"error": "text"}, {}, {"choices": []}]
    lines = [
        answer("job", n, str(n), Response(status_code=500, request_id="r", body=body)).to_json()
        for n, body in enumerate(odd)
    ]
    rows = [*answer_rows.rows_of(lines)]
    assert [row["status_code"] for row in rows] == [500] * 3
    assert rows[0]["error_message"] == "text"


def test_types_are_fixed_whatever_the_values(tmp_path: Path) -> None:
    expected = dict(answer_rows.ANSWER_COLUMNS)
    for name, lines in {"good": results()[:1], "bad": results()[3:], "none": []}.items():
        path = tmp_path / f"{name}.parquet"
        assert parquet.write(path, answer_rows.ANSWER_COLUMNS, answer_rows.rows_of(lines)) == len(
            lines
        )
        schema = pyarrow_parquet.read_schema(path)
        assert {field.name: str(field.type) for field in schema} == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.text(min_size=1), st.dictionaries(st.text(), JSON))))
def test_answers_are_the_same_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, given: list[tuple[str, dict[str, Any]]]
) -> None:
    lines = [
        answer("job", number, name, Response(status_code=200, request_id="r", body=body)).to_json()
        for number, (name, body) in enumerate(given, start=1)
        if not ({"choices", "usage", "error"} & body.keys())
    ]
    lines += results()
    path = tmp_path_factory.mktemp("tables") / "out.parquet"
    parquet.write(path, answer_rows.ANSWER_COLUMNS, answer_rows.rows_of(lines))
    back = [*answer_rows.lines_of(parquet.rows_of(path))]
    assert [json.loads(line) for line in back] == [json.loads(line) for line in lines]


def test_a_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from answer_rows.rows_of(results())
        raise KeyboardInterrupt

    path = tmp_path / "out.parquet"
    path.write_text("what was there")
    with pytest.raises(KeyboardInterrupt):
        parquet.write(path, answer_rows.ANSWER_COLUMNS, broken())
    assert [one.name for one in tmp_path.iterdir()] == ["out.parquet"]
    assert path.read_text() == "what was there"


# --- the commands ----------------------------------------------------------------------------


def convert(*args: str | Path) -> int:
    return cli.main(["convert", *map(str, args)])


def test_convert_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = tmp_path / "requests.jsonl"
    lines = [
        {"custom_id": str(n), "url": "/v1/completions", "body": {"prompt": "A", "n": n}}
        for n in range(1, 5)
    ]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert convert("-i", requests, "-o", tmp_path / "requests.parquet") == 0
    assert convert("-i", tmp_path / "requests.parquet", "-o", tmp_path / "back.jsonl") == 0
    back = [json.loads(line) for line in (tmp_path / "back.jsonl").open()]
    assert back == [{"method": "POST", **line} for line in lines]
    for name, part in {"out": results()[:2], "errors": results()[2:]}.items():
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(part))
    inputs = ["-i", tmp_path / "out.jsonl", "-i", tmp_path / "errors.jsonl"]
    assert convert(*inputs, "-o", tmp_path / "out.parquet") == 0
    assert pyarrow_parquet.read_table(tmp_path / "out.parquet").num_rows == 4
    assert convert("-i", tmp_path / "out.parquet", "-o", tmp_path / "all.jsonl") == 0
    assert (tmp_path / "all.jsonl").read_bytes().count(b"\n") == 4
    assert "4 rows" in capsys.readouterr().out


def test_what_convert_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests, answers, broken = (tmp_path / f"{name}.jsonl" for name in "abc")
    requests.write_text('{"custom_id": "a", "body": {"prompt": "A"}}\n')
    answers.write_bytes(results()[0])
    broken.write_text('{"custom_id": "a"}\n\n[1]\n')
    out = tmp_path / "out.parquet"
    for inputs, output, words in (
        ([requests, answers], out, "some inputs hold requests and some answers"),
        ([broken], out, "c.jsonl: line 3 is no JSON object"),
        ([requests], requests, "would be written over"),
        ([requests], answers, "--overwrite replaces it"),
        ([tmp_path / "absent.jsonl"], out, "No such file"),
    ):
        flags = [flag for path in inputs for flag in ("-i", path)]
        assert convert(*flags, "-o", output) == 1
        assert words in capsys.readouterr().err
    assert not out.exists()
    assert requests.read_text().startswith('{"custom_id"')


def test_convert_joins_files_as_they_are(tmp_path: Path) -> None:
    first, second, empty, out = (tmp_path / f"{name}.jsonl" for name in ("a", "b", "c", "out"))
    first.write_bytes(results()[0].rstrip())  # without the last line's end
    second.write_bytes(b"\n" + results()[1])
    empty.touch()
    assert convert("-i", first, "-i", second, "-i", empty, "-o", out) == 0
    assert [json.loads(one)["custom_id"] for one in out.open()] == ["a", "b"]


def test_a_table_is_not_written_into_the_folder_it_is_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = table(tmp_path / "a.parquet", [{"prompt": "A"}])
    before = part.read_bytes()
    for name in ("a.parquet", "new.parquet"):
        out = str(tmp_path / name)
        assert convert("-i", tmp_path, "-o", out, "--overwrite") == 1
        arguments = ["run", "-i", str(tmp_path), "-o", out, "--model-path", "none", "--overwrite"]
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert "lies in" in capsys.readouterr().err
    assert part.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.parquet"]


def test_a_run_from_a_table_to_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All lines are refused, so there is no engine; what a real one answers takes the same way."""
    monkeypatch.chdir(tmp_path)
    rows = [{"custom_id": None, "prompt": "A"}, {"custom_id": None, "prompt": "B"}]
    rows.append({"custom_id": "c", "prompt": None})
    table(Path("in.parquet"), rows)
    arguments = ["run", "-i", "in.parquet", "-o", "out.parquet", "--model-path", "none"]
    assert cli.main(arguments) == 0
    found = pyarrow_parquet.read_table("out.parquet").to_pylist()
    assert [row["line"] for row in found] == [1, 2, 3]
    assert {row["error_code"] for row in found} == {"missing_required_parameter"}
    # They may be tried again, so what the table was made of is there.
    assert Path("out.parquet.errors.jsonl").exists()
    assert cli.main(arguments) == 1
    assert "--retry-errors" in capsys.readouterr().err
    assert cli.main([*arguments, "--overwrite"]) == 0
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--errors", "e.jsonl"])
    assert "--errors does not go with a table" in capsys.readouterr().err


def test_the_table_of_a_finished_run_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    output, errors = table_output.log_files(path)
    output.write_bytes(b"".join(results()[:2]))
    errors.write_bytes(b"")
    table_output.write(path, failed=0)
    assert pyarrow_parquet.read_table(path).num_rows == 2
    assert [one.name for one in tmp_path.iterdir()] == ["out.parquet"]
    with pytest.raises(RunFailure, match="--overwrite starts again"):
        table_output.check(path, overwrite=False)
    table_output.check(path, overwrite=True)
    with pytest.raises(RunFailure, match="is a folder"):
        table_output.check(tmp_path, overwrite=True)
