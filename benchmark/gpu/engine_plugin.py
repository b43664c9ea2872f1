"""What the benchmark adds to SGLang's scheduler process: true output lengths, and a log of steps.

SGLang loads it as a plugin (`engine_run` declares the entry point), so it works the same in stock
SGLang and under any policy. A request ends at its true length as it would at an end token: the
scheduler sees ``max_tokens`` beforehand and the end when it has come. No policy reads this module
or its file.

    BENCH_LENGTHS   JSON file, request id -> true output tokens
    BENCH_STEPS     CSV file to write, one row per forward pass
"""

from __future__ import annotations

import csv
import json
import os
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

STEP_COLUMNS = ("time", "kind", "prefill_tokens", "prefill_scores", "decodes", "kv_tokens")
"""Seconds since the epoch; ``decode``, ``prefill`` or ``mixed``; tokens; pairs of prompt token and
context token; tokens; KV tokens that the decodes read."""


def register() -> None:
    """Hook in; SGLang calls this in every process."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(
        "sglang.srt.managers.schedule_batch.Req.update_finish_state",
        end_at_true_length,
        HookType.AROUND,
    )
    if os.environ.get("BENCH_STEPS"):
        for method in ("forward_batch_generation", "forward_batch_split_prefill"):
            HookRegistry.register(
                f"sglang.srt.managers.tp_worker.TpModelWorker.{method}", note_step, HookType.BEFORE
            )


@cache
def true_lengths() -> dict[str, int]:
    """Request id -> output tokens."""
    lengths: dict[str, int] = json.loads(Path(os.environ["BENCH_LENGTHS"]).read_text())
    return lengths


def end_at_true_length(original: Callable[..., None], req: Any, *args: Any, **kwargs: Any) -> None:
    """Around ``Req.update_finish_state``: end at the true length and at no token before it."""
    # SGLang may append "_..." to the ids of a batch.
    length = true_lengths().get(re.sub(r"_.*$", "", req.rid))
    if length is None or req.finished() or req.to_finish:
        original(req, *args, **kwargs)
        return
    if len(req.output_ids) >= length:
        from sglang.srt.managers.schedule_batch import FINISH_MATCHED_TOKEN

        req.finished_reason = FINISH_MATCHED_TOKEN(matched=req.output_ids[-1])
        req.finished_len = length


class _Log:
    def __init__(self, path: Path) -> None:
        # Line by line: the process is killed at the end, and a write costs microseconds.
        self._writer = csv.writer(path.open("w", newline="", encoding="utf-8", buffering=1))
        self._writer.writerow(STEP_COLUMNS)

    def add(self, row: tuple[Any, ...]) -> None:
        self._writer.writerow(row)


@cache
def _log() -> _Log:
    return _Log(Path(os.environ["BENCH_STEPS"]))


def note_step(_: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
    """Before a forward pass: what it computes. A pass over some more layers is no new one."""
    if batch is None or (batch.forward_mode.is_split_prefill() and batch.split_index):
        return
    now = time.time()
    if batch.forward_mode.is_decode():
        if batch.seq_lens_cpu is not None:
            kv_tokens = int(batch.seq_lens_cpu.sum())
        else:
            kv_tokens = sum(len(r.origin_input_ids) + len(r.output_ids) for r in batch.reqs)
        _log().add((now, "decode", 0, 0, len(batch.reqs), kv_tokens))
        return
    if not batch.forward_mode.is_extend():
        return
    decoding = {id(r) for r in batch.decoding_reqs or ()}
    prefill, scores, kv_tokens = 0, 0.0, 0
    for req, extend, prefix in zip(batch.reqs, batch.extend_lens, batch.prefix_lens, strict=True):
        if id(req) in decoding:
            kv_tokens += prefix + extend
        else:
            prefill += extend
            scores += extend * (prefix + extend / 2)
    kind = "mixed" if decoding else "prefill"
    _log().add((now, kind, prefill, scores, len(decoding), kv_tokens))
