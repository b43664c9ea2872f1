"""How a run takes up a million requests: as JSON lines, and as Parquet.

    python benchmark/tables/million.py --rows 1000000 --json out.json

The same requests (chat messages of 2,000 characters, half of them alike) in both forms. Each is
opened and checked as `run` does before it tokenizes anything, in a process of its own: seconds, and
the most memory it ever had. From there on both are the same file of lines. Rounds alternate.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

WORDS = 340


def main() -> int:
    """Make both files, measure, or, with ``--take-up``, be the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--take-up", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.take_up is not None:
        print(json.dumps(take_up(args.take_up)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files = make(Path(folder), args.rows)
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in files}
        for _ in range(args.rounds):
            for name, path in files.items():
                command = [sys.executable, __file__, "--take-up", str(path)]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                seen[name].append(json.loads(done.stdout))
        sizes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
    found = {
        "rows": args.rows,
        "rounds": args.rounds,
        **{
            name: {
                "seconds": median(one["seconds"] for one in rounds),
                "all_seconds": [one["seconds"] for one in rounds],
                "peak_mib": max(one["peak_mib"] for one in rounds),
                "megabytes": sizes[name],
            }
            for name, rounds in seen.items()
        },
    }
    print(json.dumps(found, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def make(folder: Path, rows: int) -> dict[str, Path]:
    """Write the requests as both forms."""
    import pyarrow
    from pyarrow import parquet

    draw = random.Random(0)
    words = [f"word{n}" for n in range(2000)]
    shared = " ".join(draw.choices(words, k=WORDS // 2))
    schema = pyarrow.schema(
        [
            ("custom_id", "string"),
            (
                "messages",
                pyarrow.list_(pyarrow.struct([("role", "string"), ("content", "string")])),
            ),
            ("max_tokens", pyarrow.int64()),
        ]
    )
    lines, table = folder / "in.jsonl", folder / "in.parquet"
    with lines.open("w") as file, parquet.ParquetWriter(table, schema) as writer:
        for start in range(0, rows, 10_000):
            group = []
            for number in range(start, min(start + 10_000, rows)):
                text = f"{shared} {' '.join(draw.choices(words, k=WORDS // 2))}"
                body = {"messages": [{"role": "user", "content": text}], "max_tokens": 64}
                group.append({"custom_id": f"r{number}", **body})
                line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
                file.write(json.dumps({"custom_id": f"r{number}", **line}) + "\n")
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
    return {"jsonl": lines, "parquet": table}


def take_up(path: str) -> dict[str, float]:
    """Open and check a file of requests as `run` does."""
    from sglang.srt.blendserve.batch_file.validation import Rules
    from sglang.srt.blendserve.run.source import BatchSource

    began = time.monotonic()
    with BatchSource(path, Rules(max_lines=1 << 24)) as source:
        found = source.scan(lambda _: False)
        assert not found.bad, found.bad
        source.plain()
        seconds = time.monotonic() - began
    # Not ru_maxrss, in which the process that started this one counts.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"seconds": seconds, "peak_mib": int(status["VmHWM"].split()[0]) / 1024}


if __name__ == "__main__":
    raise SystemExit(main())
