"""SGLang's scheduler, radix cache and policies over a device that only keeps time.

    python -m sglang.srt.blendserve.simulator.full_worker ORDER.npz OUT.json

A process of its own, because SGLang patches its classes once per process. The scheduler is the real
one, with the plugin loaded; its event loop is driven here without the network. The device takes the
place of the model worker's forward pass: it computes nothing, advances a virtual clock by the step
cost, and returns each request's end token at its true length. True lengths are in the device alone.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.simulator.arrivals import END_TOKEN, Arrivals, watch_retractions
from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.fast import Totals
from sglang.srt.blendserve.simulator.longest_jobs import LongestJobs
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions
from sglang.srt.blendserve.simulator.step_cost import StepModel, StepWork
from sglang.srt.blendserve.simulator.virtual_plan import plan_in_virtual_time
from sglang.srt.blendserve.simulator.window_arrivals import WindowArrivals

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

_ANY_TOKEN = 5
_SGLANG_CLIP, _SGLANG_DECAY, _SGLANG_RETRACT = 4096, 600, 20
_IDLE_STEPS = 10_000
_REPORT = 200
"""Requests that end between two lines of progress."""

_QUEUE = 256
"""Requests that wait in SGLang's queue at once where it takes them in their order of arrival. It
matches the prefixes of all that wait in every step; more of them are only let in if it ever comes
to the end of so many."""
_IN_ORDER = ("fcfs",)
_SHORT_QUEUE = 16
"""Requests that wait in SGLang's queue at once where the order depends on what has ended."""


class Device:
    """Keeps time and the true output lengths."""

    def __init__(self, cost: StepModel, lengths: dict[str, int]) -> None:
        """``lengths``: true output tokens by request id."""
        self.cost = cost
        self._lengths = lengths
        self._begun: set[str] = set()
        self.totals = Totals()

    def forward_batch_generation(self, batch: ScheduleBatch, **_: Any) -> Any:
        """In place of the model: end tokens at the true lengths, and the time the step takes."""
        import torch
        from sglang.srt.managers.utils import GenerationBatchResult

        work = self.work(batch)
        time_ = self.cost.step(work)
        totals = self.totals
        totals.seconds += time_.seconds
        totals.compute += time_.compute
        totals.memory += time_.memory
        totals.steps += 1
        totals.kv_tokens += work.kv_tokens
        tokens = [
            END_TOKEN if len(r.output_ids) + 1 >= self._lengths[r.rid] else _ANY_TOKEN
            for r in batch.reqs
        ]
        return GenerationBatchResult(next_token_ids=torch.tensor(tokens, dtype=torch.int64))

    def work(self, batch: ScheduleBatch) -> StepWork:
        """What the batch would compute."""
        if batch.forward_mode.is_decode():
            kv = sum(len(r.origin_input_ids) + len(r.output_ids) for r in batch.reqs)
            return StepWork(0, 0.0, 0, len(batch.reqs), kv)
        running = set() if batch.decoding_reqs is None else {r.rid for r in batch.decoding_reqs}
        prefill, scores, sampled, decodes, kv = 0, 0.0, 0, 0, 0
        lengths = zip(batch.reqs, batch.extend_lens, batch.prefix_lens, strict=True)
        for request, extend, prefix in lengths:
            if request.rid in running:
                decodes += 1
                kv += prefix + extend
                continue
            prefill += extend
            scores += extend * (prefix + extend / 2)
            whole = len(request.origin_input_ids) + len(request.output_ids)
            sampled += prefix + extend >= whole
            self._count_prefill(request, extend)
        return StepWork(prefill, scores, sampled, decodes, kv)

    def _count_prefill(self, request: Any, tokens: int) -> None:
        if not request.output_ids:
            self.totals.prefilled += tokens


