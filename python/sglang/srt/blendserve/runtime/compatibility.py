"""What the policy cannot be combined with, refused at start with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.blendserve.settings import POLICY

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


class UnsupportedCombination(ValueError):
    """A server flag that does not go with ``--schedule-policy blendserve``."""


def check(server_args: ServerArgs) -> None:
    """Raise `UnsupportedCombination` naming the flag, the reason and what to do instead."""
    refusals = (
        (
            server_args.disaggregation_mode != "null",
            "--disaggregation-mode",
            "prefill and decode then run on different machines and nothing is left to blend",
        ),
        (
            server_args.pp_size > 1,
            "--pipeline-parallel-size",
            "each stage sees only a part of the running requests; use --tp-size or --dp-size",
        ),
        (
            server_args.enable_priority_scheduling,
            "--enable-priority-scheduling",
            "the plan decides the order; requests without an offline mark come first anyway",
        ),
        (
            server_args.enable_dp_attention,
            "--enable-dp-attention",
            "its ranks must prefill in the same steps and each would follow its own plan",
        ),
        (
            server_args.speculative_algorithm is not None,
            "--speculative-algorithm",
            "a decode step then yields several tokens, which the pace does not model",
        ),
        (
            server_args.enable_hierarchical_cache,
            "--enable-hierarchical-cache",
            "prompts that come back from host memory are not in the plan's cost",
        ),
        (
            server_args.enable_pdmux and server_args.blendserve.overlap == "off",
            "--enable-pdmux",
            "its loop is replaced under this policy; give --blendserve-overlap layers instead",
        ),
        (
            server_args.disable_radix_cache,
            "--disable-radix-cache",
            "the policy exists to keep prefix sharing, which needs the radix cache",
        ),
    )
    for refused, flag, reason in refusals:
        if refused:
            raise UnsupportedCombination(
                f"--schedule-policy {POLICY} does not work with {flag}: {reason}. "
                f"Leave {flag} out, or choose another --schedule-policy."
            )
