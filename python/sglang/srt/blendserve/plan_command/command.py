"""Show what a batch file will cost and how it would be scheduled, without running it.

Renders and tokenizes the file as SGLang would, with its own code, builds the resource-aware
prefix tree and prints: requests, tokens, the share of prompt tokens that prefix sharing saves,
predicted compute and memory seconds, their ratio (compute density), the optimum (perfect overlap,
every shared prefix computed once), and the first levels of the tree. Needs no GPU: --device names
the hardware to plan for.

    sglang-blendserve plan -i in.jsonl --model-path M
    sglang-blendserve plan -i in.jsonl --model-path M --device H200 --output-tokens out.jsonl

Output lengths are not known before a run. The default guesses the same length for every request,
which makes times and densities rough; the results of an earlier run make them exact.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec, known_devices, measure_cpu
from sglang.srt.blendserve.cost.measured_cost import measured_cost
from sglang.srt.blendserve.cost.model_config import ConfigError
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.plan.scan_order import Plan, build_plan

if TYPE_CHECKING:
    from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts
    from sglang.srt.blendserve.requests.tokenizing import TokenizedBatch

_GUESS = "256"
"""Output tokens guessed for a request where nothing is said; unproven."""
_KV_FRACTION = 0.9
"""Part of the device memory that weights and KV cache get, where --kv-slots does not say."""
_PICTURES = (".png", ".svg", ".pdf")
"""Suffixes of pictures that can be drawn."""
_TEXT_TOKENS = 24
"""Tokens of a prefix that are decoded to show it."""
_TEXT_WIDTH = 48
"""Characters of a decoded prefix that are shown."""


class PlanError(Exception):
    """The batch cannot be planned; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sglang-blendserve plan``."""
    parser.add_argument(
        "-i",
        "--input",
        required=True,
        metavar="FILE",
        help="batch file: JSON lines, one OpenAI request a line, packed by gzip or not, or a table "
        "(Parquet), a row each; here or at s3://, gs://, hf://, https://; - for standard input",
    )
    parser.add_argument(
        "--model-path",
        required=True,
        metavar="M",
        help="Hugging Face folder of the model, or its name on the hub",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the model's own tokenizer code"
    )
    parser.add_argument("--chat-template", metavar="T", help="as the engine is to be given it")
    parser.add_argument("--tool-call-parser", metavar="P", help="as the engine is to be given it")
    parser.add_argument("--is-embedding", action="store_true", help="the model makes embeddings")
    parser.add_argument(
        "--enable-multimodal", action="store_true", help="as the engine has it, for some models"
    )
    parser.add_argument(
        "--media-root", metavar="FOLDER", help="folder whose files lines may name as images"
    )
    parser.add_argument(
        "--device",
        metavar="D",
        help=f"plan for this device: {', '.join(known_devices())}, or cpu (this "
        "machine, measured). Default: this machine's GPU if it is one of these, "
        "else cpu",
    )
    parser.add_argument(
        "--tp-size",
        type=int,
        default=1,
        metavar="N",
        help="devices that work as one (tensor parallel; default 1)",
    )
    _add_planning(parser)
    _add_output(parser)


def _add_planning(parser: argparse.ArgumentParser) -> None:
    """What the plan is made with."""
    parser.add_argument(
        "--output-tokens",
        default=_GUESS,
        metavar="N|max|FILE",
        help="output length of a request: a guess for all, never above a line's "
        f"max_tokens (default {_GUESS}); max: each line's max_tokens; a results "
        "file of any of these forms: the lengths measured there",
    )
    parser.add_argument(
        "--kv-slots",
        type=int,
        metavar="N",
        help="tokens the KV cache holds (default: 90 %% of device memory less the weights)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    """How the plan is shown."""
    parser.add_argument(
        "--levels", type=int, default=2, metavar="N", help="levels of the tree to show (default 2)"
    )
    parser.add_argument(
        "--children",
        type=int,
        default=8,
        metavar="N",
        help="most children of a node to show, the heaviest (default 8)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--picture", type=Path, metavar="FILE",
                        help="also draw the plan (png, svg or pdf); needs matplotlib")  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Run the command; returns 0, or 1 after saying on standard error what went wrong."""
    from sglang.srt.blendserve.batch_file.types import BatchFileError
    from sglang.srt.blendserve.report.plan_report import report_lines

    try:
        report = _plan(args)
    except (PlanError, ConfigError, BatchFileError, ValueError, OSError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("plan: interrupted", file=sys.stderr)
        return 130
    if args.json:
        json.dump(report, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        print("\n".join(report_lines(report)))
    return 0


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    """Tokenize, plan and describe; what ``--json`` prints."""
    from sglang.srt.blendserve.plan_command.output_lengths import expected_lengths
    from sglang.srt.blendserve.report.plan_report import plan_summary, tree_summary
    from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts

    if args.picture is not None:
        _check_picture(args.picture)
    model = _model(args.model_path, args.trust_remote_code)
    device = _device(args.device).tensor_parallel(args.tp_size)
    cost = measured_cost(model, device)
    kv_slots = args.kv_slots if args.kv_slots is not None else _kv_slots(cost)
    prompts = EnginePrompts.of(args.model_path, _engine_flags(args))
    batch = _tokenize(args.input, prompts)
    if not batch.prompts:
        first = f" The first: {batch.refused[0].message}" if batch.refused else ""
        raise PlanError(f"no line of {args.input} can be planned.{first}")
    lengths = expected_lengths(batch, args.output_tokens, model.context_length)
    plan = build_plan(batch.prompts, lengths.tokens, cost, kv_slots=kv_slots)
    if args.picture is not None:
        _draw(plan, args.picture, model, device)

    def describe(request: int, start: int, end: int) -> str:
        tokens = batch.prompts[request][start : min(end, start + _TEXT_TOKENS)]
        text = " ".join(prompts.tokenizer.decode(tokens.tolist()).split())
        return json.dumps(text[:_TEXT_WIDTH], ensure_ascii=False)

    return {
        **plan_summary(plan),
        "output_tokens_source": lengths.source,
        "kv_slots": kv_slots,
        "model": {
            "name": model.name,
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
            "kv_bytes_per_token": model.kv_bytes_per_token,
            "weight_bytes": model.weight_bytes,
        },
        "device": {
            "name": device.name,
            "peak_flops": device.peak_flops,
            "bandwidth": device.bandwidth,
            "memory_bytes": device.memory_bytes,
            "source": device.source,
        },
        "rates": {
            "flops": cost.device.peak_flops,
            "bandwidth": cost.device.bandwidth,
            "source": "data sheet" if cost.device == device else "measured kernel times",
        },
        "compute_seconds_unshared": float(
            np.sum(cost.compute_seconds(plan.prompt_tokens, plan.output_tokens))
        ),
        "refused": [error.model_dump(mode="json") for error in batch.refused],
        "tree": tree_summary(plan, levels=args.levels, children=args.children, describe=describe),
    }


def _engine_flags(args: argparse.Namespace) -> list[str]:
    """What the engine that the batch is for would be started with, as far as prompts go."""
    named = {
        "--chat-template": args.chat_template,
        "--tool-call-parser": args.tool_call_parser,
        "--blendserve-media-root": args.media_root,
    }
    given = [part for name, value in named.items() if value for part in (name, value)]
    set_flags = {
        "--trust-remote-code": args.trust_remote_code,
        "--is-embedding": args.is_embedding,
        "--enable-multimodal": args.enable_multimodal,
    }
    return given + [name for name, is_set in set_flags.items() if is_set]


def _tokenize(path: str, prompts: EnginePrompts) -> TokenizedBatch:
    """The batch file as a `TokenizedBatch`, with a progress bar."""
    from tqdm import tqdm

    from sglang.srt.blendserve.batch_file.validation import parse_lines
    from sglang.srt.blendserve.requests.tokenizing import tokenize_batch
    from sglang.srt.blendserve.tables import request_file

    with (
        nullcontext(sys.stdin.buffer) if path == "-" else request_file.opened(path) as file,
        tqdm(desc="tokenizing", unit=" lines", file=sys.stderr, disable=None) as bar,
    ):
        return tokenize_batch(parse_lines(file), prompts, bar.update)


def _model(path: str, trust_remote_code: bool) -> ModelSpec:
    """Sizes of the model: from its folder, else from its config on the hub."""
    if Path(path).is_dir():
        return ModelSpec.from_folder(path)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).to_dict()
    return ModelSpec.from_config(config, name=path)


def _device(name: str | None) -> DeviceSpec:
    """The device called ``name``; without a name this machine's GPU, else its CPU."""
    if name is None:
        name = _known_gpu() or "cpu"
    return measure_cpu() if name.lower() == "cpu" else DeviceSpec.named(name)


def _known_gpu() -> str | None:
    """The name in our table of this machine's first GPU; None if there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    gpu = found.stdout.partition("\n")[0].upper() if found.returncode == 0 else ""
    return next((name for name in known_devices() if name.split("-")[0] in gpu), None)


def _kv_slots(cost: CostModel) -> int | None:
    """Tokens that fit beside the weights; None if the weights leave no room."""
    room = _KV_FRACTION * cost.device.memory_bytes - cost.model.weight_bytes
    slots = int(room / cost.model.kv_bytes_per_token)
    return slots if slots > 0 else None


def _check_picture(path: Path) -> None:
    """Fail before the work is done, not after it."""
    if path.suffix not in _PICTURES:
        raise PlanError(f"--picture {path}: the name must end in {', '.join(_PICTURES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise PlanError("--picture needs matplotlib; install it with: "
                        "pip install 'sglang-blendserve[plot]'")  # fmt: skip


def _draw(plan: Plan, path: Path, model: ModelSpec, device: DeviceSpec) -> None:
    from sglang.srt.blendserve.report.plan_picture import draw_plan

    draw_plan(plan, path, title=f"{plan.order.size:,} requests, {model.name} on {device.name}")
    print(f"plan: wrote {path}", file=sys.stderr)
