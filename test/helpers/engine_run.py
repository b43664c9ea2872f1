"""Run one engine over one set of requests in a process of its own, and print what came out.

    python engine_run.py '{"engine": {...}, "requests": [[prompt_ids, sampling_params], ...]}'

A process of its own, because SGLang patches its classes once per process and its engines leave
threads behind.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "dtype": "float32",
    "log_level": "error",
    "sleep_on_idle": True,
}
"""What an engine of these scripts is started with, unless its order says otherwise."""


def marked(job: str, total: int, index: int) -> str:
    """Return the id of an offline request; only the engine's own process can make one."""
    from sglang.srt.blendserve.job_ids import make_rid

    return make_rid(job, total, index)


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Generate, then report answers and the scheduler's state."""
    import sglang

    engine = sglang.Engine(**OPTIONS | order["engine"])
    call = dict(order.get("call", {}))
    if "rid" in call:
        call["rid"] = [rid if isinstance(rid, str) else marked(*rid) for rid in call["rid"]]
    try:
        answers = engine.generate(
            input_ids=[prompt for prompt, _ in order["requests"]],
            sampling_params=[parameters for _, parameters in order["requests"]],
            **call,
        )
        state = engine.get_server_info()["internal_states"]
    finally:
        engine.shutdown()
    return {
        "answers": [answer["output_ids"] for answer in answers],
        "cached_tokens": sum(answer["meta_info"]["cached_tokens"] for answer in answers),
        "retractions": sum(answer["meta_info"]["num_retractions"] for answer in answers),
        "logprobs": [answer["meta_info"].get("output_token_logprobs") for answer in answers],
        "state": [s.get("blendserve") for s in state],
    }


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(json.dumps(main(json.loads(source.read_text()))))
