"""Lines a second that become requests of a store, against the limit and against one at a time.

    python benchmark/dispatch/prepare.py --lines 20000 --json out.json

Three ways over the same lines (chats of about ``--tokens`` tokens, of which ``--shared`` are the
same text in all of them), one after the other, after everything is loaded:

- ``lines_per_second``: `requests.preparation`, from the file to a store that is whole, by one
  worker process for each core
- ``encode_batch_lines_per_second``: `tokenizers`' ``encode_batch`` over texts that are rendered
  already, with a thread for each core: the limit of whoever tokenizes each text
- ``one_by_one_lines_per_second``: each line by `answering.conversion` in one thread, as the
  engine's process does it; without the asyncio, pickling and sending that come on top there

Ratios are of lines a second by wall clock, which other work on the machine distorts. The
``..._cpu_ms`` are processor time a line, of all processes and threads together, which it distorts
less. ``peak_mib`` is the anonymous memory of this process and its workers together, at its
highest, of which loaded libraries and models are the most.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.fetch_model.command import fetch
from sglang.srt.blendserve.requests.engine_settings import engine_settings
from sglang.srt.blendserve.requests.inputs import PlainFile
from sglang.srt.blendserve.requests.preparation import Preparation

WORDS_A_TOKEN = 0.86
"""Of SmolLM2 over the words of `vocabulary`, numbers and punctuation between them."""


def main() -> int:
    """Measure and print; returns 0."""
    args = parse()
    model = args.model_path or str(fetch("smollm2"))
    lines = list(make_lines(args))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source = Path(folder) / "in.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = engine_settings(model)
        ours = by_store(source, Path(folder) / "store", settings, args.workers)
    theirs = by_encode_batch(lines, settings, args.one_by_one)
    found = {
        "sglang": version("sglang"),
        "lines": len(lines),
        "cores": len(os.sched_getaffinity(0)),
        **ours,
        **theirs,
        "ratio_to_encode_batch": ours["lines_per_second"] / theirs["encode_batch_lines_per_second"],
        "ratio_to_one_by_one": ours["lines_per_second"] / theirs["one_by_one_lines_per_second"],
    }
    for name, value in found.items():
        print(f"{name:32} {value if isinstance(value, str) else round(value, 2):>12}")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


def parse() -> argparse.Namespace:
    """This command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, default=20_000, metavar="N")
    parser.add_argument("--tokens", type=int, default=400, metavar="N")
    shared = "part of the tokens that all lines share, 0 to 1 (default 0)"
    parser.add_argument("--shared", type=float, default=0.0, metavar="X", help=shared)
    alone = "lines that are rendered one by one (default 2000)"
    parser.add_argument("--one-by-one", type=int, default=2000, metavar="N", help=alone)
    parser.add_argument("--workers", type=int, metavar="N", help="default: one a core")
    parser.add_argument("--model-path", metavar="M", help="default: SmolLM2-135M-Instruct")
    parser.add_argument("--folder", metavar="DIR", help="where the store is made")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def make_lines(args: argparse.Namespace) -> Any:
    """Chats of English text: pieces of the demo's, words in random order, numbers."""
    text = (Path(__file__).parents[1] / "demo" / "writing.txt").read_text()
    words = text.split()
    rng = random.Random(7)
    shared = int(args.tokens * args.shared * WORDS_A_TOKEN)
    system = " ".join(rng.choices(words, k=shared))
    for index in range(args.lines):
        count = max(int(args.tokens * WORDS_A_TOKEN) - shared, 1)
        user = " ".join(rng.choices(words, k=count))
        messages = [{"role": "system", "content": system}] * bool(shared)
        messages.append({"role": "user", "content": f"{index}: {user}"})
        yield {
            "custom_id": f"request-{index}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": messages, "max_tokens": 64, "temperature": 0.0},
        }


def by_store(source: Path, folder: Path, settings: Any, workers: int | None) -> dict[str, float]:
    """Make a store; the clock runs from when all workers have loaded SGLang to the end."""
    with Preparation(folder, PlainFile(str(source)), settings, Rules(), workers=workers) as making:
        making.begin()
        while making.workers_ready < len(making.process_ids) and not making.wait(0.001):
            pass
        started, first, cpu = time.perf_counter(), making.lines, cpu_seconds(making.process_ids)
        peak = Peak(making.process_ids)
        if first > 0.8 * making.found.lines:
            raise SystemExit("too few lines: they were done before all workers had started")
        used = cpu
        while not making.wait(0.05):
            used = max(used, cpu_seconds(making.process_ids))
        seconds = time.perf_counter() - started
        store = making.store
        tokens = int(store.column("length").sum())
        done = making.lines - first
        return {
            "lines_per_second": done / seconds,
            "cpu_ms": (used - cpu) / done * 1e3,
            "tokens_per_line": tokens / making.lines,
            "store_bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "peak_mib": peak.end() / 2**20,
        }


def cpu_seconds(ids: list[int]) -> float:
    """Processor time of this process and others; 0 when one has ended."""
    try:
        times = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), *ids)]
    except psutil.Error:
        return 0.0
    return sum(one.user + one.system for one in times)


class Peak:
    """Anonymous memory of this process and others, watched."""

    def __init__(self, ids: list[int]) -> None:
        self._ids, self._most = [os.getpid(), *ids], 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Stop; return the most bytes."""
        self._over.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while True:
            self._most = max(self._most, sum(map(anonymous, self._ids)))
            if self._over.wait(0.2):
                return


def anonymous(pid: int) -> int:
    """Anonymous memory of a process, bytes; 0 if it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def by_encode_batch(lines: list[Any], settings: Any, one_by_one: int) -> dict[str, float]:
    """Tokenize rendered texts in batches with all cores, and some lines one by one."""
    from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts

    prompts = EnginePrompts(settings)
    found = [BatchLine(line=i + 1, **line) for i, line in enumerate(lines)]
    chosen = found[:one_by_one]
    started, cpu = time.perf_counter(), time.process_time()
    for line in chosen:
        list(prompts._conversion.convert(line, "one").internal.input_ids)
    alone = len(chosen) / (time.perf_counter() - started)
    alone_cpu = (time.process_time() - cpu) / len(chosen)

    backend = prompts.tokenizer._tokenizer
    texts = [
        prompts.tokenizer.apply_chat_template(
            line.body["messages"], tokenize=False, add_generation_prompt=True
        )
        for line in found
    ]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ.setdefault("RAYON_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    backend.encode_batch(texts[:64], add_special_tokens=False)
    started, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(texts), 1000):
        backend.encode_batch(texts[start : start + 1000], add_special_tokens=False)
    batched = len(texts) / (time.perf_counter() - started)
    return {
        "encode_batch_lines_per_second": batched,
        "encode_batch_cpu_ms": (time.process_time() - cpu) / len(texts) * 1e3,
        "one_by_one_lines_per_second": alone,
        "one_by_one_cpu_ms": alone_cpu * 1e3,
    }


if __name__ == "__main__":
    sys.exit(main())
