"""Read a table of answers back with the tools people have, and compare it cell by cell.

    python benchmark/tables/read_back.py --rows 100000 --json out.json

Result lines of every kind are made, written as JSON lines and, by `convert`, as Parquet. pandas,
polars, DuckDB, pyarrow and `datasets` (pinned in requirements/dev.txt) read the Parquet file, and
each must give the rows and types that were written.
Then DuckDB counts answers by ``error_code`` on both files; seconds are medians of five queries.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

TOOLS = ("pandas", "polars", "duckdb", "datasets", "pyarrow")
COUNT = "select error_code, count(*) from {} group by 1 order by 1"


def main() -> int:
    """Make the files and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.rows)
        found = {"rows": args.rows, **read(Path(folder))}
    print(json.dumps(found, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(found["equal"].values()) else 1


def make(folder: Path, rows: int) -> None:
    """Write ``out.jsonl`` and ``out.parquet``: the first failed line stands behind 30,000 others,
    where a tool that looks at the first lines does not see it."""
    from sglang.srt.blendserve import cli
    from sglang.srt.blendserve.batch_file.results import Response, answer, refusal
    from sglang.srt.blendserve.batch_file.types import ErrorCode, LineError

    with (folder / "out.jsonl").open("wb") as file:
        for number in range(1, rows + 1):
            name = f"request-{number}"
            if number > 30_000 and number % 97 == 0:
                error = LineError(
                    code=ErrorCode.INVALID_VALUE, message="No.", line=number, custom_id=name
                )
                file.write(refusal("job", error).to_json())
                continue
            body = {
                "choices": [{"text": f"Answer {number}, “quoted”\n", "finish_reason": "stop"}],
                "usage": {"prompt_tokens": number, "completion_tokens": number % 50},
            }
            response = Response(status_code=200, request_id=f"r{number}", body=body)
            file.write(answer("job", number, name, response).to_json())
    assert cli.main(["convert", "-i", f"{folder}/out.jsonl", "-o", f"{folder}/out.parquet"]) == 0


def read(folder: Path) -> dict[str, Any]:
    """Read the table with each tool."""
    import datasets
    import duckdb
    import pandas
    import polars
    import pyarrow.parquet

    path = str(folder / "out.parquet")
    expected = pyarrow.parquet.read_table(path)
    rows = expected.to_pylist()
    lines = [json.loads(line) for line in (folder / "out.jsonl").open()]
    frame = pandas.read_parquet(path, dtype_backend="pyarrow")
    given = {
        "pyarrow": rows,
        "pandas": pyarrow.Table.from_pandas(frame, schema=expected.schema).to_pylist(),
        "polars": polars.read_parquet(path).to_dicts(),
        "duckdb": duckdb.sql(f"from '{path}'").to_arrow_table().to_pylist(),
        "datasets": datasets.Dataset.from_parquet(path, cache_dir=str(folder)).to_list(),
    }
    seconds = {}
    for name, source in {"parquet": f"'{path}'", "jsonl": _json_lines(folder)}.items():
        times = []
        for _ in range(5):
            began = time.monotonic()
            counts = duckdb.sql(COUNT.format(source)).fetchall()
            times.append(time.monotonic() - began)
        assert len(counts) == (2 if len(rows) > 30_000 else 1), counts
        seconds[name] = median(times)
    return {
        "tools": [f"{tool}=={version(tool)}" for tool in TOOLS],
        "equal": {
            **{tool: found == rows for tool, found in given.items()},
            "lines": [_of(line) for line in lines] == [_of_row(row) for row in rows],
        },
        "count_seconds": seconds,
        "count_ratio": seconds["jsonl"] / seconds["parquet"],
    }


def _json_lines(folder: Path) -> str:
    """The JSON lines as DuckDB reads them without losing an error: with the type told."""
    columns = "{error: 'struct(code varchar)'}"
    return (
        f"(select error.code as error_code from read_json('{folder}/out.jsonl', columns={columns}))"
    )


def _of(line: dict[str, Any]) -> tuple[Any, ...]:
    response, error = line["response"], line["error"]
    code = None if error is None else error["code"]
    status = None if response is None else response["status_code"]
    return line["custom_id"], status, code, None if response is None else response["body"]


def _of_row(row: dict[str, Any]) -> tuple[Any, ...]:
    body = None if row["response"] is None else json.loads(row["response"])
    return row["custom_id"], row["status_code"], row["error_code"], body


if __name__ == "__main__":
    raise SystemExit(main())
