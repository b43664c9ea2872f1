"""How far forecasts of batches are from what came: ten batches through a live server.

    python benchmark/forecast/measure.py --json out.json

One server on this machine, SmolLM2-135M-Instruct. The batches differ in number of lines, in prompts
and in answers, some of which are long; each is created when the one before has ended, but for the
last four, which come two at a time. Twice a second the batch is asked for, and its forecast noted.

For each batch, ``error_at_tenth`` is how far the forecast of its end was off when a tenth of its
lines were done, as a part of its whole time, and so on for a quarter, half, and three quarters;
``error_at_create`` is that of the answer to the call that creates it, None where there was nothing
to go by (the first one). The medians come last. Flags of SGLang's after ``--``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from openai import OpenAI

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from live_server import live_server
from sglang.srt.blendserve.fetch_model.command import fetch

WORDS = ("river", "stone", "window", "paper", "garden", "engine", "letter", "summer", "market")
SHARES = {"tenth": 0.1, "quarter": 0.25, "half": 0.5, "three_quarters": 0.75}
ENDED = ("completed", "failed", "expired", "cancelled")

KINDS: tuple[tuple[int, int, tuple[int, int], bool], ...] = (
    (160, 60, (16, 16), False),
    (120, 120, (8, 40), False),
    (240, 20, (16, 24), False),
    (160, 60, (4, 60), False),
    (100, 200, (8, 8), True),
    (160, 30, (8, 120), False),
    (120, 60, (16, 16), False),
    (120, 120, (8, 40), True),
    (160, 20, (4, 60), False),
    (100, 100, (16, 32), False),
)
"""Lines, words of a prompt, fewest and most tokens of an answer, whether long prompts come last."""


def content(number: int) -> bytes:
    """Return the input of a batch."""
    lines, words, (least, most), sorted_ = KINDS[number]
    rng = random.Random(number)
    sizes = [rng.randint(words // 2, 2 * words) for _ in range(lines)]
    made = []
    for at, size in enumerate(sorted(sizes) if sorted_ else sizes):
        text = " ".join(rng.choice(WORDS) for _ in range(size))
        body = {
            "prompt": f"{number} {at} {text}",
            "max_tokens": rng.randint(least, most),
            "ignore_eos": True,
            "temperature": 0,
        }
        made.append(
            {"custom_id": str(at), "method": "POST", "url": "/v1/completions", "body": body}
        )
    return b"".join(json.dumps(one).encode() + b"\n" for one in made)


class Watched:
    """A batch, and what was forecast of it when."""

    def __init__(self, client: OpenAI, number: int) -> None:
        self._client = client
        file = client.files.create(file=(f"{number}.jsonl", content(number)), purpose="batch")
        self.created = time.time()
        self.batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        self.first = self._ends_at()
        self.said: list[tuple[float, float]] = []
        self.ended: float | None = None

    def _ends_at(self) -> float | None:
        forecast = (self.batch.model_extra or {}).get("forecast")
        return None if forecast is None else float(forecast["ends_at"])

    def look(self) -> bool:
        """Note the forecast; return whether the batch has ended."""
        if self.ended is not None:
            return True
        self.batch = self._client.batches.retrieve(self.batch.id)
        if self.batch.status in ENDED:
            self.ended = time.time()
            return True
        counts, ends_at = self.batch.request_counts, self._ends_at()
        if counts is not None and counts.total and ends_at is not None:
            self.said.append(((counts.completed + counts.failed) / counts.total, ends_at))
        return False

    def figures(self) -> dict[str, Any]:
        """Return the errors, as parts of the whole time."""
        assert self.ended is not None
        whole = self.ended - self.created
        found: dict[str, Any] = {"seconds": whole, "status": self.batch.status}
        found["gpu_seconds"] = (self.batch.model_extra or {}).get("gpu_seconds")
        off = None if self.first is None else abs(self.first - self.ended) / whole
        found["error_at_create"] = off
        for name, share in SHARES.items():
            said = next((ends for done, ends in self.said if done >= share), None)
            off = None if said is None else abs(said - self.ended) / whole
            found[f"error_at_{name}"] = off
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=Path("out/forecast.json"))
    parser.add_argument("--model-path", help="default: SmolLM2-135M-Instruct")
    given, flags = parser.parse_known_args(argv)
    flags = [flag for flag in flags if flag != "--"]
    rows: list[dict[str, Any]] = []
    model = Path(given.model_path) if given.model_path else fetch("smollm2")
    with tempfile.TemporaryDirectory() as folder, live_server(Path(folder), model, flags) as server:
        client = server.client()
        turns = [*([number] for number in range(6)), [6, 7], [8, 9]]
        for turn in turns:
            watched = [Watched(client, number) for number in turn]
            while ended := [one.look() for one in watched]:  # each is looked at
                if all(ended):
                    break
                time.sleep(0.5)
            for number, one in zip(turn, watched, strict=True):
                rows.append({"batch": number, "at_once": len(turn), **one.figures()})
                print(json.dumps(rows[-1]), flush=True)
    names = ["create", *SHARES]
    medians = {
        name: median(
            [row[f"error_at_{name}"] for row in rows if row[f"error_at_{name}"] is not None]
        )
        for name in names
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({"batches": rows, "median_error": medians}, indent=1) + "\n")
    print(json.dumps(medians))
    return 0


if __name__ == "__main__":
    sys.exit(main())
