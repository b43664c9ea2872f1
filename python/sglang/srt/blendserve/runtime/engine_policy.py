"""The step policy that suits the settings and the engine that it chooses for."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.blendserve.cost.step_seconds import stock_steps
from sglang.srt.blendserve.policy.full_step import FullSteps
from sglang.srt.blendserve.policy.named import AnyStepPolicy, make_step_policy
from sglang.srt.blendserve.policy.select import StepPolicy
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.overlap.whole_chunks import WholeChunks
from sglang.srt.blendserve.settings import Settings


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """What of an engine decides how its steps are to be paced."""

    device: str
    """torch's device type."""
    mixes: bool
    """Whether prefill and decode share a forward (``--enable-mixed-chunk``)."""
    chunk: int | None
    """Prompt tokens after which a prompt is cut; None where prompts are computed whole."""
    max_prefill_tokens: int
    """Prompt tokens of one prefill at most, where prompts are computed whole."""
    page_size: int
    """KV slots of one page, in tokens."""


def engine_policy(pool: RequestPool, settings: Settings, engine: EngineTraits) -> AnyStepPolicy:
    """Return the step policy over ``pool`` for ``settings`` in ``engine``.

    Raises ValueError for a pace of an unknown name.
    """
    chunk = engine.chunk or engine.max_prefill_tokens
    lanes = settings.overlap != "off"
    if lanes and settings.pace == "auto":
        most = settings.overlap_chunk
        return StepPolicy(
            pool,
            WholeChunks(most),
            FullSteps(pool.cost, stock_steps(pool.cost), pool.kv_slots, most),
            max_tokens=most,
            whole_prompts=engine.chunk is None,
        )
    return make_step_policy(
        pool,
        _automatic(engine) if settings.pace == "auto" else settings.pace,
        max_tokens=chunk,
        # Without mixing, a prefill holds up every decode: do it seldom and in full chunks.
        min_tokens=engine.page_size if engine.mixes or lanes else chunk,
        whole_prompts=engine.chunk is None,
    )


def _automatic(engine: EngineTraits) -> str:
    """The pace of an engine that runs prefill and decode one after the other."""
    # Spreading prefill over the decodes needs both in one forward; on a CPU so few tokens hide
    # the loading of the weights that there is nothing to spread it for.
    return "fixed" if engine.device == "cpu" or not engine.mixes else "marginal"
