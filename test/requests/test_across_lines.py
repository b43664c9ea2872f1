"""Lines that are judged in any order have the errors that reading them front to back gives.

pytest test/requests/test_across_lines.py
"""

from __future__ import annotations

import io
import json
import random
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from sglang.srt.blendserve.batch_file.line_check import CheckedLine, check_line
from sglang.srt.blendserve.batch_file.types import LineError
from sglang.srt.blendserve.batch_file.validation import Rules, parse_lines
from sglang.srt.blendserve.requests.across_lines import AcrossLines
from sglang.srt.blendserve.requests.columns import COLUMNS, UNUSABLE, Flag
from sglang.srt.blendserve.requests.line_blocks import lines_of, scan
from sglang.srt.blendserve.requests.messages import (
    Work,
    pack_prepared,
    pack_work,
    unpack_prepared,
    unpack_work,
)
from sglang.srt.blendserve.requests.prepare_worker import prepare


def line(custom_id: str, model: str | None, fault: str) -> bytes:
    """A line of a file, perhaps with something wrong."""
    body: dict[str, Any] = {"prompt": "a"}
    if model is not None:
        body["model"] = model
    content = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    if fault == "url":
        content["url"] = "/v2"
    if fault == "id":
        del content["custom_id"]
    return b"{" if fault == "json" else b"" if fault == "blank" else json.dumps(content).encode()


LINE = st.builds(
    line,
    st.sampled_from("abcdefgh"),
    st.sampled_from((None, "default", "m", "m:x", "other", "other:y")),
    st.sampled_from(("", "", "", "", "url", "id", "json", "blank")),
)


def stored(data: bytes, rules: Rules, order: list[int] | None) -> tuple[dict[int, str], set[int]]:
    """Errors and usable lines when blocks come in an order; None: front to back."""
    blocks = scan(io.BytesIO(data), 120).blocks
    across = AcrossLines(rules, in_order=order is None)
    columns: dict[str, Any] = {name: np.zeros(0, dtype=dtype) for name, dtype in COLUMNS.items()}
    errors: dict[int, LineError] = {}

    def apply(verdict: Any) -> None:
        errors.update({error.line: error for error in verdict.errors})
        columns["flags"][verdict.rows] = verdict.flags

    for number in order if order is not None else range(len(blocks)):
        block = blocks[number]
        work = unpack_work(pack_work(Work(block, data[block.start : block.end])))
        assert work.block == block
        assert work.data is not None
        rows = unpack_prepared(pack_prepared(prepare(block, work.data, rules, None)))
        verdict = across.take(rows, columns.__getitem__)
        errors.update({error["line"]: LineError.model_validate(error) for error in rows.errors})
        apply(verdict)
        for name, given_ in rows.columns.items():
            columns[name] = np.concatenate([columns[name], given_])

    def reread(number: int, place: int, size: int) -> CheckedLine:
        [(raw, _)] = lines_of(data[place : place + size], number, rules.max_line_bytes)
        return check_line(raw, rules)

    apply(across.settle(columns.__getitem__, reread))
    assert not (columns["flags"] & Flag.HELD).any()
    usable = set(columns["line"][(columns["flags"] & UNUSABLE) == 0].tolist())
    assert len(set(columns["line"].tolist())) == len(columns["line"])
    return {number: repr(error) for number, error in errors.items()}, usable


MIXED = [line("a", "m", ""), line("b", "other", "")]


@example(MIXED, random.Random(0), True, False)
@example([MIXED[1], *MIXED] * 5, random.Random(0), False, False)
@given(st.lists(LINE, max_size=30), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_errors_are_those_of_the_file_read_front_to_back(
    lines: list[bytes], order: random.Random, in_order: bool, one_model: bool
) -> None:
    data = b"\n".join(lines) + b"\n"
    rules = Rules(models=frozenset(["m"])) if one_model else Rules()
    wanted: dict[int, str] = {}
    valid: set[int] = set()
    if data.strip():
        for found in parse_lines(io.BytesIO(data), rules):
            assert found.line is not None
            if isinstance(found, LineError):
                wanted[found.line] = repr(found)
            else:
                valid.add(found.line)
    count = len(scan(io.BytesIO(data), 120).blocks)
    shuffled = order.sample(range(count), count)
    assert stored(data, rules, None if in_order else shuffled) == (wanted, valid)
