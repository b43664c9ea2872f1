"""A worker of the preparation: a process that turns blocks of lines into rows of the store."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.batch_file.line_check import CheckedLine, check_line
from sglang.srt.blendserve.batch_file.lines import RawLine
from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.requests.columns import COLUMNS, TOKEN, Flag
from sglang.srt.blendserve.requests.line_blocks import Block, lines_of
from sglang.srt.blendserve.requests.messages import Prepared, pack_prepared, unpack_work
from sglang.srt.blendserve.requests.tokenizing import refusal

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

    from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts, Prompt

READY = b"ready"
FAILED = b"failed "
"""What a worker says first; the reason follows."""

_MOST_CAP = 2**31 - 1


def main(messages: Connection, server_args: ServerArgs, path: str | None, rules: Rules) -> None:
    """Work until the other end of ``messages`` is closed, which it also is by its process's death.

    Args:
        messages: work comes, and results go.
        server_args: the engine's, resolved.
        path: the input, None where messages bring the lines.
        rules: those of the input.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    # One process a core: threads of its own would only wait for each other.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.simplefilter("ignore")  # SGLang's modules warn of what a machine without a GPU lacks
    try:
        from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts

        prompts = EnginePrompts(server_args)
        file = None if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except Exception as error:
        messages.send_bytes(FAILED + (str(error) or type(error).__name__).encode())
        return
    try:
        messages.send_bytes(READY)
        while True:
            block, data = unpack_work(messages.recv_bytes())
            if data is None:
                assert file is not None
                data = _read(file, block)
            messages.send_bytes(pack_prepared(prepare(block, data, rules, prompts)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # nobody wants any more


def _read(file: int, block: Block) -> bytes:
    parts, place = [], block.start
    while place < block.end and (part := os.pread(file, block.end - place, place)):
        parts.append(part)
        place += len(part)
    return b"".join(parts)


class _Row(NamedTuple):
    prompt: Prompt | None
    which: int
    number: int
    place: int
    size: int
    flags: int


def prepare(block: Block, data: bytes, rules: Rules, prompts: EnginePrompts | None) -> Prepared:
    """Return the rows of a block: one for each prompt of a valid line, one for any other line.

    Args:
        data: the block's bytes.
        prompts: renders the lines; None: they are left to the engine, with estimated lengths.
    """
    raw = list(lines_of(data, block.first_line, rules.max_line_bytes))
    ends = [*(place for _, place in raw), len(data)][1 : len(raw) + 1]
    checked = [check_line(line, rules) for line, _ in raw]
    valid = [one.line for one in checked if isinstance(one.line, BatchLine)]
    rendered = iter(prompts.render_all(valid) if prompts is not None else [None] * len(valid))
    rows: list[_Row] = []
    errors: list[LineError] = []
    for (line, place), end, one in zip(raw, ends, checked, strict=True):
        where = (line.number, block.start + place, end - place)
        if isinstance(one.line, LineError):
            errors.append(one.line)
            rows.append(_Row(None, 0, *where, Flag.BAD))
            continue
        found = next(rendered)
        if isinstance(found, RequestRefused):
            errors.append(refusal(one.line, found))
            rows.append(_Row(None, 0, *where, Flag.REFUSED))
        elif found is None:
            rows.append(_Row(None, 0, *where, 0))
        else:
            for index, prompt in enumerate(found):
                rows.append(_Row(prompt, index, *where, _flag_of(prompt)))
    return _packed(block, raw, checked, errors, rows)


def _flag_of(prompt: Prompt) -> int:
    if prompt.exact:
        return Flag.EXACT
    return Flag.MEDIA if prompt.tokens.size else 0


def _packed(
    block: Block,
    raw: list[tuple[RawLine, int]],
    checked: list[CheckedLine],
    errors: list[LineError],
    rows: list[_Row],
) -> Prepared:
    namespaces: dict[str, int] = {"": 0}
    numbers = [
        namespaces.setdefault(row.prompt.namespace if row.prompt else "", len(namespaces))
        for row in rows
    ]
    prompts = [row.prompt for row in rows]
    caps = [
        -1 if p is None or p.max_tokens is None else min(p.max_tokens, _MOST_CAP) for p in prompts
    ]
    known = [
        cap if p is not None and p.known_length else -1
        for p, cap in zip(prompts, caps, strict=True)
    ]
    given: dict[str, Iterable[Any]] = {
        "length": [
            max(row.size // 4, 1) if row.prompt is None else row.prompt.length for row in rows
        ],
        "cap": caps,
        "known": known,
        "namespace": numbers,
        "choices": [p.choices if p else 1 for p in prompts],
        "prompt": [row.which for row in rows],
        "model": [0] * len(rows),
        "line": [row.number for row in rows],
        "byte_offset": [row.place for row in rows],
        "byte_length": [row.size for row in rows],
        "flags": [int(row.flags) for row in rows],
    }
    ids = [p.tokens for p in prompts if p is not None and p.tokens.size]
    return Prepared(
        block.number,
        [
            (line.number, one.custom_id, one.model)
            for (line, _), one in zip(raw, checked, strict=True)
        ],
        list(namespaces),
        [error.model_dump(mode="json") for error in errors],
        {name: np.array(list(values), dtype=COLUMNS[name]) for name, values in given.items()},
        np.concatenate(ids) if ids else np.zeros(0, dtype=TOKEN),
    )
