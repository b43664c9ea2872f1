"""The seams of SGLang 0.5.17."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import AbortReq
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.schedule_policy import PrefillAdder
    from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey, TreeNode
    from sglang.srt.mem_cache.registry import TreeCacheBuildContext
else:
    RadixCache = object  # only the base of a class that stands before it

# ---- requests ----------------------------------------------------------------------------------


def prefix_tokens(req: Req) -> int:
    """Return how many tokens of ``req``, whose prompt is partly computed, hold KV."""
    return len(req.prefix_indices)


def has_uncached_chunk(req: Req) -> bool:
    """Return whether a chunk of ``req`` was computed since it was last put into the cache."""
    return bool(req.extend_range.end > len(req.prefix_indices))


def holds_kv(req: Req) -> bool:
    """Return whether ``req`` has a row of KV slots."""
    return req.req_pool_idx is not None


def namespace(keyed: Req | RadixKey) -> str:
    """Return what keeps the prompt of a request, or the key of a node, apart from others."""
    return keyed.extra_key or ""


# ---- the prefix cache --------------------------------------------------------------------------


def radix_key(req: Req) -> RadixKey:
    """Return the key under which SGLang caches the tokens of ``req``."""
    from sglang.srt.mem_cache.radix_cache import RadixKey

    tokens = req.origin_input_ids
    if req.output_ids:  # it was retracted
        tokens = tokens + req.output_ids
    return RadixKey(tokens, req.extra_key)


def child_space(key: RadixKey) -> Any:
    """Return what stands before the tokens in a child's key; None if nothing does."""
    return key.extra_key


def matched_tokens(cache: Any, req: Req) -> int:
    """Return how many tokens of ``req`` one of SGLang's own caches holds."""
    from sglang.srt.managers.schedule_policy import match_prefix_for_req

    return len(match_prefix_for_req(cache, req).device_indices)


def frees_at_once(allocator: Any) -> bool:
    """Return whether slots are free again as soon as they are given back."""
    return bool(allocator.is_not_in_free_group)


def record_removed(cache: RadixCache, node: TreeNode) -> None:
    """Tell those who follow the cache's events that ``node`` is gone."""
    cache._record_remove_event(node)


def own_caches(context: TreeCacheBuildContext) -> tuple[tuple[bool, str], ...]:
    """Return for each reason to use a cache of SGLang's own whether it is there."""
    from sglang.srt.environ import envs

    args = context.server_args
    return (
        (context.is_hybrid_swa, "sliding-window attention"),
        (context.is_hybrid_ssm, "state-space layers"),
        (context.enable_hierarchical_cache, "--enable-hierarchical-cache"),
        (context.disable_radix_cache, "--disable-radix-cache"),
        (args.enable_lmcache, "--enable-lmcache"),
        (args.enable_flexkv, "--enable-flexkv"),
        (envs.SGLANG_EXPERIMENTAL_CPP_RADIX_TREE.get(), "SGLANG_EXPERIMENTAL_CPP_RADIX_TREE"),
        (envs.SGLANG_ENABLE_UNIFIED_RADIX_TREE.get(), "SGLANG_ENABLE_UNIFIED_RADIX_TREE"),
    )


class EndedRequests(RadixCache):
    """Asks the prefix cache how much to keep of a request that has ended.

    To stand before SGLang's cache among the bases of a class that has ``tokens_to_keep`` and
    ``drop_behind``.
    """

    def cache_finished_req(
        self, req: Req, is_insert: bool = True, *, kv_len_to_handle: int
    ) -> None:
        """Cache of ``req``, which has ended, no more than is worth its room; else as SGLang."""
        keep = self.tokens_to_keep(req, kv_len_to_handle) if is_insert else None
        if keep is not None and keep > req.cache_protected_len:
            # A request that ends with its first token has nothing in the tree yet: what others
            # wait for goes there now, and the rest is freed.
            slots = self.req_to_token_pool.req_to_token[req.req_pool_idx]
            behind = slots[keep:kv_len_to_handle]
            self.token_to_kv_pool_allocator.free_segment(behind, start_pos=keep)
            super().cache_finished_req(req, kv_len_to_handle=keep)
            return
        super().cache_finished_req(
            req, is_insert=is_insert and keep is None, kv_len_to_handle=kv_len_to_handle
        )
        if keep is not None:
            self.drop_behind(req.last_node, req.cache_protected_len, keep)


# ---- batches -----------------------------------------------------------------------------------


def leave_out(batch: ScheduleBatch, reqs: Sequence[Req]) -> None:
    """Take ``reqs``, and those that have ended, out of ``batch``."""
    batch.filter_batch(chunked_req_to_exclude=[*reqs])


def decode_batch(scheduler: Any, reqs: Sequence[Req]) -> ScheduleBatch:
    """Return a batch of ``reqs``, in no other one now, that go on with their last known token."""
    batch: ScheduleBatch = scheduler._build_hisparse_decode_batch([*reqs])
    batch.multimodal_inputs = [req.multimodal_inputs for req in reqs]
    if batch.return_logprob:
        batch.token_ids_logprobs = [req.logprob.token_ids_logprob for req in reqs]
    return batch


