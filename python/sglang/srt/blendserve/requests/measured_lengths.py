"""Output lengths as an earlier run measured them, read from its results file."""

from __future__ import annotations

import numpy as np
import orjson
from numpy.typing import NDArray

from sglang.srt.blendserve.requests.tokenizing import TokenizedBatch
from sglang.srt.blendserve.tables import request_file


def measured_lengths(batch: TokenizedBatch, path: str) -> NDArray[np.float64]:
    """(sequences,) output tokens by a file of answers (`request_file.opened_answers`); NaN where it
    has none.

    Sequences of one line have the mean of that line. Raises ValueError if the file cannot be used.
    """
    measured = _read_usage(path)
    lines = np.array(batch.line, dtype=np.int64)
    sequences = np.bincount(lines, minlength=len(batch.custom_ids))
    # The usage of a line sums over its choices.
    by_line = np.array([measured.get(c, np.nan) for c in batch.custom_ids]) / sequences
    if not np.isfinite(by_line).any():
        raise ValueError(f"{path}: no result line has a custom_id of the input")
    return by_line[lines]


def _read_usage(path: str) -> dict[str, int]:
    """Completion tokens by custom_id from a file of output lines."""
    measured: dict[str, int] = {}
    try:
        with request_file.opened_answers(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    result = orjson.loads(line)
                    usage = result["response"]["body"]["usage"]
                    measured[str(result["custom_id"])] = int(usage["completion_tokens"])
                except orjson.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not valid JSON: {error}") from error
                except (KeyError, TypeError):
                    continue  # an error line, or a result without usage: nothing measured
    except OSError as error:
        raise ValueError(f"cannot read {path!r}: {error.strerror}") from error
    return measured
