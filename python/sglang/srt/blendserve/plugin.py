"""SGLang plugin entry point (group ``sglang.srt.plugins``)."""


def register() -> None:
    """Register the policy, the prefix cache and the scheduler with SGLang; called in every process."""
