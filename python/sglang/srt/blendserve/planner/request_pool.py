"""The pool of offline requests: what waits, in which planned order, and what is in flight.

The pool lives beside SGLang's waiting queue and knows nothing of SGLang: a request carries the
engine's own object as ``payload``. It plans over everything that waits, plans again when enough
has arrived or the predictions have drifted, and hands requests out from both ends of the plan.
All decisions depend only on the calls made, never on the clock, so that the ranks of a tensor
parallel group, which see the same calls, hand out the same requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.planner.cost_model import CostModel
from sglang.srt.blendserve.planner.length_prior import LengthPrior
from sglang.srt.blendserve.planner.lengths import LengthEstimator
from sglang.srt.blendserve.planner.outlook import Outlook
from sglang.srt.blendserve.planner.pacing import RemainingWork
from sglang.srt.blendserve.planner.plan import KEEP_SHARING, Plan, plan_tree
from sglang.srt.blendserve.planner.prefix_tree import PrefixTree
from sglang.srt.blendserve.planner.sampling import sample_wave
from sglang.srt.blendserve.planner.scanner import DualScanner, Side
from sglang.srt.blendserve.planner.upcoming import UpcomingUse

Tokens = NDArray[np.int32]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SAMPLE = 0.01
"""Share of the requests that run first, to learn output lengths from (paper section 5.1)."""

_LEAST_SAMPLE = 4
"""A smaller sample is not worth leaving the plan's order for."""

LEARN_GROWTH = 0.5
LEARN_LEAST = 32
"""Predict anew when so many more have finished, or so many more steps have passed."""

DRIFT = 0.1
"""Plan again when predictions have moved the remaining work by this share."""

LEAST_ENDED = 4096
"""Ended requests that may be kept for what their prompts tell about lengths."""

GROWTH = 0.25
"""Plan again once this share of the planned requests has newly arrived: the total planning time
then stays proportional to the last plan's."""


@dataclass(slots=True, eq=False)
class PoolRequest:
    """One offline request, from its arrival to its end."""

    rid: str
    prompt: Tokens
    """(p,) token ids."""
    max_tokens: int
    """Cap on the output, tokens; a cap, not a forecast."""
    known_length: bool = False
    """Whether the output is exactly ``max_tokens`` long (``ignore_eos``)."""
    job: str = ""
    namespace: str = ""
    """Requests of different namespaces share no prefix (adapters, cache salts)."""
    payload: Any = None
    """The engine's own object for this request."""

    index: int = -1
    """Place in the pool's arrays."""
    side: Side = Side.COMPUTE
    """The end it was taken from; kept through retraction."""
    generated: int = 0
    """Output tokens so far."""
    held_tokens: int = 0
    """KV tokens besides ``generated`` that are freed when it ends: the part of its prompt that it
    did not find cached."""
    expected_tokens: float = 0.0
    """Output length it was expected to have when it started."""


