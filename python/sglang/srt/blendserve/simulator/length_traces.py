"""Where lengths come from: real traces by name, trace files, and synthetic video lengths."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.simulator.workload import Workload, cap_for

Ints = NDArray[np.int64]

_FRAMES = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192)
_FRAMES_SHARE = (0.02, 0.05, 0.10, 0.15, 0.20, 0.18, 0.15, 0.08, 0.05, 0.02)
"""Frames of synthetic videos and how often: an OpenVid-like spread, most of them a few seconds."""
_FRAME_TOKENS = 256
_VIDEO_MEAN = 16_384
"""The paper scales OpenVid to this mean output, tokens."""
_VIDEO_PROMPT = (20, 200)
"""Prompt lengths of videos: uniform in this range (captions), tokens."""

REAL = ("burstgpt", "azure_conv", "azure_code", "sharegpt", "reasoning", "mmlu")
"""Traces in this package, see ``data/NOTICE.md``."""
NAMES = (*REAL, "video")


class WorkloadError(ValueError):
    """A workload that cannot be made, as from a trace that cannot be read; the message names the
    file or flag, the line and what to do."""


@dataclass(frozen=True, slots=True)
class LengthTrace:
    """Request lengths to draw from, m rows; all arrays have shape (m,), lengths in tokens."""

    name: str
    prompt_tokens: Ints
    output_tokens: Ints
    prefix: Ints
    prefix_tokens: Ints

    @classmethod
    def named(cls, name: str) -> LengthTrace:
        """A trace of this package, by name. Raises WorkloadError listing the names."""
        if name == "video":
            return _video()
        if name not in REAL:
            raise WorkloadError(f"unknown trace {name!r}; known: {', '.join(NAMES)}")
        data = files(__package__).joinpath("data", f"{name}.csv.gz").read_bytes()
        return _read(name, gzip.decompress(data).decode("utf-8"), f"{name}.csv.gz")

    @classmethod
    def from_file(cls, path: str | Path) -> LengthTrace:
        """Read a CSV file, gzipped if it ends in ``.gz``.

        Columns input_tokens and output_tokens, and optionally prefix_id (any text, empty for none)
        and prefix_tokens. Raises WorkloadError naming line, field and fix.
        """
        path = Path(path)
        try:
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise WorkloadError(f"{path}: cannot be read: {error}") from None
        return _read(path.name.split(".")[0], text, str(path))

    def draw(self, count: int, seed: int, stream: int) -> Workload:
        """``count`` requests drawn with replacement; the same for the same seed and stream.

        Stratified by output length: few draws have nearly the table's distribution too.
        """
        rng = np.random.default_rng([seed, 4, stream])
        place = (np.arange(count) + rng.random(count)) / max(count, 1) * self.prompt_tokens.size
        by_output = np.lexsort((rng.random(self.prompt_tokens.size), self.output_tokens))
        return self.rows(rng.permutation(by_output[place.astype(np.int64)]), seed)

    def rows(self, rows: Ints, seed: int) -> Workload:
        """The given rows as a workload."""
        output = self.output_tokens[rows]
        return Workload(
            name=self.name,
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=output,
            max_tokens=np.full(rows.size, cap_for(int(self.output_tokens.max())), dtype=np.int64),
            prefix=self.prefix[rows],
            prefix_tokens=self.prefix_tokens[rows],
            source=np.zeros(rows.size, dtype=np.int64),
            sources=(self.name,),
            seed=seed,
        )


def _video() -> LengthTrace:
    """Synthetic OpenVid-like lengths: frames x 256 tokens, scaled to a mean of 16K tokens."""
    frames = np.repeat(_FRAMES, np.round(np.array(_FRAMES_SHARE) * 5000).astype(int))
    output = np.round(frames * _FRAME_TOKENS * (_VIDEO_MEAN / (frames.mean() * _FRAME_TOKENS)))
    rng = np.random.default_rng(0)
    n = output.size
    return LengthTrace(
        name="video",
        prompt_tokens=rng.integers(*_VIDEO_PROMPT, n),
        output_tokens=output.astype(np.int64),
        prefix=np.full(n, -1, dtype=np.int64),
        prefix_tokens=np.zeros(n, dtype=np.int64),
    )


def _read(name: str, text: str, where: str) -> LengthTrace:
    reader = csv.DictReader(io.StringIO(text))
    for column in ("input_tokens", "output_tokens"):
        if column not in (reader.fieldnames or ()):
            raise WorkloadError(
                f"{where}: no column {column!r} in its first line; a trace needs the columns "
                "input_tokens and output_tokens, and may have prefix_id and prefix_tokens"
            )
    rows: list[tuple[int, int, str, int]] = []
    for row in reader:
        number = _integers(row, f"{where}:{reader.line_num}")
        prompt, output = number("input_tokens", 1), number("output_tokens", 1)
        prefix_id = row.get("prefix_id") or ""
        prefix = number("prefix_tokens", 0) if prefix_id else 0
        if prefix >= prompt:
            raise WorkloadError(
                f"{where}:{reader.line_num}: prefix_tokens is {prefix}; it must be below "
                f"input_tokens, which is {prompt}"
            )
        rows.append((prompt, output, prefix_id, prefix))
    if not rows:
        raise WorkloadError(f"{where}: no rows below the header")
    names = {p: i for i, p in enumerate(dict.fromkeys(r[2] for r in rows if r[2]))}

    def values(place: int) -> Ints:
        return np.array([row[place] for row in rows], dtype=np.int64)

    prefix_number = np.array([names.get(row[2], -1) for row in rows], dtype=np.int64)
    return LengthTrace(name, values(0), values(1), prefix_number, values(3))


def _integers(row: dict[str, str], where: str) -> Callable[[str, int], int]:
    def read(column: str, least: int) -> int:
        text = row.get(column) or ""
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise WorkloadError(f"{where}: {column} is {text!r}; it must be an integer >= {least}")
        return value

    return read
