"""Blocks of a file are its lines, whatever order they are read in.

pytest test/requests/test_line_blocks.py
"""

from __future__ import annotations

import io
from hashlib import blake2b

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sglang.srt.blendserve.batch_file.lines import read_lines
from sglang.srt.blendserve.requests.line_blocks import lines_of, scan, spread

LINE = st.sampled_from((b"", b" \t", b"\r", b"{}", b"{1}\r", b" {2} ", b"x" * 40, b"\xef\xbb\xbf"))


@given(st.lists(LINE), st.booleans(), st.booleans(), st.integers(3, 50))
@example([b"", b""], False, True, 3)
@example([b" " * 60], True, False, 8)
def test_blocks_give_the_lines_of_the_file(
    lines: list[bytes], mark: bool, ends: bool, block_bytes: int
) -> None:
    data = b"\xef\xbb\xbf" * mark + b"\n".join(lines) + b"\n" * ends
    found = scan(io.BytesIO(data), block_bytes)
    assert (found.size, found.digest) == (len(data), blake2b(data).hexdigest())
    assert b"".join(data[block.start : block.end] for block in found.blocks) == data
    assert [block.number for block in found.blocks] == list(range(len(found.blocks)))
    got = [
        (line, block.start + place)
        for block in found.blocks
        for line, place in lines_of(data[block.start : block.end], block.first_line, 30)
    ]
    assert [line for line, _ in got] == list(read_lines(io.BytesIO(data), max_line_bytes=30))
    # A line of nothing but blanks is too long as well, and is not counted.
    assert len(got) - found.lines == sum(not line.strip() and len(line) > 30 for line in lines)
    for line, place in got:
        end = data.find(b"\n", place)
        content = data[place : end if end >= 0 else None]
        content = content.removeprefix(b"\xef\xbb\xbf") if line.number == 1 else content
        assert line.data in (None, content.strip(b" \t\r"))


@given(st.integers(0, 3000), st.integers(1, 64))
def test_the_first_blocks_are_a_sample_of_all(count: int, first: int) -> None:
    order = spread(count)
    assert sorted(order) == list(range(count))
    taken = sorted(order[:first])
    gaps = [b - a for a, b in zip([0, *taken], [*taken, count], strict=True)]
    assert not taken or max(gaps) <= 4 * max(count / len(taken), 1)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_blocks_are_all_there(count: int) -> None:
    assert sorted(spread(count)) == list(range(count))
