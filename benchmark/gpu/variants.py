"""The engines that are compared: stock SGLang at its best flags, and this package.

In the order of their worth to the comparison: a short time budget drops the last ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GRAPH_SIZES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Batch sizes whose decode is captured as a CUDA graph; the same for all."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One engine: what it is called with, and the order in which it gets the requests."""

    name: str
    what: str
    flags: dict[str, Any] = field(default_factory=dict)
    depth_first: bool = False
    """Requests arrive in the client's depth-first order instead of shuffled."""

    @property
    def ours(self) -> bool:
        """Whether requests carry the mark of an offline job."""
        return self.flags.get("schedule_policy") == "blendserve"

    @property
    def fused(self) -> bool:
        """Whether mixed steps have one attention kernel."""
        return "blend_flashinfer" in self.flags.values()


def _ours(overlap: str, chunk: int = 2048, split: str = "auto", **flags: Any) -> dict[str, Any]:
    return {
        "schedule_policy": "blendserve",
        "blendserve_overlap": overlap,
        "blendserve_overlap_chunk": chunk,
        "blendserve_overlap_sm": split,
        **flags,
    }


_MIXED = {"enable_mixed_chunk": True}
_PDMUX = {
    "enable_pdmux": True,
    "chunked_prefill_size": -1,
    "disable_overlap_schedule": True,
}

VARIANTS = (
    Variant("blend-chunks", "ours, two lanes, chunks of 2048", _ours("chunks")),
    Variant("dfs-mixed", "stock, depth-first order, mixed chunks", _MIXED, depth_first=True),
    Variant("blend-shared", "ours, two lanes on all SMs", _ours("chunks", split="shared")),
    Variant("dfs", "stock, depth-first order", {}, depth_first=True),
    Variant("blend-layers", "ours, two lanes, prompts whole", _ours("layers")),
    Variant("fcfs", "stock, as they arrive", {}),
    Variant("dfs-pdmux", "stock, repaired, PD multiplexing, depth-first", _PDMUX, depth_first=True),
    Variant("blend-mixed", "ours, one forward of both", {"schedule_policy": "blendserve"}),
    Variant(
        "blend-flashinfer",
        "ours, one forward of both, prompts through SGLang's FlashInfer backend",
        {"schedule_policy": "blendserve", "prefill_attention_backend": "flashinfer"},
    ),
    Variant(
        "blend-fused",
        "ours, one forward of both, one attention kernel in it",
        {"schedule_policy": "blendserve", "prefill_attention_backend": "blend_flashinfer"},
    ),
    Variant(
        "dfs-mixed-2048",
        "stock, depth-first order, mixed chunks of 2048",
        {**_MIXED, "chunked_prefill_size": 2048},
        depth_first=True,
    ),
    Variant("lpm-mixed", "stock, longest prefix first", {**_MIXED, "schedule_policy": "lpm"}),
    Variant("dfs-weight-mixed", "stock, dfs-weight", {**_MIXED, "schedule_policy": "dfs-weight"}),
    Variant("blend-chunks-4096", "ours, chunks of 4096", _ours("chunks", chunk=4096)),
    Variant("blend-chunks-1024", "ours, chunks of 1024", _ours("chunks", chunk=1024)),
    Variant("fcfs-mixed", "stock, as they arrive, mixed chunks", _MIXED),
    # Between mixed steps SGLang's reserve for outputs does not fall: at its default it admits
    # little there. These are the strongest stock settings of the simulation.
    Variant(
        "fcfs-mixed-low",
        "stock, as they arrive, mixed chunks of 512, conservativeness 0.1",
        {**_MIXED, "chunked_prefill_size": 512, "schedule_conservativeness": 0.1},
    ),
    Variant(
        "dfs-mixed-low",
        "stock, depth-first order, mixed chunks, conservativeness 0.1",
        {**_MIXED, "schedule_conservativeness": 0.1},
        depth_first=True,
    ),
)


DEFAULT = [v.name for v in VARIANTS if "prefill_attention_backend" not in v.flags]
"""The variants of a call that names none: others have kernels to compile first."""


def named(names: list[str]) -> list[Variant]:
    """Variants by name, in this order. Raises ValueError naming an unknown one."""
    known = {variant.name: variant for variant in VARIANTS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--variants: unknown {unknown[0]!r}; known: {', '.join(known)}")
    return [known[name] for name in names]


def engine_flags(variant: Variant, device: str, backend: str, kv_slots: int) -> dict[str, Any]:
    """Keywords of ``sglang.Engine`` besides the model's: the same KV cache for every variant."""
    flags: dict[str, Any] = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "random_seed": 1,
        "log_level": "info",
        "grammar_backend": "none",
        "sampling_backend": "pytorch",
        "max_total_tokens": kv_slots,
    }
    if device == "cpu":
        flags |= {
            "device": "cpu",
            "disable_cuda_graph": True,
            "mem_fraction_static": 0.5,
            "chunked_prefill_size": 64,
        }
    else:
        flags |= {
            "dtype": "bfloat16",
            "attention_backend": backend,
            "cuda_graph_bs_decode": list(GRAPH_SIZES),
        }
    flags |= variant.flags
    if device == "cpu":
        flags.pop("prefill_attention_backend", None)
    overlap = variant.flags.get("blendserve_overlap", "off") != "off"
    if overlap:
        flags.pop("chunked_prefill_size", None)
    if device == "cpu" and variant.ours:
        flags["blendserve_device"] = "H200"  # measuring the CPU takes longer than the run
        if overlap:
            flags["blendserve_overlap_chunk"] = 64
    return flags
