"""Answers read back with the tools people have, by the calls that docs/tables.md gives.

Run: pytest test/tables/test_tools.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.blendserve import cli
from sglang.srt.blendserve.batch_file.results import Response, answer, refusal
from sglang.srt.blendserve.batch_file.types import ErrorCode, LineError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tables.md"
TOOLS = ("duckdb", "polars", "pandas", "datasets", "pyarrow")
ROWS = 3000


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a batch as both forms: answers differ in what they hold, the
    first error comes late, log probabilities have all their digits."""
    folder = tmp_path_factory.mktemp("results")
    with (folder / "out.jsonl").open("wb") as file:
        for number in range(1, ROWS + 1):
            if number > ROWS - 500 and number % 97 == 0:
                error = LineError(
                    code=ErrorCode.INVALID_VALUE, message="No.", line=number, custom_id=f"r{number}"
                )
                file.write(refusal("job", error).to_json())
                continue
            choice: dict[str, Any] = {"text": f"Answer {number}\n", "finish_reason": "stop"}
            if number % 5 == 0:
                choice["logprobs"] = {"tokens": [{"logprob": -1.1234567890123457e-07 / number}]}
            if number % 7 == 0:
                choice["matched_stop"] = 2 if number % 2 else "END"
            body = {"choices": [choice], "usage": {"prompt_tokens": number}}
            response = Response(status_code=200, request_id=f"q{number}", body=body)
            file.write(answer("job", number, f"r{number}", response).to_json())
    out = folder / "out.parquet"
    assert cli.main(["convert", "-i", str(folder / "out.jsonl"), "-o", str(out)]) == 0
    return folder


def calls() -> dict[str, str]:
    """The calls of the docs, by the tool they begin with."""
    section = DOCS.read_text().partition("## JSON lines in other tools")[2]
    found = re.findall(r"^    (\w+)(\..*)$", section, flags=re.MULTILINE)
    return {tool: tool + call for tool, call in found}


def given_by(tool: str, table: Any) -> list[dict[str, Any]]:
    """Whole result lines, of what the tool's call gives."""
    if tool in ("datasets", "pyarrow"):
        lines = table["text"] if tool == "datasets" else table["line"].to_pylist()
        return [json.loads(line) for line in lines]
    if tool == "duckdb":
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
    else:
        rows = table.to_dicts() if tool == "polars" else table.to_dict("records")
    for row in rows:
        for name in ("response", "error"):
            if isinstance(row[name], str):
                row[name] = json.loads(row[name])
    return rows


@pytest.mark.parametrize("tool", TOOLS)
def test_the_call_of_the_docs_reads_all_lines_unchanged(
    tool: str, results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(results)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    module = __import__(tool)
    if tool == "datasets":
        monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path)
    found = given_by(tool, eval(calls()[tool], {tool: module, "json": json}))
    expected = [json.loads(line) for line in Path("out.jsonl").read_bytes().splitlines()]
    names = ("custom_id", "response", "error")
    assert [[row[n] for n in names] for row in found] == [
        [row[n] for n in names] for row in expected
    ]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_table_is_read_cell_by_cell(tool: str, results: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    path = str(results / "out.parquet")
    expected = parquet.read_table(path)
    module = __import__(tool)
    read = {
        "pyarrow": lambda: expected,
        "pandas": lambda: expected.from_pandas(
            module.read_parquet(path, dtype_backend="pyarrow"), schema=expected.schema
        ),
        "polars": lambda: module.read_parquet(path),
        "duckdb": lambda: module.sql(f"from '{path}'").to_arrow_table(),
        "datasets": lambda: module.Dataset.from_parquet(path, cache_dir=str(tmp_path)),
    }[tool]()
    rows = {"polars": "to_dicts", "datasets": "to_list"}.get(tool, "to_pylist")
    assert getattr(read, rows)() == expected.to_pylist()
    codes = [row["error_code"] for row in expected.to_pylist()]
    assert codes.count("invalid_value") == len(
        [n for n in range(ROWS - 499, ROWS + 1) if not n % 97]
    )


def test_every_line_has_the_same_keys_in_the_same_order(results: Path) -> None:
    lines = [json.loads(line) for line in (results / "out.jsonl").open()]
    assert {(*line,) for line in lines} == {("id", "custom_id", "response", "error")}
    errors = [line["error"] for line in lines if line["error"]]
    assert {(*error,) for error in errors} == {("code", "message", "param", "line")}
    answers = [line["response"] for line in lines if line["response"]]
    assert {(*one,) for one in answers} == {("status_code", "request_id", "body")}
