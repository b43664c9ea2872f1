"""A run whose processes are killed at random moments: nothing is lost, and nothing answered twice.

    python benchmark/dispatch/kill.py --kills 30 --json out.json
    python benchmark/dispatch/kill.py --kills 30 --engines 2
    python benchmark/dispatch/kill.py --kills 30 --engines 2 --ray

The real engine with a tiny model answers a batch that is planned ahead, once undisturbed, and once
while `kill -9` hits the planner, a worker that tokenizes, the scheduler, the detokenizer or the run
itself, which is started again with ``--resume``. With ``--engines`` it hits whole engines, too, and
with ``--ray`` the actors in front of them. Greedy answers must be those of the first run, in
float32. Takes about a minute for each kill of an engine's process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[2] / "test" / "helpers"))
from tiny_model import write_tiny_model

from sglang.srt.blendserve.fetch_model.command import fetch

VICTIMS = {
    "planner": ("planner_process",),
    # Or one of the engine's processes that still starts, and is called so until it has.
    "worker": ("spawn_main",),
    "scheduler": ("sglang::scheduler",),
    "detokenizer": ("sglang::detokenizer",),
    "engine": ("engines.child",),
    "actor": ("ray::EngineActor",),
}
WEIGHTS = {"planner": 5, "worker": 3, "scheduler": 1, "detokenizer": 1, "run": 1}
"""How often each is hit, of the one engine of a run, ..."""
SEVERAL = {"engine": 1, "scheduler": 1, "run": 1}
"""... and of several."""
BY_RAY = {"engine": 1, "actor": 1, "run": 1}
FLAGS = ("--max-total-tokens", "20000", "--dtype", "float32", "--random-seed", "1")
SECONDS = 900
"""Without any progress for so long the study gives up."""


class Batch:
    """The batch, and the command that answers it."""

    def __init__(self, folder: Path, model: Path, lines: int, more: Sequence[str]) -> None:
        """``more``: flags of the runs that are disturbed."""
        self.folder, self._model, self.more = folder, model, more
        self.input = folder / "in.jsonl"
        with self.input.open("w") as file:
            for number in range(lines):
                file.write(json.dumps(_line(number, lines)) + "\n")

    def command(self, output: str, *more: str) -> subprocess.Popen[bytes]:
        """Start the run."""
        log = (self.folder / f"{output}.log").open("ab")
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "sglang.srt.blendserve.cli", "run"),
                *("-i", self.input.name, "-o", output, "--model-path", str(self._model)),
                *("--max-in-flight", "48", *FLAGS, *more),
            ],
            cwd=self.folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )

    def answers(self, output: str) -> list[tuple[str, Any]]:
        """The custom_id and the answer of each line of a result file."""
        path = self.folder / output
        if not path.exists():
            return []
        found = []
        for text in path.read_text().splitlines():
            try:
                result = json.loads(text)
            except json.JSONDecodeError:  # being written
                continue
            body = (result.get("response") or {}).get("body") or {}
            found.append((result["custom_id"], body.get("choices") or result.get("error")))
        return found


def main() -> int:
    """Run, kill, compare; returns 0 if nothing was lost or answered twice."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--lines", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--ray", action="store_true", help="engines are actors of a local cluster")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = write_tiny_model(folder / "model", Path(fetch("smollm2")))
        more = [f"--engines={args.engines}", *(["--ray-address=local"] if args.ray else [])]
        batch = Batch(folder, model, args.lines, more if args.engines > 1 else [])
        if batch.command("reference.jsonl").wait():
            print((folder / "reference.jsonl.log").read_text())
            return 1
        weights = (BY_RAY if args.ray else SEVERAL) if args.engines > 1 else WEIGHTS
        rng = random.Random(args.seed)
        kills: dict[str, int] = disturbed(batch, args.kills, weights, rng)
        found = compare(batch, args.lines)
        log = (folder / "out.jsonl.log").read_text()
    shown = {
        "lines": args.lines,
        "engines": args.engines,
        "ray": args.ray,
        "seed": args.seed,
        "kills": kills,
        **found,
    }
    print(json.dumps(shown, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(shown, indent=2) + "\n")
    bad = [name for name in ("lost", "twice", "other_answers", "left_over") if found[name]]
    if bad:
        print(log)
    return int(bool(bad))


def disturbed(
    batch: Batch, kills: int, weights: Mapping[str, int], rng: random.Random
) -> dict[str, int]:
    """Answer the batch to its end, with so many kills on the way; return how many hit whom."""
    hit: Counter[str] = Counter()
    again: tuple[str, ...] = ()
    before, begun = 0, time.monotonic()
    while True:
        process = batch.command("out.jsonl", *batch.more, *again)
        again = ("--resume",)
        while process.poll() is None:
            if hit.total() >= kills:
                process.wait()
                break
            _progress(batch, process, rng.randrange(1, 40))
            name = rng.choices([*weights], [*weights.values()])[0]
            victim = process.pid if name == "run" else _find(process.pid, VICTIMS[name], rng)
            if victim is None or process.poll() is not None:
                continue
            print(f"kill {hit.total() + 1}: {name}", flush=True)
            psutil.Process(victim).kill()
            hit[name] += 1
            time.sleep(rng.random())
        if process.returncode == 0:
            return dict(hit)
        done = len(batch.answers("out.jsonl"))
        begun = time.monotonic() if done > before else begun
        before = done
        if time.monotonic() - begun > SECONDS:
            raise TimeoutError(f"no line more than {done} in {SECONDS} s")
        time.sleep(5)  # what it leaves behind ends by itself


def compare(batch: Batch, lines: int) -> dict[str, int]:
    """Return how the result files differ."""
    reference = dict(batch.answers("reference.jsonl"))
    answered = batch.answers("out.jsonl")
    errors = batch.answers("out.errors.jsonl")
    names = Counter(name for name, _ in (*answered, *errors))
    left = [path.name for path in batch.folder.iterdir() if path.name.endswith(".requests")]
    return {
        "lost": lines - len(names),
        "twice": sum(count > 1 for count in names.values()),
        "other_answers": sum(reference.get(name) != choices for name, choices in answered),
        "error_lines": len(errors),
        "left_over": len(left),
    }


def _progress(batch: Batch, process: subprocess.Popen[bytes], lines: int) -> None:
    """Wait until so many lines more have their result, or half a minute has passed."""
    path = batch.folder / "out.jsonl"
    size = path.stat().st_size if path.exists() else 0
    deadline = time.monotonic() + min(30, 2 + lines)
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_size > size + 400 * lines:
            return
        time.sleep(0.05)


def _find(parent: int, words: tuple[str, ...], rng: random.Random) -> int | None:
    try:
        children = psutil.Process(parent).children(recursive=True)
    except psutil.NoSuchProcess:
        return None
    found = []
    for child in children:
        try:
            command = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if any(word in command for word in words):
            found.append(child.pid)
    return rng.choice(found) if found else None


def _line(number: int, lines: int) -> dict[str, Any]:
    """Sorted by source: first long prompts with short answers, then the other way round."""
    long_prompt = number < lines // 2
    words = 60 if long_prompt else 3
    text = f"{number}: " + " ".join(f"word{(number * 7 + place) % 997}" for place in range(words))
    body = {"prompt": text, "temperature": 0, "max_tokens": 4 if long_prompt else 24}
    return {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}


if __name__ == "__main__":
    raise SystemExit(main())
