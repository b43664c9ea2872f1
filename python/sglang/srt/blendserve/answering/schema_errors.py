"""SGLang's schema of a request, and what is wrong with a body in the user's own terms.

pydantic reports an error for each branch of a union, the first branch first: whatever is wrong in
a *user* message, it says that the role should be one of system, assistant and so on. Here the
branch is found that the user meant, by ``role``, ``type`` and the type of the value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.answering.schema_texts import (
    Fault,
    Label,
    Step,
    describe,
    expected_text,
    known_text,
    listed,
    shown,
    words,
)

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class _Finding:
    path: tuple[str | int, ...]
    message: str


def validated(schema: type[T], body: Callable[[], dict[str, Any]]) -> T:
    """Return the request of a body.

    Args:
        schema: SGLang's, of the endpoint.
        body: makes the body anew whenever it is called: validators change what they are given.

    Raises:
        RequestRefused: it is none. Whatever a validator of SGLang raises ends here, not only
            pydantic's own `ValidationError`.
    """
    given = body()
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise _refusal(error, given) from error
    except Exception as error:
        raise _unexpected(schema, body, error) from error


def _refusal(error: ValidationError, body: Any, prefix: str | None = None) -> RequestRefused:
    try:
        finding = _find([_read(one, body, prefix) for one in error.errors(include_url=False)], ())
    except Exception:  # a form of errors that we do not know: pydantic's own words are better
        first = error.errors(include_url=False)[0]
        place = ((prefix,) if prefix else ()) + first["loc"]
        finding = _Finding(place, f"is not valid: {first['msg']}.")
    path = ".".join(str(step) for step in finding.path)
    return RequestRefused(f"{path} {finding.message}".strip(), path or None)


def _unexpected(
    schema: type[BaseModel], body: Callable[[], dict[str, Any]], error: Exception
) -> RequestRefused:
    """Return the refusal of a body on which a validator has failed: it names the field at fault."""
    for name, value in body().items():
        field = schema.model_fields.get(name)
        if field is None or field.annotation is None:
            continue
        try:
            TypeAdapter(field.annotation).validate_python(value)
        except ValidationError as found:
            return _refusal(found, value, name)
        except Exception:  # it says no more than the first
            continue
    reason = f"{type(error).__name__}: {error}"
    for name in body():
        rest = body()
        del rest[name]
        if not _fails(schema, rest):
            return RequestRefused(f"{name} has not the form that SGLang takes ({reason}).", name)
    return RequestRefused(f"The body has not the form that SGLang takes ({reason}).")


def _fails(schema: type[BaseModel], body: dict[str, Any]) -> bool:
    """Whether a validator raises something else than a `ValidationError`."""
    try:
        schema.model_validate(body)
    except ValidationError:
        return False
    except Exception:  # whatever SGLang's own validators raise: the caller names the field
        return True
    return False


def _read(error: Any, body: Any, prefix: str | None) -> Fault:
    """Return one of pydantic's errors, its place told apart into fields and branches."""
    value, rest = body, list[Step]([] if prefix is None else [prefix])
    location = error["loc"]
    for index, step in enumerate(location):
        if _holds(value, step):
            value = value[step]
            rest.append(step)
        elif error["type"] == "missing" and index == len(location) - 1:
            rest.append(step)
        else:
            rest.append(Label(str(step)))
    expected = str(error.get("ctx", {}).get("expected", ""))
    return Fault(tuple(rest), error["type"], error["msg"], expected, error["input"])


def _holds(value: Any, step: str | int) -> bool:
    if isinstance(step, int):
        return isinstance(value, list) and step < len(value)
    return isinstance(value, dict) and step in value


def _find(errors: list[Fault], path: tuple[str | int, ...]) -> _Finding:
    """Return what is wrong, of all the errors at and below ``path``."""
    here = next((error for error in errors if not error.rest), None)
    if here is not None:
        return _Finding(path, describe(here, path))
    head = errors[0].rest[0]
    if not isinstance(head, Label):
        return _find(_below(errors, head), (*path, head))
    branches = _branches(errors)
    alive = {label: below for label, below in branches.items() if not _is_other(below)}
    if alive:
        # The branch with the fewest faults, of these the one that fits the deepest.
        chosen = min(alive.values(), key=lambda below: (len(below), -_depth(below)))
        return _find(chosen, path)
    return _no_branch(branches, path)


def _depth(errors: list[Fault]) -> int:
    return max(sum(not isinstance(step, Label) for step in error.rest) for error in errors)


def _below(errors: list[Fault], head: Step) -> list[Fault]:
    return [
        Fault(error.rest[1:], error.kind, error.message, error.expected, error.value)
        for error in errors
        if error.rest[0] == head
    ]


def _branches(errors: list[Fault]) -> dict[Step, list[Fault]]:
    labels = dict.fromkeys(error.rest[0] for error in errors if error.rest)
    return {label: _below(errors, label) for label in labels}


def _is_other(errors: list[Fault]) -> bool:
    """Whether the errors of a branch say that the user meant another one."""
    if any(error.of_type or error.of_tag for error in errors):
        return True
    if not all(error.rest and isinstance(error.rest[0], Label) for error in errors):
        return False
    return all(_is_other(below) for below in _branches(errors).values())


def _no_branch(branches: dict[Step, list[Fault]], path: tuple[str | int, ...]) -> _Finding:
    """Return what is wrong with a value that no branch of a union is for."""
    tags = [error for error in _flat(branches) if error.of_tag]
    if tags:
        path = (*path, str(tags[0].rest[0]))
        choices = dict.fromkeys(f'"{word}"' for error in tags for word in words(error))
        plain = listed(list(choices)) if isinstance(tags[0].value, str) else known_text(path)
        return _Finding(path, f"must be {plain}, not {shown(tags[0].value)}.")
    found = {label: error for label, below in branches.items() for error in below if error.of_type}
    kinds = dict.fromkeys(expected_text(error, label) for label, error in found.items())
    [*_, last] = found.values()
    plain = known_text(path) or listed(list(kinds))
    return _Finding(path, f"must be {plain}, not {shown(last.value)}.")


def _flat(branches: dict[Step, list[Fault]]) -> list[Fault]:
    """Return all errors, without the labels of branches within branches."""
    found = []
    for below in branches.values():
        if all(error.rest and isinstance(error.rest[0], Label) for error in below):
            found += _flat(_branches(below))
        else:
            found += below
    return found
