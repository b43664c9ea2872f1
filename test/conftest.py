"""What tests with a real engine need: the model, and the flags for this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

# Before sglang is imported, here or in a process that a test starts. Without it SGLang looks for
# a GPU; with more threads than free cores its matrix products take several times as long.
HAS_GPU = shutil.which("nvidia-smi") is not None
if not HAS_GPU:
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def model_path() -> Path:
    """Folder of SmolLM2-135M-Instruct; fetched when it is not there yet."""
    from sglang.srt.blendserve.offline.fetch_model import fetch

    return fetch("smollm2")


@pytest.fixture(scope="session")
def cpu_engine_kwargs() -> dict[str, Any]:
    """What `sglang.Engine` needs on a machine without a GPU; without its KV pool, size it yourself.

    Empty on a machine with a GPU.
    """
    if HAS_GPU:
        return {}
    return {
        "device": "cpu",
        "attention_backend": "blend_cpu",
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "disable_cuda_graph": True,
        # An engine that waits for its next test would spin on a core that another one needs.
        "sleep_on_idle": True,
    }
