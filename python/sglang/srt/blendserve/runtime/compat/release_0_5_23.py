"""The seams of SGLang 0.5.23."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
    return int(req.prefix_len)


def has_uncached_chunk(req: Req) -> bool:
    """Return whether a chunk of ``req`` was computed since it was last put into the cache."""
    return bool(req.extend_end > req.prefix_len)


def holds_kv(req: Req) -> bool:
    """Return whether ``req`` has a row of KV slots."""
    return bool(req.kv.holds_kv)


def namespace(keyed: Req | RadixKey) -> str:
    """Return what keeps the prompt of a request, or the key of a node, apart from others."""
    space, salt = keyed.extra_key or "", keyed.cache_salt
    return f"{space}\0{salt}" if salt else space


# ---- the prefix cache --------------------------------------------------------------------------


def radix_key(req: Req) -> RadixKey:
    """Return the key under which SGLang caches the tokens of ``req``."""
    from sglang.srt.mem_cache.radix_cache import RadixKey

    tokens = req.origin_input_ids
    if req.output_ids:  # it was retracted
        tokens = tokens + req.output_ids
    return RadixKey(tokens, req.extra_key, cache_salt=req.cache_salt)


def child_space(key: RadixKey) -> Any:
    """Return what stands before the tokens in a child's key; None if nothing does."""
    return key.extra_key if key.cache_salt is None else (key.extra_key, key.cache_salt)


def matched_tokens(cache: Any, req: Req) -> int:
    """Return how many tokens of ``req`` one of SGLang's own caches holds."""
    from sglang.srt.mem_cache.common import match_kv_cache

    return int(match_kv_cache(req, cache).device_prefix_len)


def frees_at_once(allocator: Any) -> bool:
    """Return whether slots are free again as soon as they are given back."""
    return allocator.free_group is None


def record_removed(cache: RadixCache, node: TreeNode) -> None:
    """Tell those who follow the cache's events that ``node`` is gone."""
    cache.kv_events.record_remove(node)


def own_caches(context: TreeCacheBuildContext) -> tuple[tuple[bool, str], ...]:
    """Return for each reason to use a cache of SGLang's own whether it is there."""
    from sglang.srt.runtime_context import get_memory, get_serving

    memory = get_memory()
    return (
        (context.is_hybrid_swa, "sliding-window attention"),
        (context.is_hybrid_ssm, "state-space layers"),
        (context.enable_hierarchical_cache, "--enable-hierarchical-cache"),
        (context.disable_radix_cache, "--disable-radix-cache"),
        (memory.enable_lmcache, "--enable-lmcache"),
        (memory.enable_flexkv, "--enable-flexkv"),
        (
            memory.enable_unified_cache_external_linker,
            "--enable-unified-cache-external-linker",
        ),
        (memory.enable_session_radix_cache, "--enable-session-radix-cache"),
        (memory.radix_eviction_policy == "tlru", "--radix-eviction-policy tlru"),
        (get_serving().enable_streaming_session, "--enable-streaming-session"),
    )


class EndedRequests(RadixCache):
    """Asks the prefix cache how much to keep of a request that has ended.

    To stand before SGLang's cache among the bases of a class that has ``tokens_to_keep`` and
    ``drop_behind``.
    """

    _too_much: tuple[Req, int] | None = None
    """The request that is being released, of which more is cached than so many tokens to keep."""

    def checkpoint(self, req: Req, *, up_to: int, **kwargs: Any) -> None:
        """Cache of ``req``, once it has ended, no more than is worth its room; else as SGLang."""
        # What is not cached here is freed by SGLang right after.
        keep = self.tokens_to_keep(req, up_to) if req.finished() else None
        if keep is None or keep > req.kv.cache_protected_len:
            super().checkpoint(req, up_to=up_to if keep is None else keep, **kwargs)
        else:
            self._too_much = (req, keep)

    def on_release(self, req: Req, *, checkpointed: bool) -> None:
        """Remove what ``req`` leaves in the cache beyond what is worth its room."""
        super().on_release(req, checkpointed=checkpointed)
        too_much, self._too_much = self._too_much, None
        if too_much is not None and too_much[0] is req:
            self.drop_behind(req.last_node, req.kv.cache_protected_len, too_much[1])


# ---- batches -----------------------------------------------------------------------------------


def leave_out(batch: ScheduleBatch, reqs: Sequence[Req]) -> None:
    """Take ``reqs``, and those that have ended, out of ``batch``."""
    batch.filter_batch(reqs_to_exclude=[*reqs])


def decode_batch(scheduler: Any, reqs: Sequence[Req]) -> ScheduleBatch:
    """Return a batch of ``reqs``, in no other one now, that go on with their last known token."""
    batch: ScheduleBatch = scheduler._build_hisparse_decode_batch([*reqs])
    batch.multimodal_inputs = [req.multimodal_inputs for req in reqs]
    if batch.return_logprob:
        batch.token_ids_logprobs = [req.logprob.token_ids_logprob for req in reqs]
    return batch


def goes_on_mixed(scheduler: Any) -> bool:
    """Return whether requests of a `decode_batch` may decode beside prompts in their next step."""
    return True


