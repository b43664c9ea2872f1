"""Settings of the policy: one place for their names, meaning, defaults and command-line flags.

They reach the scheduler process as an attribute of SGLang's ``ServerArgs`` (see `plugin`), which
SGLang hands to every process it starts. The same names work as keyword arguments of
``sglang.Engine``: ``Engine(model_path=M, schedule_policy="blendserve", blendserve_pace="fixed")``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

POLICY = "blendserve"
"""The name behind ``--schedule-policy``."""

PREFIX = "blendserve_"
"""What the names of the settings begin with, on the command line and as keyword arguments."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the policy works. Every field is a flag ``--blendserve-<name>``."""

    pace: str = field(
        default="auto",
        metadata={
            "choices": ("auto", "balance", "spread", "ratio", "fixed", "paper"),
            "help": "How much prompt a step computes: 'balance' as much as the step's memory "
            "traffic hides, 'spread' spreads what is left evenly over the decodes that are left, "
            "'ratio' holds compute : memory at the ratio of all remaining work, 'fixed' always "
            "fills --chunked-prefill-size, 'paper' is the paper's partition of the memory with its "
            "fixed budgets. 'auto' is 'spread' on a GPU and 'fixed' on a CPU or without mixed "
            "chunks; with --blendserve-overlap, full chunks.",
        },
    )
    keep_sharing: float = field(
        default=0.99,
        metadata={"help": "Part of the prefix sharing that node splits must leave (0 to 1)."},
    )
    mixed_chunk: str = field(
        default="auto",
        metadata={
            "choices": ("auto", "on", "off"),
            "help": "Whether prompts are computed in the same forward as the decodes "
            "(--enable-mixed-chunk). 'auto' does so but with the attention backend torch_native, "
            "whose mixed step computes every decoding request's whole context again; 'off' leaves "
            "SGLang's own setting.",
        },
    )
    overlap: str = field(
        default="off",
        metadata={
            "choices": ("off", "layers", "chunks"),
            "help": "Run prefill and decode at once, on two CUDA streams of one GPU (SGLang's PD "
            "multiplexing with a loop of our own). 'layers' computes prompts whole, some layers at "
            "a time; 'chunks' may also cut a prompt after --blendserve-overlap-chunk tokens. "
            "Either replaces mixed chunks and SGLang's overlap schedule. Unproven on a GPU.",
        },
    )
    overlap_chunk: int = field(
        default=2048,
        metadata={
            "help": "Prompt tokens that one prefill beside the decodes computes (with 'layers', "
            "about: prompts stay whole)."
        },
    )
    overlap_sm: str = field(
        default="auto",
        metadata={
            "help": "Division of the GPU's SMs between the two: 'auto' follows the work that is "
            "left and measured times, 'shared' lets both use all of them, decode first, and a "
            "number is prefill's SMs."
        },
    )
    online_share: float = field(
        default=0.25,
        metadata={
            "help": "While online requests decode, and for some steps after, the prefill of "
            "offline requests may take at most this share of a step's time (0 to 1; 1: any). "
            "Online requests that wait always go first."
        },
    )
    device: str = field(
        default="auto",
        metadata={
            "help": "Device whose compute and bandwidth the cost model uses: a name such as "
            "'H200', or 'auto' to recognise or measure the one at hand."
        },
    )
    trace: str = field(
        default="",
        metadata={
            "help": "Write one CSV row per scheduling step to this file: tokens by kind and end of "
            "the plan, budget, predicted and measured time, cache hits, evictions, retractions. "
            "With several ranks each writes its own (FILE.dp0.tp1.csv)."
        },
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            choices = setting.metadata.get("choices")
            value = getattr(self, setting.name)
            if choices and value not in choices:
                raise ValueError(
                    f"--blendserve-{setting.name.replace('_', '-')} {value!r}: choose from "
                    f"{', '.join(choices)}"
                )
        for name in ("keep_sharing", "online_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                flag = name.replace("_", "-")
                raise ValueError(f"--blendserve-{flag} {getattr(self, name)}: must lie in [0, 1]")
        if self.overlap_chunk < 1:
            raise ValueError(f"--blendserve-overlap-chunk {self.overlap_chunk}: at least 1")
        if self.overlap_sm not in ("auto", "shared") and not self.overlap_sm.isdecimal():
            raise ValueError(
                f"--blendserve-overlap-sm {self.overlap_sm!r}: auto, shared or a number of SMs"
            )
        if self.trace and not (folder := Path(self.trace).absolute().parent).is_dir():
            raise ValueError(
                f"--blendserve-trace {self.trace}: there is no folder {folder}; create it first"
            )

    @classmethod
    def take_from(cls, arguments: dict[str, Any]) -> Settings:
        """Build settings from the ``blendserve_*`` entries of ``arguments`` and remove those.

        Raises TypeError naming an entry that is no setting.
        """
        own = {key: arguments.pop(key) for key in [*arguments] if key.startswith(PREFIX)}
        return cls.from_mapping(own)

    @classmethod
    def from_mapping(cls, arguments: Mapping[str, Any]) -> Settings:
        """Build settings from ``blendserve_*`` names."""
        known = {setting.name for setting in fields(cls)}
        given = {key.removeprefix(PREFIX): value for key, value in arguments.items()}
        if unknown := sorted(set(given) - known):
            raise TypeError(
                f"unknown setting {PREFIX}{unknown[0]}; known: "
                + ", ".join(f"{PREFIX}{name}" for name in sorted(known))
            )
        return cls(**given)

    @classmethod
    def from_namespace(cls, args: argparse.Namespace) -> Settings:
        """Build settings from parsed command-line arguments (absent ones keep their default)."""
        names = [f"{PREFIX}{setting.name}" for setting in fields(cls)]
        return cls.from_mapping(
            {name: getattr(args, name) for name in names if hasattr(args, name)}
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all settings to ``parser``."""
    group = parser.add_argument_group("BlendServe (with --schedule-policy blendserve)")
    for setting in fields(Settings):
        group.add_argument(
            f"--{PREFIX}{setting.name}".replace("_", "-"),
            dest=f"{PREFIX}{setting.name}",
            type=type(setting.default),
            default=setting.default,
            choices=setting.metadata.get("choices"),
            help=f"{setting.metadata['help']} (default: {setting.default or 'none'})",
        )
