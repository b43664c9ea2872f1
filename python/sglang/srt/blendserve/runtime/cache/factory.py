"""Which prefix cache the engine has under ``--radix-cache-backend blendserve``."""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.environ import envs
from sglang.srt.mem_cache.registry import TreeCacheBuildContext, default_radix_cache_factory

from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache

logger = logging.getLogger(__name__)


def create_cache(context: TreeCacheBuildContext) -> Any:
    """Make the cache of ``--radix-cache-backend blendserve``.

    Models whose cache is not a plain radix tree (sliding windows, state spaces) and SGLang's
    other caches keep the one that SGLang chooses, without annotations.
    """
    args = context.server_args
    other = (
        (context.is_hybrid_swa, "sliding-window attention"),
        (context.is_hybrid_ssm, "state-space layers"),
        (context.enable_hierarchical_cache, "--enable-hierarchical-cache"),
        (context.disable_radix_cache, "--disable-radix-cache"),
        (args.enable_lmcache, "--enable-lmcache"),
        (args.enable_flexkv, "--enable-flexkv"),
        (envs.SGLANG_EXPERIMENTAL_CPP_RADIX_TREE.get(), "SGLANG_EXPERIMENTAL_CPP_RADIX_TREE"),
        (envs.SGLANG_ENABLE_UNIFIED_RADIX_TREE.get(), "SGLANG_ENABLE_UNIFIED_RADIX_TREE"),
    )
    for chosen, reason in other:
        if chosen:
            logger.warning(
                "The prefix cache for %s is SGLang's own; it evicts without regard to the plan.",
                reason,
            )
            return default_radix_cache_factory(context)
    return BlendRadixCache(context.params)
