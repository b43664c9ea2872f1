"""Loops over the requests in flight that every step runs, compiled by numba.

The compiled code is kept beside the module, so only the first start of an installation compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])

VECTOR = "float64[::1]"
TABLE = "float64[:, ::1]"
INTEGERS = "int64[::1]"
NUMBER = "float64"


def compiled(returns: str, *arguments: str) -> Callable[[F], F]:
    """Compile a function for arguments of these types, numba's names, at import.

    Sums are those of the Python code, in its order: no other rounding is allowed to the compiler.
    """
    signature = f"{returns}({', '.join(arguments)})"

    def decorate(function: F) -> F:
        try:
            return cast(F, numba.njit(signature, cache=True, nogil=True)(function))
        except RuntimeError:  # no folder to keep it in can be written
            return cast(F, numba.njit(signature, nogil=True)(function))

    return decorate
