"""The grammar backend that the policy takes where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sglang.srt.blendserve.runtime.cpu import defaults


def resolved(model: Path, **given: Any) -> Any:
    """Return SGLang's settings as its server and its `Engine` resolve them."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.entrypoints.engine import Engine

    from sglang.srt.blendserve.runtime.compat.server_args import release

    args = Engine.server_args_class(model_path=str(model), schedule_policy="blendserve", **given)
    release.resolve(args)
    return release.view(args)


@pytest.mark.parametrize(
    ("given", "backend"),
    [
        ({}, "llguidance"),
        ({"grammar_backend": "none"}, "none"),
        ({"grammar_backend": "xgrammar"}, "xgrammar"),
    ],
)
def test_a_cpu_takes_llguidance_unless_told_otherwise(
    tiny_model: Path, given: dict[str, Any], backend: str
) -> None:
    assert resolved(tiny_model, device="cpu", **given).grammar_backend == backend


@pytest.mark.parametrize(
    ("device", "gpu", "backend"),
    [("cpu", True, "llguidance"), (None, False, "llguidance"), (None, True, None),
     ("cuda", True, None)],
)  # fmt: skip
def test_only_a_cpu_does(
    monkeypatch: pytest.MonkeyPatch, device: str | None, gpu: bool, backend: str | None
) -> None:
    monkeypatch.setattr(defaults, "has_accelerator", lambda: gpu)
    assert defaults.grammar_backend(device) == backend
