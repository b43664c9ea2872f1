"""Ordinary memory in place of pinned memory, as a plugin of SGLang.

SGLang's LoRA layers pin what they copy to a GPU, which fails where there is no CUDA driver. The
tests of LoRA on a CPU load this plugin into every process of their engines, stock ones too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = "unpinned"


def register() -> None:
    """Make torch ignore ``pin_memory``; SGLang calls this in every process."""
    import torch

    for name in ("tensor", "empty", "zeros", "ones"):
        setattr(torch, name, _without_pinning(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda tensor, *_: tensor


def _without_pinning(create: Any) -> Any:
    def plain(*args: Any, pin_memory: bool = False, **options: Any) -> Any:
        return create(*args, **options)

    return plain


def declare(folder: Path) -> dict[str, str]:
    """Declare the plugin in ``folder``; returns the environment of processes that load it."""
    info = folder / f"{NAME}-0.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.0.0\n")
    (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{NAME} = {NAME}:register\n")
    return {"PYTHONPATH": f"{folder}:{Path(__file__).parent}"}