def goes_on_mixed(scheduler: Any) -> bool:
    """Return whether requests of a `decode_batch` may decode beside prompts in their next step."""
    # With the overlap schedule it takes the last token of each for one that is not known yet.
    return not (scheduler.enable_overlap and scheduler.is_mixed_chunk)


def retract(scheduler: Any, req: Req) -> None:
    """Take the KV slots of ``req`` from it: it is to be computed again, but for what is cached."""
    from sglang.srt.managers.schedule_batch import release_req

    release_req(
        req=req,
        remaing_req_count=0,
        server_args=scheduler.server_args,
        req_to_token_pool=scheduler.req_to_token_pool,
        token_to_kv_pool_allocator=scheduler.token_to_kv_pool_allocator,
        tree_cache=scheduler.tree_cache,
        hisparse_coordinator=None,
    )


def abort_running(req: Req, order: AbortReq) -> None:
    """Let ``req``, which decodes, end with its next step because of ``order``."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    req.to_finish = FINISH_ABORT()


def finishing_in_flight(scheduler: Any, batch: ScheduleBatch) -> bool:
    """Return whether SGLang knows that some of ``batch`` end with the step in flight."""
    return False


def reserved_tokens(adder: PrefillAdder) -> tuple[float, float]:
    """Return the KV slots that ``adder`` keeps for requests as they grow, and for those now."""
    return adder.rem_total_token_offset, adder.cur_rem_token_offset


def reserve_tokens(adder: PrefillAdder, total: float) -> None:
    """Let ``adder`` keep ``total`` KV slots for requests as they grow."""
    adder.rem_total_token_offset = total


# ---- the scheduler -----------------------------------------------------------------------------


def use_prefill_adder(adder: type[PrefillAdder]) -> None:
    """Let the scheduler admit requests with ``adder``.

    Later releases ask `Scheduler.get_prefill_adder_class`.
    """
    from sglang.srt.managers import scheduler as upstream

    upstream.PrefillAdder = adder


def ranks(scheduler: Any) -> Any:
    """Return the scheduler's place among the ranks (``tp_rank``, ``tp_size`` and so on)."""
    return scheduler.ps


def device(scheduler: Any) -> tuple[str, int]:
    """Return the scheduler's device, as torch names it, and the number of its GPU."""
    return scheduler.server_args.device, scheduler.ps.gpu_id


def send_abort(scheduler: Any, req: Req, order: AbortReq) -> None:
    """Report that ``req``, which waits, is aborted by ``order``."""
    from sglang.srt.managers.io_struct import AbortReq

    scheduler.ipc_channels.send_to_tokenizer.send_output(AbortReq(rid=req.rid), req)


def receive(scheduler: Any) -> list[Any]:
    """Return the messages that have come since the last call, for a loop of our own."""
    return scheduler.request_receiver.recv_requests() or []


def rest(scheduler: Any) -> None:
    """Do what SGLang does when nothing runs, in a loop of our own."""
    scheduler.on_idle()


def abort_late(scheduler: Any) -> None:
    """Abort the requests that have waited or run too long, before a prefill of our own loop."""
    scheduler._abort_on_waiting_timeout()
    scheduler._abort_on_running_timeout(scheduler.running_batch)


PDMUX_LACKS = ("gpu_id", "tp_size")
"""Attributes that SGLang's start of PD multiplexing reads and that its scheduler does not have."""


@contextmanager
def on_prefill_group() -> Iterator[None]:
    """Let a forward use the second tensor parallel group, that of prefills."""
    from sglang.srt.distributed.parallel_state import set_pdmux_status

    set_pdmux_status(True)
    try:
        yield
    finally:
        set_pdmux_status(False)


def lone_scheduler(server_args: Any) -> Any:
    """Return a scheduler in this process, without the processes around it."""
    from sglang.srt.managers import scheduler as upstream
    from sglang.srt.runtime_context import publish
    from sglang.srt.server_args import PortArgs

    publish(server_args, role="scheduler")
    ports = PortArgs.init_new(server_args)
    return upstream.Scheduler(server_args, ports, 0, 0, 0, 0, 0, 0, None)


# ---- the CPU -----------------------------------------------------------------------------------


def register_cpu_choice(choose: Callable[[Any, Callable[[], Any]], dict[str, Any]]) -> None:
    """Let ``choose`` decide about server arguments on a CPU, before SGLang does.

    It is given the arguments and a function that reads the model's configuration, and returns the
    arguments to set.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def before(server_args: Any) -> None:
        for name, value in choose(server_args, server_args.get_model_config).items():
            setattr(server_args, name, value)

    HookRegistry.register(
        "sglang.srt.server_args.ServerArgs._handle_cpu_backends", before, HookType.BEFORE
    )


def forward_method(module: Any) -> Any:
    """Return what SGLang's ``module`` computes with on this machine; None for what is not one."""
    return getattr(module, "_forward_method", None)
