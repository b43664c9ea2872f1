"""What a person is told of one of pydantic's errors: what must stand there, and what does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from sglang.srt.blendserve.batch_file.line_check import show, type_name

TAGS = ("role", "type")
"""Fields that say which branch of a union an object is meant for."""

_EXPECTED = {
    # the last two fields of a path, [] for an item -> what must stand there
    "messages[]": 'an object like {"role": "user", "content": "..."}',
    "messages.content": "a string or an array of content parts",
    "messages.role": '"user", "system", "assistant" or another role',
    "content[]": 'an object like {"type": "text", "text": "..."}',
    "content.text": "a string",
    "content.type": '"text", "image_url" or another type of part',
    "content.image_url": 'an object like {"url": "..."}',
    "image_url.url": "a string",
    "tools[]": 'an object like {"type": "function", "function": {...}}',
    "tools.function": 'an object like {"name": "...", "parameters": {...}}',
    "tool_calls.function": 'an object like {"name": "...", "arguments": "..."}',
    "function.name": "a string",
    "tool_choice": '"auto", "required", "none" or {"type": "function", "function": {...}}',
    "tool_choice.function": 'an object like {"name": "..."}',
    "response_format": 'an object like {"type": "json_object"}',
    "response_format.type": '"text", "json_object", "json_schema" or "structural_tag"',
    "json_schema.name": "a string",
    "prompt": "a string, an array of strings, or token ids",
    "input": "a string, an array of strings, or token ids",
}

_KINDS = {
    "string": "a string",
    "bool": "a boolean",
    "int": "an integer",
    "float": "a number",
    "list": "an array",
    "tuple": "an array",
    "dict": "an object",
    "model": "an object",
    "model_attributes": "an object",
    "none_required": "null",
}


@dataclass(frozen=True, slots=True)
class Label:
    """A branch of a union, in the place of a pydantic error."""

    name: str


Step = str | int | Label


@dataclass(frozen=True, slots=True)
class Fault:
    """One of pydantic's errors: the rest of its place, seen from where the search stands."""

    rest: tuple[Step, ...]
    kind: str
    message: str
    expected: str
    value: Any

    @property
    def of_type(self) -> bool:
        """Whether the value here is of another type than this branch takes."""
        return not self.rest and _says_expected(self)

    @property
    def of_tag(self) -> bool:
        """Whether the object here is tagged as one for another branch."""
        tagged = len(self.rest) == 1 and self.rest[0] in TAGS
        return tagged and self.kind in ("literal_error", "value_error")


def listed(choices: list[str]) -> str:
    """Return several choices as one text, the last behind an "or"."""
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last


def words(error: Fault) -> list[str]:
    """Return the values that a tag may have, of an error about it."""
    found = re.findall(r"'([\w-]+)'", error.expected or error.message)
    return [word for word in found if word not in TAGS]


def known_text(path: tuple[str | int, ...]) -> str | None:
    """Return what must stand at a path, where a person can say it better than the schema."""
    names = [step for step in path if isinstance(step, str)]
    if path and isinstance(path[-1], int):
        return _EXPECTED.get(f"{names[-1]}[]")
    return _EXPECTED.get(".".join(names[-2:]))


def describe(error: Fault, path: tuple[str | int, ...]) -> str:
    """Return what is wrong at a path, and what must stand there, to go behind its name."""
    known = known_text(path)
    if error.kind == "missing":
        return f"is missing or null{f'; it must be {known}' if known else ''}."
    if _says_expected(error):
        return f"must be {known or expected_text(error, None)}, not {shown(error.value)}."
    text = error.message.removeprefix("Value error, ").removesuffix(".")
    return f"is not valid: {text}." if path else f"{text}."


def _says_expected(error: Fault) -> bool:
    return error.kind == "literal_error" or _stem(error) in _KINDS


def _stem(error: Fault) -> str:
    return re.sub("_(type|parsing|parsing_size|from_float|sub_type)$", "", error.kind)


def expected_text(error: Fault, label: Step | None) -> str:
    """Return what a value must be; ``label``: the branch, which tells of the items of an array."""
    if error.kind == "literal_error":
        choices = error.expected.replace(" or ", ", ").replace("'", '"')
        return f"one of {choices}" if "," in choices else choices
    kind = _KINDS[_stem(error)]
    name = label.name if isinstance(label, Label) else ""
    if kind == "an array":
        inside = {"str": "strings", "nullable[str]": "strings", "int": "integers"}
        inside["list[int]"] = "arrays of integers"
        items = inside.get(name.removeprefix("list[").removesuffix("]"))
        items = items or ("content parts" if "ContentPart" in name else None)
        return f"{kind} of {items}" if items else kind
    return kind


def shown(value: Any) -> str:
    """Return a value for a message: a scalar as it stands, of all else the type."""
    if isinstance(value, str):
        return show(value)
    if isinstance(value, bool | int | float):
        return show(orjson.dumps(value).decode())[1:-1]
    return type_name(value)
