"""SGLang's server arguments for a process that tokenizes and has no engine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sglang.srt.blendserve.runtime.cpu import defaults

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


def engine_settings(model_path: str, flags: Sequence[str] = ()) -> ServerArgs:
    """Return the settings of an engine that was started with these ``flags``, resolved.

    Sets variables that SGLang reads when it is imported.

    Raises:
        Exception: SGLang does not take them, or cannot read the model's config.
    """
    argv = ["--model-path", model_path, "--log-level", "error"]
    if os.path.isdir(model_path):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all is here: ask nobody
    if not defaults.has_accelerator():
        defaults.apply_environment()
        # SGLang's modules warn, in each process, of all that a machine without a GPU cannot do.
        os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning")
        warnings.simplefilter("ignore", UserWarning)
        argv += defaults.server_flags(model_path, flags)
    argv += flags

    from sglang.srt.server_args import prepare_server_args

    if any(flag.startswith("--blendserve-") for flag in flags):
        from sglang.srt.plugins import load_plugins

        load_plugins()
    from sglang.srt.blendserve.runtime.compat.server_args import release

    settings = prepare_server_args(argv)
    release.resolve(settings)
    return settings
