"""Greedy answers with and without overlap, over a small model with random weights.

    python benchmark/gpu/check_correctness.py ORDER.json OUT.json

ORDER: ``model``, ``engines`` (name -> keywords of ``sglang.Engine``; the first is what the others
are compared with). In float32 with an attention kernel that supports it, answers must be equal. In
bfloat16, sums differ with the shape of a batch, so even two stock runs may part where two tokens
are almost equally likely: there the share of equal answers is reported, of stock with other flags
too, and only a clearly lower share says something.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def requests(count: int = 36) -> list[tuple[list[int], dict[str, Any]]]:
    """Shared prefixes with short answers, long prompts, and short prompts with long answers."""
    rng = random.Random(0)

    def words(length: int) -> list[int]:
        return [rng.randrange(1000, 30_000) for _ in range(length)]

    prefixes = [words(60) for _ in range(3)]
    kinds = (
        lambda number: (prefixes[number % 3] + words(6), 3),
        lambda number: (words(150), 8),
        lambda number: (words(5), 50),
    )
    made = []
    for number in range(count):
        prompt, tokens = kinds[number % 3](number)
        made.append(
            (prompt, {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": number % 2 == 1})
        )
    return made


def answers(flags: dict[str, Any]) -> list[list[int]]:
    """Output token ids of one engine."""
    from sglang.srt.entrypoints.engine import Engine

    engine = Engine(**flags)
    try:
        asked = requests()
        given = engine.generate(
            input_ids=[prompt for prompt, _ in asked],
            sampling_params=[parameters for _, parameters in asked],
        )
        return [answer["output_ids"] for answer in given]
    finally:
        engine.shutdown()


def compare(reference: list[list[int]], other: list[list[int]]) -> dict[str, Any]:
    """How far two sets of answers agree."""
    equal = [one == two for one, two in zip(reference, other, strict=True)]
    return {
        "answers": len(equal),
        "equal": sum(equal),
        "different": [index for index, same in enumerate(equal) if not same],
        "distinct_reference": len({tuple(answer) for answer in reference}),
    }


def main(order: dict[str, Any], target: Path) -> int:
    """Each engine in a process of its own: SGLang patches its classes once a process."""
    report: dict[str, Any] = {"compared_with": "", "engines": {}}
    reference: list[list[int]] = []
    for name, flags in order["engines"].items():
        done = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps(flags | {"model_path": order["model"]})],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            report["engines"][name] = {"error": f"exit code {done.returncode}"}
        else:
            given = json.loads(done.stdout.splitlines()[-1])
            if not reference:
                reference, report["compared_with"] = given, name
            report["engines"][name] = compare(reference, given)
        target.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        print(json.dumps(answers(json.loads(sys.argv[2]))))
        sys.exit(0)
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])))