def model_folder(folder: Path, context: int) -> Path:
    """A one-layer model with a KV cache of a few bytes a token, for its config alone."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 32_000,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "eos_token_id": END_TOKEN,
        "bos_token_id": 1,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def use_replica_constants(scale: float) -> None:
    """Divide SGLang's constants that are lengths or numbers of steps by the replica's scale."""
    os.environ["SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION"] = str(round(_SGLANG_CLIP / scale))
    os.environ["SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS"] = str(max(round(_SGLANG_DECAY / scale), 1))
    os.environ["SGLANG_RETRACT_DECODE_STEPS"] = str(max(round(_SGLANG_RETRACT / scale), 1))


def make_scheduler(folder: Path, machine: Machine, order: dict[str, Any], device: Device) -> Any:
    """SGLang's scheduler with the plugin loaded and the device in place of its model."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.server_args import ServerArgs

    from sglang.srt.blendserve.runtime.compat import seams
    from sglang.srt.blendserve.runtime.compat.server_args import make

    context = int(order["context"])
    ours = order["policy"] == "blendserve"
    options: dict[str, Any] = {
        "model_path": str(model_folder(folder, context)),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "device": "cpu",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "disable_cuda_graph": True,
        "disable_overlap_schedule": True,
        "log_level": "error",
        "max_total_tokens": machine.kv_slots,
        "max_running_requests": int(order["max_running"]),
        "chunked_prefill_size": int(order["chunk"]),
        "max_prefill_tokens": int(order["chunk"]),
        "enable_mixed_chunk": bool(order["mixed"]),
        "schedule_policy": order["policy"],
        "schedule_conservativeness": float(order.get("conservativeness", 1.0)),
        "random_seed": 0,
    }
    if ours:
        # Any known name: the costs that count are set below.
        pace = order["options"]["pace"]
        options |= {"blendserve_pace": pace, "blendserve_device": "A100-80G"}
    scheduler = seams.lone_scheduler(make(ServerArgs, options))
    scheduler.tp_worker.forward_batch_generation = device.forward_batch_generation
    # Results go nowhere: there is no tokenizer process to send them to.
    type(scheduler.output_streamer).stream_output = lambda *_, **__: None
    return scheduler


def drive(scheduler: Any, arrivals: Arrivals, requests: int) -> float:
    """Run the scheduler's loop until every request has ended; return the seconds it took."""
    ended, idle, reported = 0, 0, 0
    start = time.perf_counter()
    while ended < requests:
        arrivals.feed()
        plan = scheduler.get_next_batch_to_run(
            running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
        )
        scheduler.running_batch = plan.running_batch
        batch = plan.batch_to_run
        if batch:
            reqs = list(batch.reqs)
            result = scheduler.run_batch(batch)
            scheduler.process_batch_result(batch, result)
            for req in reqs:
                if req.finished():
                    arrivals.ended(req)
                    ended += 1
        idle = 0 if batch else idle + 1
        if idle > _IDLE_STEPS:
            raise RuntimeError(f"the scheduler starts none of the {requests - ended} that are left")
        scheduler.last_batch = batch
        if ended - reported >= _REPORT or ended == requests:
            print(ended - reported, flush=True)  # the parent's progress bar
            reported = ended
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Run one order; see the module's docstring."""
    source, target = map(Path, sys.argv[1:3] if argv is None else argv)
    import torch

    data = np.load(source)
    order: dict[str, Any] = json.loads(str(data["order"]))
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    use_replica_constants(order["scale"])
    machine = Machine.build(
        order["model"],
        DeviceSpec(**order["device"]),
        order["engine"],
        ranks=order["ranks"],
        scale=order["scale"],
        calibration=Calibration(**order["calibration"]),
        kv_slots=order["kv_slots"],
        rates=order["rates"],
    )
    rids: list[str] = data["rids"].tolist()
    lengths = dict(zip(rids, data["output_tokens"].tolist(), strict=True))
    prompts = np.split(data["tokens"], np.cumsum(data["prompt_tokens"])[:-1])
    device = Device(machine.steps, lengths)
    with tempfile.TemporaryDirectory() as folder:
        scheduler = make_scheduler(Path(folder), machine, order, device)
        options = BlendOptions.of(**order["options"]) if "options" in order else None
        if options is not None:
            plan_in_virtual_time(scheduler, machine, options)
        most, jobs = (_QUEUE if order["policy"] in _IN_ORDER else 0), None
        if order.get("longest_first"):
            source = data["source"].tolist()
            most, jobs = _SHORT_QUEUE, LongestJobs(source, max(source) + 1, order["scale"])
        limits = data["max_tokens"].tolist()
        told = data["told"].tolist() if "told" in data else None
        if options is not None and options.window:
            arrivals: Arrivals = WindowArrivals(scheduler, rids, prompts, limits, machine, options)
        else:
            arrivals = Arrivals(scheduler, rids, prompts, limits, most, jobs, told)
        retractions = watch_retractions(scheduler, arrivals)
        with torch.no_grad():
            spent = drive(scheduler, arrivals, len(rids))
    totals = device.totals
    totals.retractions = len(retractions)
    fields = {name: getattr(totals, name) for name in Totals.__slots__}
    target.write_text(json.dumps({"totals": fields, "scheduler_seconds": spent}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
