"""Time model steps on the CPU under torch_native and under blend_cpu, side by side in one run.

    python benchmark/cpu_kernels.py --json benchmark/results/cpu_kernels.json
    python benchmark/cpu_kernels.py --profile --cases "decode 1"

Each backend has a process of its own with the model loaded; they take turns, so that a change of
the machine's load meets all of them. A step is what SGLang's scheduler asks for: batch metadata,
the model's forward pass and sampling; the scheduler's own work is not in it. The KV cache is filled
with random numbers and every sequence has its own, so prefixes cost nothing to set up and are
really read. Run it alone on the machine: kernels wait for their slowest thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from array import array
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm, trange

Sequences = list[tuple[int, int]]
"""(prefix, new tokens) of each sequence of a step."""

CASES: dict[str, Sequences] = {
    "decode 1": [(511, 1)],
    "decode 16": [(511, 1)] * 16,
    "decode 48": [(511, 1)] * 48,
    "mixed 48 + 128": [(511, 1)] * 48 + [(0, 128)],
    "prefill 2048": [(0, 2048)],
}
VARIANTS = {
    "torch_native": ("torch_native", "1"),
    "attention": ("blend_cpu", "0"),  # blend_cpu with SGLang's own linear layers, norms, ...
    "blend_cpu": ("blend_cpu", "1"),
}
RATIOS = (
    ("decode 48", "blend_cpu", "decode 1", "blend_cpu"),
    ("decode 48", "torch_native", "decode 48", "blend_cpu"),
    ("decode 16", "torch_native", "decode 16", "blend_cpu"),
    ("decode 1", "torch_native", "decode 1", "blend_cpu"),
    ("decode 1", "torch_native", "decode 1", "attention"),
    ("prefill 2048", "torch_native", "prefill 2048", "blend_cpu"),
    ("mixed 48 + 128", "blend_cpu", "decode 48", "blend_cpu"),
    ("decode 48", "blend_cpu", "decode 1", "torch_native"),
)
PARTS = {
    "LinearBase": "linear layers",
    "LogitsProcessor": "logits",
    "RadixAttention": "attention and KV writes",
    "RMSNorm": "norms",
    "RotaryEmbedding": "rotary embedding",
    "SiluAndMul": "activation",
}


class Worker:
    """A model under one attention backend, in a process of its own."""

    def __init__(self, model: str, variant: str, dtype: str) -> None:
        backend, ops = VARIANTS[variant]
        os.environ.update(BLENDSERVE_CPU_OPS=ops)
        from sglang.srt.blendserve.runtime.cpu.defaults import apply_environment

        apply_environment()
        import torch
        from sglang.benchmark import one_batch
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.server_args import PortArgs, ServerArgs

        args = ServerArgs(
            model_path=model, device="cpu", attention_backend=backend, sampling_backend="pytorch",
            grammar_backend="none", disable_cuda_graph=True, max_total_tokens=30_000, dtype=dtype,
            max_running_requests=64, log_level="error",
        )  # fmt: skip
        self._steps = one_batch
        self._wrapper, _ = one_batch.load_model(args, PortArgs.init_new(args), 0, 0)
        self.runner = self._wrapper.torch_runner
        pool = self.runner.token_to_kv_pool
        for buffer in (*pool.k_buffer, *pool.v_buffer):
            buffer.normal_()
        self.threads = torch.get_num_threads()

    def requests(self, sequences: Sequences) -> list[Any]:
        """Requests whose prefixes are in the KV cache already."""
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        self._wrapper.clear()
        requests = []
        for index, (prefix, new) in enumerate(sequences):
            tokens = array("q", [(7919 * (index + 1) * i) % 40_000 for i in range(prefix + new)])
            parameters = SamplingParams(temperature=0, max_new_tokens=64)
            parameters.normalize(None)
            request = Req(str(index), "", tokens, parameters)
            request.full_untruncated_fill_ids = tokens
            request.logprob_start_len = -1
            if prefix:
                request.prefix_indices = self.runner.token_to_kv_pool_allocator.alloc(prefix)
            request.set_extend_range(prefix, prefix + new)
            requests.append(request)
        return requests

    def measure(self, case: str, steps: int) -> list[float]:
        """Return the seconds of each of ``steps`` steps, after one that is not counted."""
        sequences, times = CASES[case], []
        decoding = case.startswith("decode")
        batch = tokens = None
        for _ in range(steps + 1):
            if not decoding or batch is None:
                requests = self.requests(sequences)
            began = time.perf_counter()
            if decoding and batch is not None:
                tokens, _ = self._steps.decode(tokens, batch, self.runner)
            else:
                tokens, _, batch = self._steps.extend(requests, self.runner)
            times.append(time.perf_counter() - began)
        return times[1:]

    def profile(self, case: str, steps: int) -> dict[str, float]:
        """Return the milliseconds of a step by part, from hooks around the model's modules."""
        spent = dict.fromkeys(PARTS.values(), 0.0)
        handles = [h for m in self.runner.model.modules() for h in _hooks(m, spent)]
        total = sum(self.measure(case, steps)) * 1e3 / steps
        for handle in handles:
            handle.remove()
        count = steps + 1  # the hooks saw the uncounted step too
        spent = {part: seconds * 1e3 / count for part, seconds in spent.items()}
        rest = total - sum(spent.values())
        return {**spent, "the rest (Python, sampling)": rest, "all of it": total}


