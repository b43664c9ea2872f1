"""Which prefix cache the engine has under ``--radix-cache-backend blendserve``."""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.mem_cache.registry import TreeCacheBuildContext, default_radix_cache_factory

from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache
from sglang.srt.blendserve.runtime.compat import seams

logger = logging.getLogger(__name__)


def create_cache(context: TreeCacheBuildContext) -> Any:
    """Make the cache of ``--radix-cache-backend blendserve``.

    Models whose cache is not a plain radix tree (sliding windows, state spaces) and SGLang's
    other caches keep the one that SGLang chooses, without annotations.
    """
    for chosen, reason in seams.own_caches(context):
        if chosen:
            logger.warning(
                "The prefix cache for %s is SGLang's own; it evicts without regard to the plan.",
                reason,
            )
            return default_radix_cache_factory(context)
    return BlendRadixCache(context.params)
