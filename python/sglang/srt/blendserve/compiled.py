"""Loops over the requests in flight that every step runs, compiled by numba.

The compiled code is kept in the user's cache of numba (``~/.cache/numba``), so only the first start
of an installation compiles. Beside the modules it would stay behind after ``pip uninstall``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])

VECTOR = "float64[::1]"
TABLE = "float64[:, ::1]"
INTEGERS = "int64[::1]"
TOKENS = "Array(int32, 1, 'C', True)"
"""Also of an array that may not be written to."""
NUMBER = "float64"

_PLACES = "UserProvidedCacheLocator,UserWideCacheLocator,InTreeCacheLocator"
"""Where numba looks for a folder that can be written: $NUMBA_CACHE_DIR, the user's cache, and the
module's own folder only where there is no home."""


def compiled(returns: str, *arguments: str) -> Callable[[F], F]:
    """Compile a function for arguments of these types, numba's names, at import.

    Sums are those of the Python code, in its order: no other rounding is allowed to the compiler.
    """
    signature = f"{returns}({', '.join(arguments)})"

    def decorate(function: F) -> F:
        try:
            with _kept_for_the_user():
                return cast(F, numba.njit(signature, cache=True, nogil=True)(function))
        except RuntimeError:  # no folder to keep it in can be written
            return cast(F, numba.njit(signature, nogil=True)(function))

    return decorate


@contextmanager
def _kept_for_the_user() -> Iterator[None]:
    """Have numba choose among ``_PLACES``, for our functions only and unless the user chose."""
    before = numba.config.CACHE_LOCATOR_CLASSES
    numba.config.CACHE_LOCATOR_CLASSES = before or _PLACES
    try:
        yield
    finally:
        numba.config.CACHE_LOCATOR_CLASSES = before