def _hooks(module: Any, spent: dict[str, float]) -> list[Any]:
    names = {base.__name__ for base in type(module).__mro__}
    parts = (part for name, part in PARTS.items() if name in names)
    return [handle for part in parts for handle in _around(module, spent, part)]


def _around(module: Any, spent: dict[str, float], part: str) -> list[Any]:
    began: list[float] = []

    def after(*_: Any) -> None:
        spent[part] += time.perf_counter() - began.pop()

    before = module.register_forward_pre_hook(lambda *_: began.append(time.perf_counter()))
    return [before, module.register_forward_hook(after)]


def serve(pipe: Connection, model: str, variant: str, dtype: str) -> None:
    """Answer the parent's calls until it ends."""
    worker = Worker(model, variant, dtype)
    pipe.send(worker.threads)
    while True:
        try:
            method, *arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(worker, method)(*arguments))


def ask(pipe: Connection, *call: Any) -> Any:
    """Call a worker's method and wait for what it returns."""
    pipe.send(call)
    return pipe.recv()


def summary(rounds: list[float]) -> dict[str, float]:
    """Median and spread of what the rounds gave."""
    return {"median": statistics.median(rounds), "least": min(rounds), "most": max(rounds)}


def main() -> None:
    """Measure all cases under all variants; print and optionally write them."""
    models = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sglang-blendserve"
    default = Path(os.environ.get("BLENDSERVE_MODELS", models / "models")) / "SmolLM2-135M-Instruct"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", default=str(default))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="decode steps a round (default 5)")
    parser.add_argument("--profile", action="store_true", help="where a step spends its time")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()

    os.environ.update(OMP_NUM_THREADS=str(args.threads), SGLANG_USE_CPU_ENGINE="1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for variant in tqdm(args.variants, unit="engine", desc="loading"):
        pipes[variant], theirs = context.Pipe()
        target = (theirs, args.model_path, variant, args.dtype)
        context.Process(target=serve, args=target, daemon=True).start()
        theirs.close()  # else the end of a worker that fails would not be heard of
        pipes[variant].recv()
    load = os.getloadavg()[0]
    if args.profile:
        for case in args.cases:
            for variant, pipe in pipes.items():
                print(f"\n{case}, {variant}: milliseconds of a step")
                for part, ms in ask(pipe, "profile", case, 20).items():
                    print(f"  {part:28}{ms:8.2f}")
        return

    times: dict[str, dict[str, list[float]]] = {c: {v: [] for v in pipes} for c in args.cases}
    for round_ in trange(args.rounds, unit="round", desc="measuring"):
        for case in args.cases:
            for variant in list(pipes)[:: 1 if round_ % 2 == 0 else -1]:
                steps = args.steps if case.startswith("decode") else 1
                measured = ask(pipes[variant], "measure", case, steps)
                times[case][variant].append(statistics.median(measured) * 1e3)
    ratios = {}
    for a, x, b, y in RATIOS:
        if a in times and b in times and x in pipes and y in pipes:
            pairs = zip(times[a][x], times[b][y], strict=True)
            ratios[f"{a} {x} / {b} {y}"] = summary([p / q for p, q in pairs])
    result = {
        "model": Path(args.model_path).name,
        "dtype": args.dtype,
        "machine": {"processor": _processor(), "threads": args.threads, "load before": load},
        "milliseconds": {c: {v: summary(t) for v, t in by.items()} for c, by in times.items()},
        "ratios": ratios,
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


if __name__ == "__main__":
    main()
