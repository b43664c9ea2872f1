"""The dual scanner hands out every request once, from either side, in the order of the plan."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.plan.scanner import DualScanner, Side

orders = st.integers(0, 60).flatmap(lambda n: st.permutations(range(n))).map(np.array)
sides = st.lists(st.sampled_from(list(Side)), min_size=70, max_size=70)


@given(order=orders, picks=sides)
def test_every_request_once_and_each_side_in_order(order: np.ndarray, picks: list[Side]) -> None:
    scanner = DualScanner(order.astype(np.int64))
    taken: dict[Side, list[int]] = {side: [] for side in Side}
    for side in picks:
        if len(scanner) == 0:
            break
        expected = scanner.peek(side)
        assert scanner.take(side) == expected
        taken[side].append(expected)
    assert len(scanner) == 0
    assert taken[Side.COMPUTE] + taken[Side.MEMORY][::-1] == order.tolist()


@given(
    order=orders.filter(lambda o: o.size > 0),
    actions=st.lists(
        st.tuples(st.sampled_from(["front", "back", "drop", "return"]), st.floats(0, 1))
    ),
)
def test_put_back_and_discard_keep_the_count(
    order: np.ndarray, actions: list[tuple[str, float]]
) -> None:
    scanner = DualScanner(order.astype(np.int64))
    out: list[int] = []
    for action, where in actions:
        waiting = scanner.waiting()
        if action == "return" and out:
            scanner.put_back(out.pop(int(where * (len(out) - 1))))
        elif action == "drop" and waiting.size:
            request = int(waiting[int(where * (waiting.size - 1))])
            scanner.discard(request)
            out.append(request)
        elif action in ("front", "back") and waiting.size:
            out.append(scanner.take(Side.COMPUTE if action == "front" else Side.MEMORY))
    assert sorted([*out, *scanner.waiting().tolist()]) == sorted(order.tolist())
    assert len(scanner) == scanner.waiting().size
    assert scanner.waiting().tolist() == [r for r in order.tolist() if r in scanner]
    if len(scanner):
        assert scanner.peek(Side.COMPUTE) == scanner.waiting()[0]
        assert scanner.peek(Side.MEMORY) == scanner.waiting()[-1]
        assert scanner.upcoming(Side.COMPUTE, 3)[0] == scanner.waiting()[0]
        assert scanner.upcoming(Side.MEMORY, 3)[0] == scanner.waiting()[-1]


def test_misuse_is_refused() -> None:
    scanner = DualScanner(np.array([3, 1]))
    assert 0 not in scanner
    assert 7 not in scanner
    with pytest.raises(KeyError, match="not waiting"):
        scanner.discard(0)
    with pytest.raises(KeyError, match="not taken"):
        scanner.put_back(3)
    scanner.take(Side.COMPUTE)
    scanner.take(Side.COMPUTE)
    with pytest.raises(IndexError, match="no request left"):
        scanner.take(Side.MEMORY)
    with pytest.raises(ValueError, match="twice"):
        DualScanner(np.array([2, 2]))
