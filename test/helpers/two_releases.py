"""What tests do with SGLang's own objects and what SGLang 0.5.17 and 0.5.23 do differently."""

from __future__ import annotations

from array import array
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import MatchResult
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey, TreeNode

from sglang.srt.blendserve.pool.pool_request import PoolRequest

OLD = version("sglang") == "0.5.17"

NAMESPACES = ("", "other") if OLD else ("", "other", "\0salt", "other\0salt")
"""As `seams.namespace` has them; SGLang 0.5.17 knows no ``cache_salt``."""


def radix_key(tokens: list[int], namespace: str = "") -> RadixKey:
    """Return the key under which ``tokens`` of a request of ``namespace`` are cached."""
    space, _, salt = namespace.partition("\0")
    given = {"cache_salt": salt} if salt else {}
    return RadixKey(array("q", tokens), space or None, **given)


def matched_slots(cache: RadixCache, match: MatchResult) -> torch.Tensor:
    """Return the slots of the tokens that ``match`` has found in ``cache``."""
    return match.device_indices if OLD else cache.path_device_indices(match.last_device_node)


def release_at_once(
    cache: RadixCache, node: TreeNode, request: PoolRequest, row: torch.Tensor, cached: int
) -> None:
    """Release ``request``, whose first output token is its last, as SGLang does.

    ``row``: the slots of its prompt, of which the first ``cached`` belong to the locked ``node``.
    """
    key = radix_key(request.prompt.tolist(), request.namespace)
    tokens = key.token_ids
    given: dict[str, Any] = {
        "origin_input_ids": tokens,
        "output_ids": array("q", [9]),
        "extra_key": key.extra_key,
        "last_node": node,
        "blendserve": request,
    }
    if OLD:
        cache.req_to_token_pool = SimpleNamespace(req_to_token=row[None])
        req = SimpleNamespace(req_pool_idx=0, cache_protected_len=cached, **given)
        cache.cache_finished_req(req, kv_len_to_handle=len(tokens))
        return
    from sglang.srt.managers.schedule_batch import ReqKvInfo
    from sglang.srt.mem_cache.base_prefix_cache import DecLockRefParams, TreeLock

    def write(place: tuple[int, slice], slots: torch.Tensor) -> None:
        row[place[1]] = slots

    cache.req_to_token_pool = SimpleNamespace(req_to_token=row[None], write=write)
    kv = ReqKvInfo(req_pool_idx=0, cache_protected_len=cached)
    lock = TreeLock(node, DecLockRefParams())
    req = SimpleNamespace(
        kv=kv, lock=lock, cache_salt=key.cache_salt, priority=None, finished=lambda: True, **given
    )
    req.full_untruncated_fill_ids = tokens
    # As `release_kv_cache` has it.
    cache.checkpoint(req, up_to=len(tokens))
    cache.free_kv_row(kv, [(kv.cache_protected_len, len(tokens))])
    cache.unlock(req.lock)
    cache.on_release(req, checkpointed=True)
