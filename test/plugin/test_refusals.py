"""What a user sees where the policy cannot be had: one line, and exit status 2 or an exception.

pytest test/plugin/test_refusals.py

Real starts of SGLang's server and of `sglang.Engine`, up to where the model would be loaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import Ended, command, run_all

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}

POLICY = ("--schedule-policy", "blendserve")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder without weights."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(MODEL))
    return folder


def server(folder: Path, *flags: str) -> str:
    """Return code that starts a server of the model in ``folder``."""
    return command("--model-path", str(folder), "--device", "cpu", *flags)


def engine(folder: Path, **arguments: object) -> str:
    """Return code that starts an engine and prints the exception that it ends with."""
    given = {"model_path": str(folder), "device": "cpu", **arguments}
    return (
        "import sglang\n"
        f"try: sglang.Engine(**{given!r})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )


def said(ended: Ended) -> str:
    """Return the one line with which a program ended that refused what it was asked for.

    SGLang's server has a line in its log, with the time in front, for each of its ends.
    """
    assert ended.status == 2, ended
    [line] = [line for line in ended.err.splitlines() if not line.startswith("[")]
    return line


# ---- a release that we do not work with ----------------------------------------------------------


@pytest.fixture(scope="module")
def other_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose metadata say that the SGLang which is installed is another release."""
    folder = tmp_path_factory.mktemp("other")
    metadata = folder / "sglang-0.5.20.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.20\n")
    return folder


def test_another_release_is_refused_where_the_policy_is_asked_for(
    folder: Path, other_release: Path
) -> None:
    refused = [
        server(folder, *POLICY),
        server(folder, "--schedule-policy=blendserve"),
        server(folder, "--blendserve-pace", "fixed"),
        server(folder, "--blendserve-pace=fixed"),
        server(folder, "--batch-dir", "x"),
        "import sys; sys.argv = ['', 'run', '-i', 'x', '-o', 'y', '--model-path', 'z']\n"
        "from sglang.srt.blendserve.cli import main; sys.exit(main())",
    ]
    raised = [
        engine(folder, schedule_policy="blendserve"),
        engine(folder, blendserve_pace="fixed"),
        "from sglang.srt.plugins import load_plugins; load_plugins()\n"
        "from sglang.srt.entrypoints.http_server import launch_server\n"
        "from types import SimpleNamespace\n"
        "try: launch_server(SimpleNamespace(schedule_policy='blendserve'))\n"
        "except Exception as error: print(type(error).__name__, error)",
    ]
    ended = run_all([("", code) for code in refused + raised], other_release)
    line = said(ended[0])
    assert "works with sglang 0.5.17 and 0.5.23, and found 0.5.20" in line
    assert "pip install sglang==0.5.23" in line
    assert "SGLANG_PLUGINS" in line
    assert [said(one) for one in ended[: len(refused)]] == [line] * len(refused)
    assert [one.out for one in ended[len(refused) :]] == [f"Refusal {line}\n"] * len(raised)


def test_another_release_stays_as_released_for_others(folder: Path, other_release: Path) -> None:
    parse = (
        "from sglang.srt.plugins import load_plugins; load_plugins()\n"
        "from sglang.srt.server_args import prepare_server_args, ServerArgs\n"
        "from sglang.srt.entrypoints.engine import Engine\n"
        f"given = dict(model_path={str(folder)!r}, device='cpu', random_seed=1)\n"
        "assert Engine.server_args_class(**given) == ServerArgs(**given)\n"
        f"argv = ['--model-path', {str(folder)!r}, '--schedule-policy', 'lpm', '--device', 'cpu']\n"
        "print(prepare_server_args(argv).schedule_policy)"
    )
    codes = [parse, server(folder, "--help"), server(folder, "--schedule-policy", "none")]
    parsed, shown, unknown = run_all([("", code) for code in codes], other_release)
    assert (parsed.status, parsed.out) == (0, "lpm\n")
    assert "blendserve" not in shown.out
    assert "invalid choice: 'none'" in unknown.err
    assert "blendserve" not in unknown.err


# ---- what goes wrong in the plugin ---------------------------------------------------------------

BROKEN = (
    "from sglang.srt.blendserve.runtime.overlap import pdmux\n"
    "def broken(): raise LookupError('no\\nsuch thing')\n"
    "pdmux.register_repair = broken\n"
)

GONE = "from sglang.srt.entrypoints.engine import Engine; del Engine.async_generate\n"

REPLACED = (
    "from sglang.srt.plugins import load_plugins; load_plugins()\n"
    "from sglang.srt.managers import scheduler\n"
    "class Other: pass\n"
    "scheduler.Scheduler = Other\n"
)

UNDONE = (
    "from sglang.srt.plugins import load_plugins; load_plugins()\n"
    "from sglang.srt.entrypoints.engine import Engine\n"
    "Engine.generate = Engine.generate.__wrapped__\n"
)


def test_a_plugin_that_is_not_whole_is_refused(folder: Path) -> None:
    starts = {
        BROKEN: "LookupError: no such thing",
        GONE: "engine.Engine.async_generate",
        REPLACED: "managers.scheduler.Scheduler",
        UNDONE: "engine.Engine.generate",
    }
    codes = [(before, server(folder, *POLICY)) for before in starts]
    codes += [(before, engine(folder, schedule_policy="blendserve")) for before in starts]
    ended = run_all(codes)
    lines = [said(one) for one in ended[: len(starts)]]
    for line, why in zip(lines, starts.values(), strict=True):
        assert why in line
    assert [one.out for one in ended[len(starts) :]] == [f"Refusal {line}\n" for line in lines]


