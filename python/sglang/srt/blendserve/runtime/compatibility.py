"""What the policy cannot be combined with, refused at start with the reason."""

from __future__ import annotations

from typing import Any

from sglang.srt.blendserve.refusals import Refusal
from sglang.srt.blendserve.runtime.compat.server_args import release
from sglang.srt.blendserve.settings import POLICY, Settings


class UnsupportedCombination(Refusal):
    """A server flag that does not go with ``--schedule-policy blendserve``."""


def require_settings(server_args: Any) -> None:
    """Raise Refusal if ``server_args`` are without the policy's settings.

    They are put on it when it is made or resolved, if SGLang's plugins are loaded by then.
    """
    if not hasattr(server_args, "blendserve"):
        raise Refusal(
            f"These ServerArgs with schedule_policy={POLICY!r} were made before SGLang's "
            "plugins were loaded: call sglang.srt.plugins.load_plugins() first."
        )


def check(fields: Any, settings: Settings) -> None:
    """Check what was given, or what SGLang has made of it.

    Args:
        fields: those of ``ServerArgs``, see ``view`` in `runtime.compat.server_args`.
        settings: of the policy.

    Raises:
        UnsupportedCombination: names the flag, the reason and what to do instead.
    """
    refusals = (
        (
            fields.disaggregation_mode != "null",
            "--disaggregation-mode",
            "prefill and decode then run on different machines and nothing is left to blend",
        ),
        (
            fields.pp_size > 1,
            "--pipeline-parallel-size",
            "each stage sees only a part of the running requests; use --tp-size or --dp-size",
        ),
        (
            fields.enable_priority_scheduling,
            "--enable-priority-scheduling",
            "the plan decides the order; requests without an offline mark come first anyway",
        ),
        (
            release.attends_in_parallel(fields),
            "--enable-dp-attention",
            "its ranks must prefill in the same steps and each would follow its own plan",
        ),
        (
            fields.speculative_algorithm is not None,
            "--speculative-algorithm",
            "a decode step then yields several tokens, which the pace does not model",
        ),
        (
            fields.enable_hierarchical_cache,
            "--enable-hierarchical-cache",
            "prompts that come back from host memory are not in the plan's cost",
        ),
        (
            fields.enable_pdmux and settings.overlap == "off",
            "--enable-pdmux",
            "its loop is replaced under this policy; give --blendserve-overlap layers instead",
        ),
        (
            fields.disable_radix_cache,
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
