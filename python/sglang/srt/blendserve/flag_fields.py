"""Command-line flags and environment variables made from the fields of a dataclass.

A settings class gives each field its meaning with `flag` and has one `Flags`, which says how the
flags are called::

    @dataclass(frozen=True)
    class Settings:
        tries: int = flag(3, "How often it is tried.", least=1)

        def __post_init__(self) -> None:
            FLAGS.check(self)

    FLAGS = Flags(Settings, "--work-", title="work")
    FLAGS.add_to(parser)
    settings = Settings(**FLAGS.given(parser.parse_args()))

A flag goes before the environment variable, which goes before the default.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from sglang.srt.blendserve.refusals import Refusal

T = TypeVar("T")


def flag(
    default: T | None = None,
    help: str = "",
    *,
    factory: Callable[[], T] | None = None,
    shown: str | None = None,
    name: str | None = None,
    choices: Sequence[str] = (),
    least: float | None = None,
) -> T:
    """Return a dataclass field that is also a command-line flag.

    Args:
        default: its default, whose type is the flag's.
        help: what it does, in a full sentence.
        factory: makes the default where it depends on the machine, in place of ``default``.
        shown: the default in the words of ``--help``, where its value would not teach.
        name: the flag's name behind the prefix, if not the field's.
        choices: the values it may have, empty for any.
        least: smallest number taken.
    """
    about = {
        "help": help,
        "shown": shown if shown is not None else default,
        "name": name,
        "choices": choices,
        "least": least,
    }
    if factory is not None:
        return field(default_factory=factory, metadata=about)
    return field(default=default, metadata=about)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of one settings class.

    Attributes:
        settings: a dataclass whose fields are all made by `flag`.
        prefix: what every flag begins with, such as ``--batch-``.
        title: heading of the group in ``--help``.
        variables: what the environment variables begin with, None when there are none.
    """

    settings: type
    prefix: str
    title: str
    variables: str | None = None

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add a group with all flags; one that is not given has the value None."""
        group = parser.add_argument_group(self.title)
        for one in self._fields():
            about = f"default: {one.metadata['shown'] or 'none'}"
            if self.variables is not None:
                about += f"; environment: {self.variable_name(one.name)}"
            group.add_argument(
                self.flag_name(one.name),
                dest=self._dest(one.name),
                type=_kind(one),
                choices=one.metadata["choices"] or None,
                help=f"{one.metadata['help']} ({about})".replace("%", "%%"),
            )

    def given(self, args: argparse.Namespace | None = None) -> dict[str, Any]:
        """Return the values of the fields that the command line or the environment sets.

        Args:
            args: a parsed command line, None for the environment alone.

        Raises:
            Refusal: an environment variable is not of its field's type.
        """
        values: dict[str, Any] = {}
        for one in self._fields():
            value = getattr(args, self._dest(one.name), None)
            if value is None and self.variables is not None:
                value = self._from_environment(one)
            if value is not None:
                values[one.name] = value
        return values

    def check(self, settings: object) -> None:
        """Check the bounds and choices of all fields.

        Raises:
            Refusal: a value is out of bounds; the message names the flag and the value.
        """
        for one in self._fields():
            value, about = getattr(settings, one.name), one.metadata
            if about["choices"] and value not in about["choices"]:
                raise self.refusal(settings, one.name, f"choose from {', '.join(about['choices'])}")
            if about["least"] is not None and not value >= about["least"]:
                raise self.refusal(settings, one.name, f"it must be at least {about['least']}")

    def refusal(self, settings: object, name: str, reason: str) -> Refusal:
        """Return an error that names a field's flag and its value, and says what is wrong."""
        value = getattr(settings, name)
        shown = repr(value) if isinstance(value, str) else value
        return Refusal(f"{self.flag_name(name)} is {shown}; {reason}")

    def names(self) -> list[str]:
        """Return the names of the fields."""
        return [one.name for one in self._fields()]

    def flag_name(self, name: str) -> str:
        """Return the flag of the field ``name``, such as ``--batch-max-requests``."""
        return self.prefix + self._behind_prefix(name).replace("_", "-")

    def variable_name(self, name: str) -> str:
        """Return the environment variable of the field ``name``."""
        assert self.variables is not None
        return self.variables + self._behind_prefix(name).upper()

    def _behind_prefix(self, name: str) -> str:
        return next(one.metadata["name"] or name for one in self._fields() if one.name == name)

    def _dest(self, name: str) -> str:
        return self.prefix.strip("-").replace("-", "_") + "_" + name

    def _fields(self) -> Iterator[Field[Any]]:
        yield from fields(self.settings)

    def _from_environment(self, one: Field[Any]) -> Any:
        text = os.environ.get(self.variable_name(one.name))
        if not text:
            return None
        try:
            return _kind(one)(text)
        except ValueError:
            message = f"{self.variable_name(one.name)} is {text!r}; it must be a number"
            raise Refusal(message) from None


def _kind(one: Field[Any]) -> Callable[[str], Any]:
    """Return the type of a field, which is that of its default."""
    return type(one.default_factory() if callable(one.default_factory) else one.default)
