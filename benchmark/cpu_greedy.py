"""Compare greedy answers under blend_cpu with those under SGLang's own torch_native.

    python benchmark/cpu_greedy.py --json benchmark/results/cpu_greedy.json

The prompts of the demo batch, with the answers cut to `--tokens`, through stock scheduling
(policy fcfs) on both attention backends, in float32 and in bfloat16. float32 must agree but for
ties; bfloat16 rounds after each operation, so the order of a sum can decide between two tokens of
nearly equal probability, and one such choice changes the rest of the answer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "demo"))
from run import HERE as DEMO
from run import read_answers


def main() -> int:
    """Run, compare, print; returns 1 when a run fails."""
    from sglang.srt.blendserve.fetch_model.models import model_path

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=24, help="longest answer (default 24)")
    parser.add_argument("--requests", type=int, help="how many of the batch (default all)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder) / "batch.jsonl"
        batch.write_text("".join(short_requests(args.tokens, args.requests)))
        for dtype in args.dtypes:
            answers = {}
            for backend in ("torch_native", "blend_cpu"):
                out = Path(folder) / f"{dtype}-{backend}.jsonl"
                command = [sys.executable, "-m", "sglang.srt.blendserve.cli", "run", "--overwrite",
                           "-i", str(batch), "-o", str(out), "--policy", "fcfs", "--dtype", dtype,
                           "--model-path", str(model_path("smollm2")), "--attention-backend",
                           backend, "--max-total-tokens", "16000"]  # fmt: skip
                done = subprocess.run(command, check=False, capture_output=True, text=True)
                if done.returncode != 0:
                    print(done.stderr[-3000:], file=sys.stderr)
                    return 1
                answers[backend] = read_answers(out)
            result[dtype] = compare(answers["torch_native"], answers["blend_cpu"])
            print(dtype, json.dumps(result[dtype]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"tokens": args.tokens, **result}, indent=1) + "\n")
    return 0


def short_requests(tokens: int, most: int | None) -> list[str]:
    """The demo's lines with a lower ``max_tokens``."""
    lines = []
    for text in (DEMO / "demo.jsonl").read_text(encoding="utf-8").splitlines()[:most]:
        line = json.loads(text)
        line["body"]["max_tokens"] = min(tokens, line["body"].get("max_tokens", tokens))
        lines.append(json.dumps(line) + "\n")
    return lines


def compare(one: dict[str, str], other: dict[str, str]) -> dict[str, Any]:
    """How many answers are equal, and which are not."""
    different = sorted(key for key, text in one.items() if other.get(key) != text)
    return {
        "requests": len(one),
        "equal": len(one) - len(different),
        "different": {key: [one[key], other.get(key)] for key in different},
    }


if __name__ == "__main__":
    sys.exit(main())