class RequestPool:
    """Waiting and running offline requests of all jobs, blended in one plan."""

    def __init__(
        self,
        cost: CostModel,
        kv_slots: int,
        *,
        keep_sharing: float = KEEP_SHARING,
        sample: float = SAMPLE,
    ) -> None:
        """``kv_slots``: tokens the KV cache holds. ``sample``: share of the requests of unknown
        length that run first."""
        self.sample = sample
        self.cost = cost
        self.kv_slots = kv_slots
        self.keep_sharing = keep_sharing
        self.plans_made = 0
        self._prior: LengthPrior | None = None
        self._clear()

    def _clear(self) -> None:
        self._all: list[PoolRequest] = []
        self._by_rid: dict[str, PoolRequest] = {}
        self._waiting: set[int] = set()
        self._returned: list[PoolRequest] = []
        self._running: dict[int, PoolRequest] = {}
        self._finished: list[tuple[int, int]] = []
        self._sample: list[int] = []
        self._sampled = 0
        self._passes = 0
        self._learn_at = (0, 0)
        self._planned_lengths: Floats = np.zeros(0)
        self._above: tuple[list[int], list[int], list[int]] = ([], [], [])
        self.outlook: Outlook | None = None
        self._planned = 0
        self.plan: Plan | None = None
        self._tree: PrefixTree | None = None
        self._upcoming: UpcomingUse | None = None
        self.scanner = DualScanner(np.zeros(0, dtype=np.int64))
        self.lengths: LengthEstimator | None = None
        self._rest_compute = 0.0
        self._rest_memory = 0.0

    def __len__(self) -> int:
        """Requests that wait: arrived, planned or returned, not running."""
        return len(self._waiting) + len(self._returned)

    def __contains__(self, rid: str) -> bool:
        return rid in self._by_rid

    @property
    def running(self) -> list[PoolRequest]:
        """Requests in flight, in the order of their admission."""
        return list(self._running.values())

    @property
    def returned(self) -> list[PoolRequest]:
        """Requests that the engine gave back, served before anything from the plan."""
        return list(self._returned)

    @property
    def unplanned(self) -> int:
        """Requests that have arrived since the plan was made."""
        return len(self._all) - self._planned

    @property
    def rest(self) -> RemainingWork:
        """Predicted work of the planned requests that still wait."""
        return RemainingWork(max(self._rest_compute, 0.0), max(self._rest_memory, 0.0))

    @property
    def upcoming(self) -> UpcomingUse | None:
        """Who still comes through a prefix, of the planned and the returned requests.

        None without a plan. Another object for every tree that is planned over; the same one,
        with another scanner, when only the order is planned again.
        """
        if self._tree is None:
            return None
        if self._upcoming is None or self._upcoming.tree is not self._tree:
            self._upcoming = UpcomingUse(
                self._tree,
                self.scanner,
                lambda index: self._all[index].prompt,
                lambda index: self._all[index].namespace,
            )
        elif self._upcoming.scanner is not self.scanner:
            self._upcoming.follow(self.scanner)
        self._upcoming.serve_first(r.index for r in self._returned)
        return self._upcoming

    def add(self, request: PoolRequest) -> None:
        """Let ``request`` wait. Raises ValueError if its rid is already in the pool."""
        if request.rid in self._by_rid:
            raise ValueError(f"request id {request.rid} is already in the pool")
        request.index = len(self._all)
        self._all.append(request)
        self._by_rid[request.rid] = request
        self._waiting.add(request.index)

    def get(self, rid: str) -> PoolRequest | None:
        """The request of this id, waiting or running."""
        return self._by_rid.get(rid)

    def request(self, index: int) -> PoolRequest:
        """The request with this place in the pool's arrays."""
        return self._all[index]

    def waiting(self) -> Iterator[PoolRequest]:
        """All waiting requests: returned ones first, then by arrival."""
        yield from self._returned
        for index in sorted(self._waiting):
            yield self._all[index]

    # --- planning -------------------------------------------------------------------------

    def plan_if_due(self, *, quiet: bool) -> bool:
        """Plan again if it is worth it; say whether that was done.

        ``quiet``: nothing arrived lately, so whatever is unplanned may be planned now.
        """
        new = self.unplanned
        self._passes += 1
        if new == 0:
            return self._learn_if_due()
        if quiet or len(self.scanner) == 0 or new >= GROWTH * self._planned:
            self.make_plan()
            return True
        return False

    def make_plan(self) -> None:
        """Plan everything that waits, with the lengths as they are predicted now."""
        self._drop_ended()
        everything = self._all
        tree = PrefixTree.build(
            [r.prompt for r in everything],
            _numbered(r.namespace for r in everything),
        )
        lengths = LengthEstimator(
            prompt_tokens=np.array([r.prompt.size for r in everything], dtype=np.int64),
            max_tokens=np.array([r.max_tokens for r in everything], dtype=np.int64),
            known=np.array([r.known_length for r in everything], dtype=np.bool_),
            tree=tree,
            job=_numbered(r.job for r in everything),
            prior=self._prior,
        )
        for index, output_tokens in self._finished:
            lengths.observe(index, output_tokens)
        self.lengths = lengths
        self.outlook = Outlook(
            lengths,
            np.array([r.max_tokens for r in everything], dtype=np.int64),
            np.array([r.known_length for r in everything], dtype=np.bool_),
        )
        for index in [*self._running, *(index for index, _ in self._finished)]:
            self.outlook.started(index)
        for index, _ in self._finished:
            self.outlook.finished(index)
        self._planned = len(everything)
        leaf_parent = np.zeros(tree.requests, dtype=np.int64)
        leaf_parent[tree.leaf_requests] = tree.parent[tree.leaf_nodes]
        self._above = (leaf_parent.tolist(), tree.parent.tolist(), tree.depth.tolist())
        self._plan_waiting(tree)
        self._draw_sample(tree)

    def _drop_ended(self) -> None:
        """Number the requests anew without the ended ones, once these are the most.

        Otherwise a pool that never runs empty would grow for ever. What their lengths taught
        stays as the prior.
        """
        ended = len(self._all) - len(self._by_rid)
        if ended < LEAST_ENDED or 2 * ended < len(self._all):
            return
        if self.lengths is not None:
            self._prior = self.lengths.prior()
        waiting, sample = self._waiting, set(self._sample)
        running = self.running
        self._all = [request for request in self._all if request.rid in self._by_rid]
        self._waiting, self._sample, self._finished = set(), [], []
        self._sampled = sum(request.index < self._sampled for request in self._all)
        for place, request in enumerate(self._all):
            if request.index in waiting:
                self._waiting.add(place)
            if request.index in sample:
                self._sample.append(place)
            request.index = place
        self._running = {request.index: request for request in running}

    def _draw_sample(self, tree: PrefixTree) -> None:
        """Choose which of the requests that arrived since the last sample run first."""
        new = np.zeros(tree.requests, dtype=np.bool_)
        new[self._sampled :] = True
        new &= self._waiting_mask(tree.requests)
        self._sampled = tree.requests
        if new.sum() * self.sample < _LEAST_SAMPLE:
            return
        chosen = sample_wave(
            tree.restricted(new),
            np.array([r.max_tokens for r in self._all], dtype=np.int64),
            np.array([r.known_length for r in self._all], dtype=np.bool_),
            self.sample,
        )
        self._sample = [*chosen[::-1].tolist(), *self._sample]

    def next_sample(self) -> PoolRequest | None:
        """The next request to learn a length from, which runs before the plan's."""
        while self._sample and self._sample[-1] not in self._waiting:
            self._sample.pop()
        return self._all[self._sample[-1]] if self._sample else None

    def shared_above(self, request: PoolRequest, tokens: int) -> list[int]:
        """Nodes of shared prefixes of a planned request that reach beyond its first ``tokens``."""
        leaf_parent, parent, depth = self._above
        if request.index >= len(leaf_parent):
            return []
        node, nodes = leaf_parent[request.index], []
        while depth[node] > tokens:
            nodes.append(node)
            node = parent[node]
        return nodes

    def _learn_if_due(self) -> bool:
        """Predict lengths anew when enough has been seen, and plan again if that matters."""
        finished, passes = self._learn_at
        if self._tree is None or (len(self._finished) < finished and self._passes < passes):
            return False
        self._learn_later()
        assert self.lengths is not None
        estimate = self._estimate()
        rest = self._waiting_mask(self._tree.requests)
        prompt = np.array([r.prompt.size for r in self._all[: rest.size]], dtype=np.float64)[rest]
        before, now = self._planned_lengths[rest], estimate[rest]
        before, now = before * (prompt + before / 2), now * (prompt + now / 2)
        if np.abs(now - before).sum() <= DRIFT * before.sum():
            return False
        self._plan_for(self._tree, estimate)
        return True

    def _learn_later(self) -> None:
        self._learn_at = (
            int(len(self._finished) * (1 + LEARN_GROWTH)) + LEARN_LEAST,
            int(self._passes * (1 + LEARN_GROWTH)) + LEARN_LEAST,
        )

    def _waiting_mask(self, requests: int) -> NDArray[np.bool_]:
        mask = np.zeros(requests, dtype=np.bool_)
        mask[[i for i in self._waiting if i < requests]] = True
        return mask

    def _estimate(self) -> Floats:
        """(n,) expected output lengths from all that is seen; renews the outlook."""
        assert self.outlook is not None
        running = self.running
        return self.outlook.renew(
            np.array([r.index for r in running], dtype=np.int64),
            np.array([r.generated for r in running], dtype=np.int64),
        )

    def replan(self) -> None:
        """Order what still waits anew for the lengths as they are predicted now."""
        if self._tree is not None:
            self._plan_waiting(self._tree)

    def _plan_waiting(self, tree: PrefixTree) -> None:
        self._plan_for(tree, self._estimate())

    def _plan_for(self, tree: PrefixTree, estimate: Floats) -> None:
        plan = plan_tree(
            tree.restricted(self._waiting_mask(tree.requests)),
            estimate,
            self.cost,
            keep_sharing=self.keep_sharing,
            kv_slots=self.kv_slots,
        )
        self.plan = plan
        self._tree = tree
        self._planned_lengths = estimate
        self.scanner = DualScanner(plan.order)
        self._rest_compute = plan.total_compute_seconds
        self._rest_memory = plan.total_memory_seconds
        self.plans_made += 1
        self._learn_later()

    # --- handing out ------------------------------------------------------------------------

    def peek(self, side: Side) -> PoolRequest | None:
        """The next request at ``side`` of the plan; None when the plan is used up."""
        index = self.scanner.peek(side)
        return None if index is None else self._all[index]

    def peek_returned(self) -> PoolRequest | None:
        """The returned request that is served before anything from the plan."""
        return self._returned[0] if self._returned else None

    def start(self, request: PoolRequest) -> None:
        """``request``, which waits, is handed to the engine."""
        if request.index in self._waiting:
            self._waiting.remove(request.index)
            if request.index in self.scanner:
                self.scanner.discard(request.index)
                self._count_rest(request, -1.0)
        else:
            self._returned.remove(request)
        self._running[request.index] = request
        if self.outlook is not None and request.index < self._planned and not request.generated:
            self.outlook.started(request.index)

    def put_back(self, request: PoolRequest, *, first: bool = True) -> None:
        """The engine returns ``request`` (refused or retracted); it keeps its turn."""
        del self._running[request.index]
        self._returned.insert(0 if first else len(self._returned), request)

    def finish(self, request: PoolRequest, output_tokens: int) -> None:
        """``request`` has ended by itself with ``output_tokens`` output tokens: a length seen."""
        self._finished.append((request.index, output_tokens))
        if self.lengths is not None and request.index < self._planned:
            self.lengths.observe(request.index, output_tokens)
            if self.outlook is not None:
                self.outlook.finished(request.index)
        self.forget(request)

    def forget(self, request: PoolRequest) -> None:
        """``request`` has left the engine (ended, aborted or failed)."""
        if self._by_rid.pop(request.rid, None) is None:
            return
        if self._running.pop(request.index, None) is None:
            if request.index in self._waiting:
                self._waiting.remove(request.index)
                if request.index in self.scanner:
                    self.scanner.discard(request.index)
                    self._count_rest(request, -1.0)
            else:
                self._returned.remove(request)
        request.payload = None
        if not self._by_rid:
            # Everything is done: start afresh, but remember what lengths look like here.
            if self.lengths is not None:
                self._prior = self.lengths.prior()
            self._clear()

    def select(self, chosen: Callable[[PoolRequest], bool]) -> list[PoolRequest]:
        """The waiting requests that ``chosen`` picks (to abort them)."""
        return [request for request in self.waiting() if chosen(request)]

    def _count_rest(self, request: PoolRequest, sign: float) -> None:
        assert self.plan is not None
        self._rest_compute += sign * float(self.plan.compute_seconds[request.index])
        self._rest_memory += sign * float(self.plan.memory_seconds[request.index])


def _numbered(names: Iterable[str]) -> Ints:
    """(n,) the names as numbers, equal for equal names."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
