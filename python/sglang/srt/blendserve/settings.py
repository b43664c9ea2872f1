"""Settings of the policy: one place for their names, meaning, defaults and command-line flags.

They reach the scheduler process as an attribute of SGLang's ``ServerArgs`` (see `plugin`), which
SGLang hands to every process it starts. The same names work as keyword arguments of
``sglang.Engine``: ``Engine(model_path=M, schedule_policy="blendserve", blendserve_pace="fixed")``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.allowed_hosts import AllowedHosts, refusal_of
from sglang.srt.blendserve.flag_fields import Flags, flag
from sglang.srt.blendserve.latencies import LatencyTargets, Target

POLICY = "blendserve"
"""The name behind ``--schedule-policy``."""

BEYOND_COMPUTE, BEYOND_MEMORY = "blendserve_beyond_compute", "blendserve_beyond_memory"
"""Names under which a scheduler is told, as SGLang's internal state, how much predicted work waits
elsewhere for it, in seconds."""

PREFIX = "blendserve_"
"""What the names of the settings begin with, on the command line and as keyword arguments."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the policy works. Every field is a flag ``--blendserve-<name>``."""

    pace: str = flag(
        "auto",
        "How much prompt a step computes: 'marginal' spreads what is left over the steps that "
        "are left, in the sizes that add least time to a step, 'fixed' always "
        "fills --chunked-prefill-size, 'paper' is the paper's partition of the memory with its "
        "fixed budgets. 'auto' is 'marginal' on a GPU and 'fixed' on a CPU or without mixed "
        "chunks; with --blendserve-overlap, full chunks.",
        choices=("auto", "marginal", "fixed", "paper"),
    )
    mixed_chunk: str = flag(
        "auto",
        "Whether prompts are computed in the same forward as the decodes "
        "(--enable-mixed-chunk). 'auto' does so but with the attention backend torch_native, "
        "whose mixed step computes every decoding request's whole context again; 'off' leaves "
        "SGLang's own setting.",
        choices=("auto", "on", "off"),
    )
    overlap: str = flag(
        "off",
        "Run prefill and decode at once, on two CUDA streams of one GPU (SGLang's PD "
        "multiplexing with a loop of our own). 'layers' computes prompts whole, some layers at "
        "a time; 'chunks' may also cut a prompt after --blendserve-overlap-chunk tokens. "
        "Either replaces mixed chunks and SGLang's overlap schedule. Unproven on a GPU.",
        choices=("off", "layers", "chunks"),
    )
    overlap_chunk: int = flag(
        2048,
        "Prompt tokens that one prefill beside the decodes computes (with 'layers', "
        "about: prompts stay whole).",
        least=1,
    )
    overlap_sm: str = flag(
        "auto",
        "Division of the GPU's SMs between the two: 'auto' follows the work that is "
        "left and measured times, and runs them in turns where that is faster; 'shared' lets both "
        "use all of them, decode first; 'turns' never runs both at once; a number: prefill's SMs.",
    )
    online_ttft: str = flag(
        "2x",
        "Time to first token that online requests are to keep beside a batch, in milliseconds "
        "(500) or as a multiple of what the engine would need without one (1.5x); 'off' for none. "
        "While online requests are there or expected, steps are short enough for it: offline "
        "requests are computed in smaller chunks, and some that decode sit steps out.",
    )
    online_tpot: str = flag(
        "2x",
        "Time per output token, after the first, that online requests are to keep beside a batch, "
        "as --blendserve-online-ttft.",
    )
    list_window: int = flag(
        8192,
        "Answers to one list call of Engine.generate or async_generate that are in the engine at "
        "once. A longer list is tokenized and planned as a whole before the engine, which gets the "
        "requests that the plan has next.",
        least=1,
    )
    media_root: str = flag(
        "",
        "Folder whose files the lines of a batch may name as images, videos and recordings: "
        "file:///FOLDER/cat.png, or cat.png. Without it no line may name a file.",
    )
    media_hosts: str = flag(
        "",
        "Hosts from which images, videos and recordings of the lines of a batch are fetched, "
        "separated by commas: images.example.com, images.example.com:8443, *.example.com, or * "
        "for any. Without it a line holds its images itself, as data:image/png;base64,...",
    )
    media_private: str = flag(
        "no",
        "Whether such a host may have an address of this machine or of a private network, and be "
        "asked by http.",
        choices=("no", "yes"),
    )
    media_bytes: int = flag(
        16 * 2**20,
        "Largest image, video or recording of a line, in bytes as it is encoded.",
        least=1,
    )
    device: str = flag(
        "auto",
        "Device whose compute and bandwidth the cost model uses: a name such as "
        "'H200', or 'auto' to recognise or measure the one at hand.",
    )
    trace: str = flag(
        "",
        "Write one CSV row per scheduling step to this file: tokens by kind and end of "
        "the plan, budget, predicted and measured time, cache hits, evictions, retractions. "
        "With several ranks each writes its own (FILE.dp0.tp1.csv).",
    )

    def __post_init__(self) -> None:
        FLAGS.check(self)
        if self.overlap_sm not in ("auto", "shared", "turns") and not self.overlap_sm.isdecimal():
            reason = "it must be auto, shared, turns or a number of SMs"
            raise FLAGS.refusal(self, "overlap_sm", reason)
        _ = self.online_targets
        if (wrong := refusal_of(self.allowed_media_hosts.hosts)) is not None:
            raise FLAGS.refusal(self, "media_hosts", wrong)
        if self.media_root:
            if not Path(self.media_root).is_dir():
                raise FLAGS.refusal(self, "media_root", "there is no such folder")
            # Processes that get the settings may be in other folders.
            object.__setattr__(self, "media_root", str(Path(self.media_root).resolve()))
        if self.trace and not (folder := Path(self.trace).absolute().parent).is_dir():
            raise FLAGS.refusal(self, "trace", f"there is no folder {folder}; create it first")

    @property
    def allowed_media_hosts(self) -> AllowedHosts:
        """The hosts from which media of batch lines may be fetched."""
        return AllowedHosts.of(self.media_hosts, private=self.media_private == "yes")

    @property
    def online_targets(self) -> LatencyTargets:
        """The latencies that online requests are to keep."""
        return LatencyTargets(self._target("online_ttft"), self._target("online_tpot"))

    def _target(self, name: str) -> Target:
        try:
            return Target.parse(getattr(self, name))
        except ValueError as error:
            raise FLAGS.refusal(self, name, str(error)) from None

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


FLAGS = Flags(Settings, "--blendserve-", title="BlendServe (with --schedule-policy blendserve)")
"""Command-line flags of the settings. They have no environment variables, because
``BLENDSERVE_DEVICE`` is that of the installation."""
