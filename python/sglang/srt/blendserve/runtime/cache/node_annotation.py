"""What the plan says of one node of the prefix cache, kept on the node."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.blendserve.pool.upcoming_use import ROOT, NextUse, Place, UpcomingUse


@dataclass(slots=True)
class Annotation:
    """Where a node of the cache lies in the plan's prefix tree, and who waits for it.

    The place is found once for each plan, and stays right however the node is split, locked or
    freed. All that waits for the node stands below it: requests, their work, and when the next is
    due are looked up there. What eviction goes by is kept as of the last `look`.
    """

    upcoming: UpcomingUse
    """What the place is read off; the annotation of another plan is void."""
    place: Place
    """How far some planned request, waiting by now or not, begins with the tokens up to the node's
    end, and where such requests stand in the plan's prefix tree."""
    end: int
    """Tokens from the root to the end of the node."""
    needed: Place = ROOT
    """How far waiting requests use the node, in whole pages (at most its start if none does), and
    where those that use most of it stand; as `look` has found it."""
    next_use: NextUse | None = None
    """When all of the node is needed next, as `look` has found it; None if nobody needs its last
    tokens."""

    def look(self, start: int, page_size: int) -> NextUse | None:
        """Bring `needed` and `next_use` up to date and return the latter.

        ``start``: tokens from the root to the start of the node.
        """
        used = self.upcoming.used(self.place, start)
        shared = min(used.shared, self.end) // page_size * page_size
        self.needed = Place(used.node, shared)
        self.next_use = self.upcoming.next_use(used.node) if shared == self.end else None
        return self.next_use

    def cut(self, end: int) -> Annotation:
        """Return the annotation of the node's first part, which is split off at ``end`` tokens."""
        node, shared = self.place
        if shared > end:
            shared = end
            while self.upcoming.depth_above(node) >= end:
                node = self.upcoming.parent(node)
        return Annotation(self.upcoming, Place(node, shared), end)


def annotation_of(node: object) -> Annotation | None:
    """Return what ``node`` of a prefix cache is annotated with, whatever the plan it is of."""
    return getattr(node, "blendserve", None)
