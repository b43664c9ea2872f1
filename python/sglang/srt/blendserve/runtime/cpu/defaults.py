"""What SGLang needs to run on a machine without a GPU, in one place.

The ``run`` command applies this by itself. For ``launch_server`` or `sglang.Engine`, set
`ENVIRONMENT` before sglang is imported and give the flags of `server_flags`:

    export SGLANG_USE_CPU_ENGINE=1 TORCHDYNAMO_DISABLE=1 SGLANG_NCCL_SO_PATH=none OMP_NUM_THREADS=1
    python -m sglang.launch_server --model-path M --schedule-policy blendserve --device cpu \\
        --sampling-backend pytorch --grammar-backend llguidance --sleep-on-idle \\
        --disable-overlap-schedule \\
        --cuda-graph-backend-decode disabled --cuda-graph-backend-prefill disabled \\
        --max-total-tokens 65536 --dtype float32

(`--dtype float32` only where the processor has no bf16 products, see `has_bf16_products`.)
The attention backend is chosen by the plugin (`runtime.cpu.attention`), and with the policy the
grammar backend as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path

from sglang.srt.blendserve.cost.model_spec import ModelSpec

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

GRAMMAR_BACKEND = "llguidance"
"""SGLang's default, xgrammar, ends the scheduler on a CPU: it pins memory, which needs CUDA."""

MAX_TOTAL_TOKENS = 65_536
"""Most tokens in the KV cache. SGLang would take nearly all of the machine's memory for it."""

_MEMORY_SHARE = 0.25
"""Share of the free memory that the KV cache may take."""

_FLOAT32_SHARE = 0.5
"""Share of the free memory that the weights may take in float32, where that is the faster."""


def has_accelerator() -> bool:
    """Whether torch sees a GPU (imports torch)."""
    import torch

    return torch.cuda.is_available() or torch.accelerator.is_available()


def grammar_backend(device: str | None) -> str | None:
    """Return the grammar backend for a device of SGLang's; None: SGLang's own choice works.

    Args:
        device: ``--device``; None where it is not given, and the machine's is taken.
    """
    on_cpu = not has_accelerator() if device is None else device == "cpu"
    return GRAMMAR_BACKEND if on_cpu else None


def has_bf16_products() -> bool:
    """Whether this processor multiplies bf16 as such (imports torch).

    An x86 processor with neither AVX512_BF16 nor AMX converts each operand first: a step then
    takes several times as long as in float32. Others are taken to have it.
    """
    import torch

    found = torch.cpu.get_capabilities()
    if found.get("architecture") != "x86_64":
        return True
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


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


def server_flags(model_path: str, given: Iterable[str] = (), *, engines: int = 1) -> list[str]:
    """Return the flags for SGLang's server, without those that ``given`` sets already.

    Args:
        model_path: the model, to size the KV cache and to choose its precision (a local folder;
            else a fixed size, and SGLang's own choice).
        given: the command line so far (``--flag``, ``--flag=value``).
        engines: how many share the machine's memory.
    """
    set_already = {flag.partition("=")[0] for flag in given}
    defaults = {
        "--device": "cpu",
        "--sampling-backend": "pytorch",
        "--grammar-backend": GRAMMAR_BACKEND,
        "--cuda-graph-backend-decode": "disabled",
        "--cuda-graph-backend-prefill": "disabled",
    }
    # A scheduler without work would spin on a core that the tokenizer needs. And nothing runs
    # beside a forward here: the overlap schedule would show each token one step later.
    plain = ("--sleep-on-idle", "--disable-overlap-schedule")
    flags = [flag for flag in plain if flag not in set_already]
    tokens = MAX_TOTAL_TOKENS
    if (Path(model_path) / "config.json").is_file():  # else a name on a hub; it is not here yet
        spec = ModelSpec.from_folder(model_path)
        kv_bytes = spec.kv_bytes_per_token
        free = _free_bytes() // engines
        if "--dtype" not in set_already and _is_faster_in_float32(spec, free):
            defaults["--dtype"] = "float32"
            kv_bytes *= 4 / spec.dtype_bytes
        tokens = max(1024, min(tokens, int(_MEMORY_SHARE * free / kv_bytes)))
    defaults["--max-total-tokens"] = str(tokens)
    for flag, value in defaults.items():
        if flag not in set_already:
            flags += [flag, value]
    return flags


def _is_faster_in_float32(spec: ModelSpec, free_bytes: int) -> bool:
    """Whether a 16-bit model is, on this processor, and its weights fit; a quantised one is not."""
    if spec.dtype_bytes != 2 or spec.weight_bytes < 1.9 * spec.parameters:
        return False
    return 2 * spec.weight_bytes <= _FLOAT32_SHARE * free_bytes and not has_bf16_products()


def _free_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
