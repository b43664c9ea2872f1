"""The workload of a run: a trace of the paper, scaled to what a short run can finish.

KV slots, and the lengths of the long requests that fill them, are divided by ``scale``: as many of
them are in flight as at full size, and a wave of them is over ``scale`` times sooner, or a little
less. The other requests keep their lengths, or there would be too many a second for SGLang's
processes. The model is the whole one, so the weights weigh more in a step than at full size; the
mix is such that the ratio of all compute to all memory traffic, weights included, is that of the
full-size trace on the full KV cache. All of it is stated in the results.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.length_traces import LengthTrace
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.peers import peer_order
from sglang.srt.blendserve.simulator.recipe import Recipe
from sglang.srt.blendserve.simulator.step_cost import Bound, bound
from sglang.srt.blendserve.simulator.workload import Workload, concatenated

_FULL = 40_000
"""Requests of the full-size trace: one of them in some thousand is long."""

_PROBE = 2000
"""Requests from which means are taken."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What a run is scaled down to."""

    model: str
    device: str
    scale: float
    kv_slots: int
    full_kv_slots: int

    @classmethod
    def of(cls, model: str, device: str, scale: float) -> Scale:
        """``scale``: divisor of KV slots and of the long requests' lengths."""
        slots = Machine.build(model, device, "overlap").kv_slots
        return cls(model, device, scale, max(int(slots / scale), 1), slots)

    def machine(self, kv_slots: int, calibration: Calibration) -> Machine:
        """The device with this many KV slots."""
        return Machine.build(
            self.model, self.device, "overlap", calibration=calibration, kv_slots=kv_slots
        )


@dataclass(frozen=True, slots=True)
class Load:
    """One workload, scaled, with what the results say of it."""

    trace: str
    seed: int
    workload: Workload
    scale: Scale
    full_ratio: float
    """Compute to memory traffic, weights included, of the trace at full size; peaks."""

    @classmethod
    def draw(cls, trace: str, scale: Scale, waves: float, seed: int) -> Load:
        """``trace`` (``trace1`` to ``trace4``, or a recipe) with ``waves`` of its long requests.

        Raises ValueError if no number of the other requests gives the trace's ratio of work.
        """
        recipe = Recipe.parse(trace)
        full = recipe.workload(_FULL, seed)
        counts = np.bincount(full.source, minlength=3)
        whole = _work(full, scale, scale.full_kv_slots)
        ratio = whole.compute / whole.memory

        def part(place: int, name: str, count: int) -> Workload:
            drawn = LengthTrace.named(name).draw(count, seed, place)
            # A prompt and an output keep their proportion; the others keep their lengths.
            scaled = drawn.replica(scale.scale) if name == recipe.memory else drawn
            return scaled.with_system_prompts(recipe.system)

        one_wave = scale.kv_slots / _held(part(1, recipe.memory, _PROBE)).mean()
        long = part(1, recipe.memory, max(round(waves * one_wave), 1))
        of_long = _work(long, scale, scale.kv_slots)
        prefixed = counts[2] / counts[0]
        each = [
            _work(part(place, name, _PROBE), scale, scale.kv_slots)
            for place, name in ((0, recipe.compute), (2, recipe.prefix))
        ]
        compute = (each[0].compute + prefixed * each[1].compute) / _PROBE
        memory = (each[0].memory + prefixed * each[1].memory) / _PROBE
        needed = (ratio * of_long.memory - of_long.compute) / (compute - ratio * memory)
        if not (compute > ratio * memory and needed >= 1):
            raise ValueError(
                f"{trace} at scale {scale.scale:g}: no number of {recipe.compute} and "
                f"{recipe.prefix} requests gives {ratio:.2f} times as much compute as memory "
                "traffic; use another --scale"
            )
        parts = [
            part(0, recipe.compute, round(needed)),
            long,
            part(2, recipe.prefix, max(round(needed * prefixed), 1)),
        ]
        workload = concatenated(f"{trace}, scaled", parts, seed, shuffle=True)
        return cls(trace, seed, workload, scale, ratio)

    @classmethod
    def tiny(cls, trace: str, seed: int) -> Load:
        """A few short requests, to see the scripts run; it stands for nothing."""
        scale = Scale(
            "Llama-3.1-8B", "H200", 64.0, 2000, Scale.of("Llama-3.1-8B", "H200", 1).kv_slots
        )
        parts = [
            LengthTrace.named(name).draw(count, seed, place).replica(scale.scale)
            for place, (name, count) in enumerate((("burstgpt", 12), ("video", 3), ("mmlu", 8)))
        ]
        return cls(trace, seed, concatenated("tiny", parts, seed, shuffle=True), scale, 0.0)

    def bounds(self, calibration: Calibration) -> dict[str, float]:
        """The least time any schedule could take on the scaled machine (`step_cost.bound`)."""
        machine = self.scale.machine(self.scale.kv_slots, calibration)
        least = bound(self.workload, machine.steps, self.scale.kv_slots)
        return {
            "compute_seconds": least.compute,
            "memory_seconds": least.memory,
            "optimum_seconds": least.seconds,
        }

    def describe(self) -> dict[str, Any]:
        """For the results."""
        w = self.workload
        held = _held(w)
        work = _work(w, self.scale, self.scale.kv_slots)
        by_source = {}
        for number, name in enumerate(w.sources):
            of = w.source == number
            by_source[name] = {
                "requests": int(of.sum()),
                "mean_prompt": float(w.prompt_tokens[of].mean()),
                "mean_output": float(w.output_tokens[of].mean()),
                "waves": float(held[of].sum() / self.scale.kv_slots),
            }
        return {
            "trace": self.trace,
            "recipe": w.name,
            "seed": self.seed,
            "requests": w.size,
            "tokens": w.tokens,
            "prompt_tokens": int(w.prompt_tokens.sum()),
            "output_tokens": int(w.output_tokens.sum()),
            "longest_output": int(w.output_tokens.max()),
            "sharing": w.sharing,
            "sources": by_source,
            "compute_to_memory": work.compute / work.memory,
            "compute_to_memory_full_size": self.full_ratio,
            "scaling": asdict(self.scale),
        }

    def save(self, path: Path) -> None:
        """For `engine_run`: requests in order of arrival, and the client's depth-first order."""
        prompts = self.workload.prompts()
        order = peer_order("dfs", self.workload, PrefixTree.build(prompts))
        np.savez(
            path,
            tokens=np.concatenate(prompts),
            prompt_tokens=self.workload.prompt_tokens,
            output_tokens=self.workload.output_tokens,
            max_tokens=self.workload.max_tokens,
            depth_first=order,
            about=json.dumps(self.describe()),
        )


GUESS = Calibration(
    gemm_efficiency=0.7,
    attention_efficiency=0.5,
    bandwidth_efficiency=0.8,
    interference=1.0,
    source="a guess, to size a run before anything is measured",
)


def _held(workload: Workload) -> NDArray[np.float64]:
    """(n,) KV tokens that a request holds on average over its life."""
    return np.asarray(workload.prompt_tokens + workload.output_tokens / 2)


def _work(workload: Workload, scale: Scale, kv_slots: int) -> Bound:
    """Compute and memory traffic at the device's peaks."""
    peaks = Calibration(interference=1.0)
    return bound(workload, scale.machine(kv_slots, peaks).steps, kv_slots)
