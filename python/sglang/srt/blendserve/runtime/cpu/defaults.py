"""What SGLang needs to run on a machine without a GPU, in one place.

The ``run`` command applies this by itself. For ``launch_server`` or `sglang.Engine`, set
`ENVIRONMENT` before sglang is imported and give the flags of `server_flags`:

    export SGLANG_USE_CPU_ENGINE=1 TORCHDYNAMO_DISABLE=1 SGLANG_NCCL_SO_PATH=none OMP_NUM_THREADS=1
    python -m sglang.launch_server --model-path M --schedule-policy blendserve --device cpu \\
        --sampling-backend pytorch --grammar-backend llguidance --sleep-on-idle \\
        --cuda-graph-backend-decode disabled --cuda-graph-backend-prefill disabled \\
        --max-total-tokens 65536

The attention backend is chosen by the plugin (`runtime.cpu.attention`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path

ENVIRONMENT = {
    # Read when sglang is imported: take the platform "cpu" and not the first GPU.
    "SGLANG_USE_CPU_ENGINE": "1",
    # SGLang compiles a few small functions (repetition penalties) on first use. Here that takes
    # 40 seconds and a C++ compiler, and a scheduler that finds none ends.
    "TORCHDYNAMO_DISABLE": "1",
    # torch brings the NCCL library along, and a tensor parallel rank that finds it takes its
    # device for a GPU and ends. No such file: the ranks use torch's gloo.
    "SGLANG_NCCL_SO_PATH": "none",
}

MAX_TOTAL_TOKENS = 65_536
"""Most tokens in the KV cache. SGLang would take nearly all of the machine's memory for it."""

_MEMORY_SHARE = 0.25
"""Share of the free memory that the KV cache may take."""


def has_accelerator() -> bool:
    """Whether torch sees a GPU (imports torch)."""
    import torch

    return torch.cuda.is_available() or torch.accelerator.is_available()


def apply_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables of `ENVIRONMENT`, and leave a core to SGLang's other processes.

    Call it before sglang is imported. Variables that are set already stay as they are.
    """
    for name, value in ENVIRONMENT.items():
        environ.setdefault(name, value)
    # Matrix products wait for their slowest thread, so one more thread than free cores makes
    # them several times slower; tokenizer and detokenizer need a core themselves.
    cores = len(os.sched_getaffinity(0))
    environ.setdefault("OMP_NUM_THREADS", str(max(1, cores - 1)))


def server_flags(model_path: str, given: Iterable[str] = ()) -> list[str]:
    """Return the flags for SGLang's server, without those that ``given`` sets already.

    Args:
        model_path: the model, to size the KV cache (a local folder; else a fixed size).
        given: the command line so far (``--flag``, ``--flag=value``).
    """
    defaults = {
        "--device": "cpu",
        "--sampling-backend": "pytorch",
        # SGLang's default, xgrammar, ends the scheduler here: it pins memory, which needs CUDA.
        "--grammar-backend": "llguidance",
        "--max-total-tokens": str(_pool_tokens(model_path)),
        "--cuda-graph-backend-decode": "disabled",
        "--cuda-graph-backend-prefill": "disabled",
    }
    set_already = {flag.partition("=")[0] for flag in given}
    # A scheduler without work would spin on a core that the tokenizer needs.
    flags = [] if "--sleep-on-idle" in set_already else ["--sleep-on-idle"]
    for flag, value in defaults.items():
        if flag not in set_already:
            flags += [flag, value]
    return flags


def _pool_tokens(model_path: str) -> int:
    import psutil

    from sglang.srt.blendserve.cost.model_spec import ModelSpec

    if not (Path(model_path) / "config.json").is_file():
        return MAX_TOTAL_TOKENS  # a name on a hub; its config is not here yet
    spec = ModelSpec.from_folder(model_path)
    fitting = _MEMORY_SHARE * psutil.virtual_memory().available / spec.kv_bytes_per_token
    return max(1024, min(MAX_TOTAL_TOKENS, int(fitting)))
