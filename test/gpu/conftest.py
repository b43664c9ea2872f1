"""Helpers of the runtime tests (tiny model, one engine in a process of its own) for this folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