def test_a_plugin_that_is_not_whole_leaves_nothing_behind(folder: Path) -> None:
    look = (
        "from sglang.srt.plugins import load_plugins; load_plugins()\n"
        "from sglang.srt.managers.scheduler import Scheduler\n"
        "from sglang.srt.entrypoints.engine import Engine\n"
        "print(Scheduler.__module__, hasattr(Engine.generate, '__wrapped__'))"
    )
    whole, broken = run_all([("", look), (BROKEN, look)])
    assert whole.out == "sglang.srt.blendserve.runtime.scheduler True\n"
    assert broken.out == "sglang.srt.managers.scheduler False\n"


# ---- flags that do not go together ---------------------------------------------------------------

COMBINATIONS = {
    "--disaggregation-mode": ("prefill",),
    "--pipeline-parallel-size": ("2",),
    "--enable-priority-scheduling": (),
    "--enable-dp-attention": ("--dp-size", "2", "--tp-size", "2"),
    "--speculative-algorithm": ("NGRAM",),
    "--enable-hierarchical-cache": (),
    "--enable-pdmux": (),
    "--disable-radix-cache": (),
}


def test_what_the_policy_does_not_work_with_is_one_line(folder: Path) -> None:
    codes = [server(folder, *POLICY, flag, *more) for flag, more in COMBINATIONS.items()]
    for flag, ended in zip(COMBINATIONS, run_all([("", c) for c in codes]), strict=True):
        assert f"--schedule-policy blendserve does not work with {flag}: " in ended.err
        assert ended.status == 2
        assert "Traceback" not in ended.err
        assert len(ended.err.splitlines()) <= 4  # SGLang warns of a flag that is deprecated


def test_values_that_cannot_be_are_one_line(folder: Path) -> None:
    codes = [
        server(folder, *POLICY, "--blendserve-overlap-chunk", "0"),
        server(folder, *POLICY, "--blendserve-overlap", "layers", "--enable-mixed-chunk"),
        server(folder, *POLICY, "--batch-max-requests", "0"),
        engine(folder, schedule_policy="blendserve", enable_priority_scheduling=True),
        engine(folder, schedule_policy="blendserve", blendserve_overlap_chunk=0),
        engine(folder, schedule_policy="blendserve", blendserve_speed=2),
    ]
    *started, combined, valued, unknown = run_all([("", code) for code in codes])
    for ended, words in zip(
        started,
        ("--blendserve-overlap-chunk is 0", "--enable-mixed-chunk", "--batch-max-requests is 0"),
        strict=True,
    ):
        assert words in said(ended)
    assert combined.out.startswith("UnsupportedCombination --schedule-policy blendserve does not")
    assert valued.out.startswith("Refusal --blendserve-overlap-chunk is 0")
    assert unknown.out.startswith("TypeError unknown setting blendserve_speed")


# ---- where nothing is wrong ----------------------------------------------------------------------

LOADED = (
    "import pickle\n"
    "from sglang.srt.plugins import load_plugins; load_plugins()\n"
    "from sglang.srt.entrypoints.engine import Engine\n"
    "from sglang.srt.server_args import prepare_server_args, ServerArgs\n"
    "from sglang.srt.managers.scheduler import Scheduler\n"
    "from sglang.srt.blendserve.runtime.compat.server_args import release\n"
    "def show(args):\n"
    "    release.resolve(args)\n"
    "    there = pickle.loads(pickle.dumps(args))\n"  # as a scheduler's process gets them
    "    release.resolve(there)\n"
    "    fields = release.view(there)\n"
    "    print(there.blendserve.pace, fields.radix_cache_backend, fields.enable_mixed_chunk)\n"
)


def test_settings_travel_with_the_arguments(folder: Path) -> None:
    argv = ["--model-path", str(folder), "--device", "cpu", *POLICY, "--blendserve-pace", "fixed"]
    given = {"model_path": str(folder), "device": "cpu", "schedule_policy": "blendserve"}
    codes = [
        f"show(prepare_server_args({argv!r}))",
        f"show(Engine.server_args_class(**{given!r}, blendserve_pace='fixed'))",
        f"show(ServerArgs(**{given!r}))",
        f"show(Engine.server_args_class(model_path={str(folder)!r}, device='cpu'))",
        f"show(Engine.server_args_class(**{given!r}, radix_cache_backend='mine', "
        "blendserve_mixed_chunk='off'))",
    ]
    ended = run_all([(LOADED, code) for code in codes])
    assert [one.out for one in ended] == [
        "fixed blendserve True\n",
        "fixed blendserve True\n",
        "auto blendserve True\n",
        "auto None False\n",
        "auto mine False\n",
    ]


def test_arguments_made_before_the_plugins_are_refused(folder: Path) -> None:
    early = (
        "from sglang.srt.server_args import ServerArgs\n"
        f"args = ServerArgs(model_path={str(folder)!r}, device='cpu', "
        "schedule_policy='blendserve')\n"
        "if hasattr(args, 'resolve_once'): args.resolve_once()\n"
    )
    start = "try: Scheduler(args)\nexcept Exception as error: print(type(error).__name__, error)"
    [ended] = run_all([(early + LOADED, start)])
    assert "were made before SGLang's plugins were loaded" in ended.out
