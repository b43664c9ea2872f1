"""vLLM over a batch file: `vllm run-batch` in an environment of its own, timed from outside.

`run-batch` prints `Running batch:   0% Completed | 0/300` when its engine is up and it sends the
requests, all at once, and `300/300` when the last answer is there. The seconds between these two
lines, on this process's clock, are the counterpart of `seconds` of `sglang-blendserve run`. Tokens
and cached tokens are vLLM's own, from the usage of each answer.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

BLOCK = 32
"""Tokens of one block of vLLM's KV cache: the least that its CPU attention recommends."""
MAX_MODEL_LEN = 4096
"""Tokens; less where the KV cache is smaller, because vLLM refuses a length that it cannot hold."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
_PROGRESS = re.compile(r"Running batch: +\d+% Completed \| (\d+)/(\d+) ")


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one run: until the first request, and from there to the last answer."""

    startup_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over the lines of an output file: lines with an answer or an error, and tokens."""

    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int


def missing(folder: Path) -> str | None:
    """One line that says that vLLM is not in ``folder`` and how to get it there; None: it is."""
    if (folder / "bin" / "vllm").exists():
        return None
    maker = Path(__file__).with_name("vllm_env.sh")
    return f"no vLLM in {folder}; to make it (3.5 GB): {maker} {folder}"


def best_flags() -> tuple[str, ...]:
    """Flags with which vLLM is fastest on this machine.

    Without bf16 products of the processor it takes the model's bfloat16 all the same, and is
    several times slower than in float32, which `run` takes there by itself.
    """
    from sglang.srt.blendserve.runtime.cpu.defaults import has_bf16_products

    return () if has_bf16_products() else ("--dtype", "float32")


def environment() -> dict[str, str]:
    """The variables of a process of vLLM's."""
    # Our package is not in its environment, and must not be looked for there.
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return inherited | ENVIRONMENT


def engine_flags(kv_tokens: int) -> list[str]:
    """Flags of the engine with a KV cache of so many tokens.

    Raises:
        ValueError: that is not a number of whole blocks.
    """
    if kv_tokens % BLOCK:
        raise ValueError(f"a KV cache of {kv_tokens} tokens is not a multiple of {BLOCK}")
    flags = ["--max-model-len", str(min(MAX_MODEL_LEN, kv_tokens)), "--block-size", str(BLOCK)]
    # vLLM holds one block back, which no request gets.
    flags += ["--num-gpu-blocks-override", str(kv_tokens // BLOCK + 1)]
    # Reports cached tokens in each answer's usage; changes nothing else.
    return [*flags, "--enable-prompt-tokens-details"]


def command(
    folder: Path,
    batch: Path,
    output: Path,
    model: Path,
    model_name: str,
    kv_tokens: int,
    flags: Iterable[str] = (),
) -> list[str]:
    """The command line of one run of ``run-batch`` in the environment ``folder``."""
    line = [str(folder / "bin" / "vllm"), "run-batch", "-i", str(batch), "-o", str(output)]
    line += ["--model", str(model), "--served-model-name", model_name]
    return [*line, *engine_flags(kv_tokens), *flags]


def run(line: Sequence[str], log: Path) -> Times:
    """Run ``vllm run-batch`` with all it writes in ``log``.

    Raises:
        RuntimeError: it ended with an error, or never said that it was done.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        line,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    with process, log.open("w", buffering=1, encoding="utf-8") as file:
        try:
            times = batch_times(_stamped(process.stdout, file), began)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0 or times is None:
        end = log.read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"{end}\nended with status {process.returncode}: {' '.join(line)}")
    return times


def _stamped(lines: Iterable[str], log: TextIO) -> Iterator[tuple[float, str]]:
    for text in lines:
        now = time.monotonic()
        log.write(text)
        yield now, text


def batch_times(lines: Iterable[tuple[float, str]], began: float) -> Times | None:
    """The times in what ``run-batch`` writes; None if the batch did not begin or not end.

    Args:
        lines: each line with the second at which it came.
        began: the second at which the process was started.
    """
    first = last = None
    for second, text in lines:
        found = _PROGRESS.search(text)
        if not found:
            continue
        done, total = int(found[1]), int(found[2])
        if first is None:
            first = second
        if done == total and last is None:
            last = second
    if first is None or last is None:
        return None
    return Times(startup_seconds=round(first - began, 3), seconds=round(last - first, 3))


def read_usage(output: Path) -> Usage:
    """The sums over ``run-batch``'s output file."""
    entries = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    return sum_usage(entry["response"]["body"] for entry in entries)


def sum_usage(bodies: Iterable[dict[str, Any] | None]) -> Usage:
    """The sums over the bodies of answers; None stands for a line with an error."""
    completed = failed = given = made = cached = 0
    for body in bodies:
        if body is None:
            failed += 1
            continue
        usage = body["usage"]
        completed += 1
        given += usage["prompt_tokens"]
        made += usage["completion_tokens"]
        cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(completed, failed, given, made, cached)
