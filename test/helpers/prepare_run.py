"""Prepare a store in a process of its own, which a test may kill.

    python prepare_run.py MODEL INPUT STORE

Prints its workers' process ids as soon as a row is there, and "whole" at the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.requests.engine_settings import engine_settings
from sglang.srt.blendserve.requests.inputs import PlainFile
from sglang.srt.blendserve.requests.preparation import Preparation


def main(model: str, source: str, folder: str) -> None:
    """Do it."""
    settings = engine_settings(model)
    with Preparation(Path(folder), PlainFile(source), settings, Rules(), workers=2) as preparation:
        preparation.begin()
        while not preparation.store.ready and not preparation.wait(0.01):
            pass
        print(*preparation.process_ids, flush=True)
        preparation.wait()
        print("whole", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
