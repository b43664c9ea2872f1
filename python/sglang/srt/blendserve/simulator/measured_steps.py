"""Time of one engine step by measured kernel times, of four kinds of engine.

    sequential   stock SGLang: products of all tokens, prefill attention, decode attention in turn
    nanoflow     decode attention of one half of the batch beside all the rest of the other half, at
                 NanoFlow's exchange of rates; the weights are read for each half, and a step for
                 which that does not pay runs as `sequential`
    lanes        two lanes on parts of the SMs: prompts on one, decodes on the other
    ideal        decode attention beside all the rest at no cost: an upper limit, no engine

What the lanes do is `runtime.overlap`: the decode lane multiplies its own tokens, so a step reads
the weights twice. Each lane has its part of the SMs while both are busy, and all of them when the
other is done; of the divisions the best one is taken. A product of m rows on a share of the SMs
takes the time of one with m / share rows on all of them: as much arithmetic for each SM, and the
weights once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from sglang.srt.blendserve.cost.model_times import ModelTimes
from sglang.srt.blendserve.cost.step_seconds import FIXED_STEP_SECONDS
from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.overlap_cost import LANES, NANOFLOW, Exchange, LaneCost
from sglang.srt.blendserve.simulator.step_cost import LeastTimes, StepTime, StepWork

MEASURED_ENGINES = ("sequential", "lanes", "nanoflow", "ideal")
"""Kinds of engine that measured kernel times are put together for."""

_SEQUENTIAL = Exchange(1.0, 1.0)
_IDEAL = Exchange(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class MeasuredSteps:
    """Times of a replica's steps: full-size steps are looked up, and their time is divided."""

    engine: str
    times: ModelTimes
    exchange: Exchange
    """What running both at once costs; of the lanes with decodes that are attention alone."""
    lanes: LaneCost | None
    scale: float
    """Of the replica: contexts and prompts are so many times as long in the full-size step."""
    slowness: float = 1.0
    """Time of kernels in the engine over that of the table."""
    fixed: float = FIXED_STEP_SECONDS

    @classmethod
    def of(
        cls,
        times: ModelTimes,
        device: str,
        engine: str,
        calibration: Calibration | None = None,
        scale: float = 1,
    ) -> MeasuredSteps:
        """Return the steps of ``engine`` on a device by name.

        ``calibration``: of the engine and machine at hand, which has slowness and fixed time of its
        own. Raises ValueError where what overlapping costs on that device was not published.
        """
        slowness, fixed = 1.0, FIXED_STEP_SECONDS
        if calibration is not None and calibration.kernels is not None:
            slowness, fixed = calibration.slowness, calibration.step_overhead
        exchange, lanes = _overlap(engine, device)
        return cls(engine, times, exchange, lanes, scale, slowness, fixed)

    def step(self, work: StepWork) -> StepTime:
        """Return busy and elapsed seconds of the replica's step with this ``work``."""
        tokens = work.prefill_tokens + work.decodes
        if not tokens:
            return StepTime(0.0, 0.0, self.fixed / self.scale)
        times, scale = self.times, self.scale
        # The replica's prompts are shorter: so many of them end in one of its steps.
        sampled = work.sampled / scale
        prefill = times.prefill_attention(work.prefill_tokens, work.prefill_scores * scale)
        decode = times.decode_attention(work.decodes, work.kv_tokens * scale)
        compute = times.body(tokens) + times.head(sampled + work.decodes)
        compute += times.token * tokens + prefill
        if self.lanes is None:
            seconds = self.exchange.together(compute, decode)
            if self.engine == "nanoflow":
                # Half of the tokens are multiplied while the other half attends: in two pieces.
                halves = compute + max(2 * times.body(tokens / 2) - times.body(tokens), 0.0)
                seconds = min(self.exchange.together(halves, decode), compute + decode)
        elif work.prefill_tokens and work.decodes:
            seconds = self._in_lanes(self.lanes, work, sampled, prefill, decode)
        else:
            seconds = compute + decode
        seconds = self.slowness * (seconds + times.fixed) + self.fixed
        busy = self.slowness / scale
        return StepTime(busy * compute, busy * decode, seconds / scale)

    def _in_lanes(
        self, lanes: LaneCost, work: StepWork, sampled: float, prefill: float, decode: float
    ) -> float:
        """Seconds of a step with both prompts and decodes, at the best division."""
        times, prompts, decodes = self.times, work.prefill_tokens, work.decodes
        prompts_alone = self._lane(prompts, sampled, 1.0) + prefill
        decodes_alone = self._lane(decodes, decodes, 1.0) + decode
        # Both lanes load the weights, and there is one memory.
        traffic = 2 * (times.body(1) + times.head(1)) + decode
        best = inf
        for mine, theirs in lanes.divisions():
            used = mine * lanes.kept
            beside = self._lane(prompts, sampled, used) + prefill / used
            crowded = max(lanes.knee / (theirs * lanes.sms), 1.0)
            other = self._lane(decodes, decodes, theirs) + decode * crowded
            other *= lanes.slowed
            if beside <= other:
                seconds = beside + (1 - beside / other) * decodes_alone
            else:
                seconds = other + (1 - other / beside) * prompts_alone
            best = min(best, seconds)
        return max(best, traffic)

    def _lane(self, tokens: float, logits: float, share: float) -> float:
        """Seconds of the products and of norms and so on, on a ``share`` of the SMs."""
        times = self.times
        return times.body(tokens / share) + times.head(logits / share) + times.token * tokens

    def least(self) -> LeastTimes:
        """Return the least seconds of each unit of work."""
        one = self.times.least()
        scale, slow = self.scale, self.slowness
        return LeastTimes(
            prefill_token=slow * one.token / scale,
            prefill_score=slow * one.score,
            decode_token=slow * (one.token + one.logits) / scale,
            sample_token=slow * one.logits / scale**2,
            kv_compute=0.0,
            kv_read=slow * one.kv_token,
            weights=0.0,
        )

    def overlapped(self, compute: float, memory: float) -> float:
        """Return the least seconds that so much work of both kinds takes."""
        return self.exchange.together(compute, memory)


def _overlap(engine: str, device: str) -> tuple[Exchange, LaneCost | None]:
    """What an engine's overlap costs. Raises ValueError where that was not published."""
    if engine in ("sequential", "ideal"):
        return (_SEQUENTIAL if engine == "sequential" else _IDEAL), None
    published: dict[str, Exchange] | dict[str, LaneCost]
    published = NANOFLOW if engine == "nanoflow" else LANES
    cost = published.get(device)
    if cost is None:
        raise ValueError(
            f"--engine {engine}: what it costs on {device} to overlap is not published; it is on "
            f"{', '.join(published)}. Take --engine sequential, or ideal for an upper limit"
        )
    if isinstance(cost, Exchange):
        return cost, None
    return cost.exchange(), cost
