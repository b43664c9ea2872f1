"""Whether two names are those of one file, so that a run never writes over what it reads."""

from __future__ import annotations

import os
import sys
from itertools import combinations
from pathlib import Path


def same_file(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths lead to one file: by links of either kind, or spelled differently.

    Files that do not exist yet are compared by where they would be made.
    """
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return os.path.realpath(one) == os.path.realpath(other)


def is_standard_input(path: str | Path) -> bool:
    """Return whether a path leads to the file that standard input is read from (``< FILE``)."""
    try:
        return os.path.samestat(os.fstat(sys.stdin.fileno()), os.stat(path))
    except (OSError, ValueError):  # no such file, or standard input is none
        return False


def first_clash(names: dict[str, str | Path]) -> tuple[str, str] | None:
    """Return the first two of the names that lead to one file, None if all are different files.

    Args:
        names: paths by what a message calls them; ``-`` is standard input.
    """
    for (one, path), (other, second) in combinations(names.items(), 2):
        if str(path) == "-":
            if is_standard_input(second):
                return one, other
        elif same_file(path, second):
            return one, other
    return None


def sidecar_of(output: Path) -> Path:
    """Return the small file beside an output that says which input it is for."""
    return output.with_name(output.name + ".run.json")
