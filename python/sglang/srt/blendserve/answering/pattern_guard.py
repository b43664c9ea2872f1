"""Bounds of regular expressions and grammars that a request brings along.

They are compiled and matched in the scheduler process, where a pattern that takes for ever stops
everybody. What is refused here is refused by its form, without trying it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sglang.srt.blendserve.answering.request_refused import RequestRefused

MAX_STOP_REGEX_BYTES = 256
"""Longest ``stop_regex``, as SGLang 0.5.23 has it."""

MAX_WAYS = 1000
"""Most ways in which a ``stop_regex`` can fit the same text: alternatives and repeats with an end,
multiplied. All of them may be tried."""

MAX_STATES = 100_000
"""Most states of a ``regex``: characters, and what is repeated counted as often as it may be."""

MAX_GRAMMAR_BYTES = 1 << 18
"""Longest schema, regular expression or EBNF grammar; compiling takes a time that grows with it."""

MAX_DEPTH = 64
"""Deepest nesting of brackets in a grammar; compilers descend into it by recursion."""

_parser: Any = re._parser  # type: ignore[attr-defined]
_MAXREPEAT: Any = re._constants.MAXREPEAT  # type: ignore[attr-defined]
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")

_BRACKETS = {"json_schema": "[{", "structural_tag": "[{", "regex": "(", "ebnf": "("}


def check_stop_regex(pattern: str) -> None:
    """Check a regular expression that is searched for in the answer's end after each step.

    Raises:
        RequestRefused: it is none, or may take more time than its length explains.
    """
    if len(pattern.encode()) > MAX_STOP_REGEX_BYTES:
        raise _refused(f"is longer than {MAX_STOP_REGEX_BYTES} bytes; shorten it.")
    try:
        parsed = _parser.parse(pattern)
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise _refused(f"{pattern!r} is not a regular expression: {error}.") from error
    endless, ways = _ways(parsed, inside=1)
    if endless > 1:
        raise _refused(f"{pattern!r} has {endless} repeats without an end; one is allowed.")
    if ways > MAX_WAYS:
        raise _refused(f"{pattern!r} can fit the same text in too many ways; make it simpler.")


def _refused(reason: str) -> RequestRefused:
    return RequestRefused(f"stop_regex {reason}", "stop_regex")


def _ways(pattern: Any, *, inside: int) -> tuple[int, int]:
    """Return how many repeats without an end a pattern has, and in how many ways the rest fits.

    ``inside``: how often the pattern may be repeated by what stands around it; more than
    `MAX_WAYS` is without an end.
    """
    endless, ways = 0, 1
    for operator, argument in pattern:
        name, inner, times = str(operator), list(_patterns_in(argument)), inside
        if name in _REPEATS:
            least, most, _ = argument
            if most == _MAXREPEAT:
                if inside > 1:
                    raise _refused("has a repeat without an end inside a repeat; write it without.")
                endless, times = endless + 1, MAX_WAYS + 1
            else:
                times = max(1, min(inside * most, MAX_WAYS + 1))
                ways *= _power(most - least + 1, inside)
        elif name == "BRANCH":
            inner = argument[1]
            ways *= _power(len(inner), inside)
        elif name.startswith("GROUPREF"):
            raise _refused("refers back to a group; write it without.")
        for one in inner:
            more, again = _ways(one, inside=times)
            endless, ways = endless + more, min(ways * again, MAX_WAYS + 1)
    return endless, min(ways, MAX_WAYS + 1)


def _power(base: int, exponent: int) -> int:
    """Return the power, or something above `MAX_WAYS` where it is larger than that."""
    return min(base, MAX_WAYS + 1) ** min(exponent, 10 if base > 1 else 1)


def _patterns_in(argument: Any) -> Iterator[Any]:
    if isinstance(argument, _parser.SubPattern):
        yield argument
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _patterns_in(item)


def check_grammars(grammars: Mapping[str, str | None]) -> None:
    """Check what constrains an answer, by the name of its kind in SGLang's sampling parameters.

    Raises:
        RequestRefused: it is too long or nested too deeply, or there is more than one.
    """
    given = {name: text for name, text in grammars.items() if text}
    if len(given) > 1:
        names = " and ".join(_name(name) for name in given)
        raise RequestRefused(
            f"{names} exclude each other; leave one out.", _name(next(iter(given)))
        )
    for name, text in given.items():
        param = _name(name)
        if len(text.encode()) > MAX_GRAMMAR_BYTES:
            message = f"{param} is longer than {MAX_GRAMMAR_BYTES} bytes; shorten it."
            raise RequestRefused(message, param)
        if _depth(text, _BRACKETS[name]) > MAX_DEPTH:
            message = f"{param} is nested more than {MAX_DEPTH} deep; make it flatter."
            raise RequestRefused(message, param)
        if name == "regex":
            _check_size(text)


def _name(kind: str) -> str:
    return "response_format" if kind in ("json_schema", "structural_tag") else kind


def _depth(text: str, opening: str) -> int:
    """Return how deep brackets are nested; those in strings count as well, so at most too many."""
    closing = opening.translate(str.maketrans("([{", ")]}"))
    depth = deepest = 0
    for character in text:
        if character in opening:
            depth += 1
            deepest = max(deepest, depth)
        elif character in closing:
            depth -= 1
    return deepest


def _check_size(pattern: str) -> None:
    """Refuse a ``regex`` whose repeats, one in the other, make a huge automaton."""
    try:
        states = _states(_parser.parse(pattern))
    except re.error:
        return  # the grammar backend's syntax is not quite Python's, and it says what is wrong
    except (RecursionError, OverflowError) as error:
        raise RequestRefused("regex is too large; make it simpler.", "regex") from error
    if states > MAX_STATES:
        message = f"regex has {states} states with its repeats; at most {MAX_STATES} work."
        raise RequestRefused(message, "regex")


def _states(pattern: Any) -> int:
    total = 0
    for operator, argument in pattern:
        name = str(operator)
        inner = argument[1] if name == "BRANCH" else list(_patterns_in(argument))
        times = 1
        if name in _REPEATS:
            times = argument[0] if argument[1] == _MAXREPEAT else argument[1]
        total += max(1, times) * max(1, sum(_states(one) for one in inner))
    return total