def retract(scheduler: Any, req: Req) -> None:
    """Take the KV slots of ``req`` from it: it is to be computed again, but for what is cached."""
    from sglang.srt.managers.schedule_batch import release_req

    release_req(
        req=req,
        remaing_req_count=0,
        req_to_token_pool=scheduler.req_to_token_pool,
        token_to_kv_pool_allocator=scheduler.token_to_kv_pool_allocator,
        tree_cache=scheduler.tree_cache,
        hisparse_coordinator=None,
    )


def abort_running(req: Req, order: AbortReq) -> None:
    """Let ``req``, which decodes, end with its next step because of ``order``."""
    from http import HTTPStatus

    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    message = order.abort_message
    late = (message, HTTPStatus.SERVICE_UNAVAILABLE) if message else ()
    req.to_finish = FINISH_ABORT(*late)


def finishing_in_flight(scheduler: Any, batch: ScheduleBatch) -> bool:
    """Return whether SGLang knows that some of ``batch`` end with the step in flight."""
    return bool(scheduler._reqs_finishing_inflight(batch))


def reserved_tokens(adder: PrefillAdder) -> tuple[float, float]:
    """Return the KV slots that ``adder`` keeps for requests as they grow, and for those now."""
    budget = adder.memory_budget
    return budget.total_offset, budget.current_offset


def reserve_tokens(adder: PrefillAdder, total: float) -> None:
    """Let ``adder`` keep ``total`` KV slots for requests as they grow."""
    adder.memory_budget.total_offset = total


# ---- the scheduler -----------------------------------------------------------------------------


def use_prefill_adder(adder: type[PrefillAdder]) -> None:
    """Nothing: the scheduler asks `Scheduler.get_prefill_adder_class`."""


def ranks(scheduler: Any) -> Any:
    """Return the scheduler's place among the ranks (``tp_rank``, ``tp_size`` and so on)."""
    from sglang.srt.runtime_context import get_parallel

    return get_parallel()


def device(scheduler: Any) -> tuple[str, int]:
    """Return the scheduler's device, as torch names it, and the number of its GPU."""
    from sglang.srt.runtime_context import get_device

    return get_device().device, get_device().gpu_id


def send_abort(scheduler: Any, req: Req, order: AbortReq) -> None:
    """Report that ``req``, which waits, is aborted by ``order``."""
    from sglang.srt.managers.scheduler import _make_abort_req

    scheduler._release_aborted_request(req)
    report = _make_abort_req(req, finished_reason=order.finished_reason)
    scheduler.send_abort_output(report, req)


def receive(scheduler: Any) -> list[Any]:
    """Return the messages that have come since the last call, for a loop of our own.

    With them come SGLang's orders to abort what has waited or run too long.
    """
    place = ranks(scheduler)
    first = place.pp_rank == place.attn_tp_rank == place.attn_cp_rank == 0
    late = scheduler._poll_timeout_aborts() if first else []
    return scheduler.request_receiver.recv_requests(local_reqs=late) or []


def rest(scheduler: Any) -> None:
    """Do what SGLang does when nothing runs, in a loop of our own."""
    scheduler._sched_idled = True  # the next step is then no measure of the pace of decodes
    scheduler.on_idle()


def abort_late(scheduler: Any) -> None:
    """Nothing: see `receive`."""


PDMUX_LACKS: tuple[str, ...] = ()
"""Attributes that SGLang's start of PD multiplexing reads and that its scheduler does not have."""


def on_prefill_group() -> AbstractContextManager[None]:
    """Let a forward use the second tensor parallel group, that of prefills."""
    from sglang.srt.distributed.parallel_state import pdmux_prefill_tp_group

    group: AbstractContextManager[None] = pdmux_prefill_tp_group()
    return group


def lone_scheduler(server_args: Any) -> Any:
    """Return a scheduler in this process, without the processes around it."""
    from sglang.srt.managers import scheduler as upstream
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import PortArgs

    server_args.resolve_once()
    publish(server_args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    return upstream.Scheduler(server_args, PortArgs.init_new(server_args))


# ---- the CPU -----------------------------------------------------------------------------------


def register_cpu_choice(choose: Callable[[Any, Callable[[], Any]], dict[str, Any]]) -> None:
    """Let ``choose`` decide about server arguments on a CPU, before SGLang does.

    It is given the arguments and a function that reads the model's configuration, and returns the
    arguments to set.
    """
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    @register_resolution_hook("handle_cpu_backends")
    def before(server_args: Any, previous: Callable[[Any], None]) -> None:
        from sglang.srt.arg_groups.overrides import model_config_of

        chosen = choose(resolving_view(server_args), lambda: model_config_of(server_args))
        if chosen:
            declare_resolution(server_args, "blendserve", **chosen)
        previous(server_args)


def forward_method(module: Any) -> Any:
    """Return what SGLang's ``module`` computes with on this machine; None for what is not one."""
    from sglang.kernels.fused_op import BaseFusedOp

    if not isinstance(module, BaseFusedOp):
        return None
    return module._forward_method or module._resolve_forward_method()  # else at its first call
