"""Texts that SGLang's handlers tokenize one by one, tokenized in batches instead.

A handler renders a chat and tokenizes it in one go. `BatchEncoder` takes the place of the
tokenizer's ``encode``: it hands out an `EncodedLater`, which the handler passes on, and many of
these are then tokenized in one call. Whoever looks into one before gets its tokens at once, so it
is never anything but the token ids of its text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

from sglang.srt.blendserve.requests.fast_encoding import FastEncoding

_LEAST_CHARACTERS = 64
"""Shorter texts are tokenized at once, as a list: some of SGLang's parsers ask for the tokens of a
marker and want a list, and there is nothing to gain."""

_SPECIAL = "add_special_tokens"
"""The one option of ``encode`` that texts to be tokenized together may have."""

_Options = tuple[tuple[str, Any], ...]


class EncodedLater(Sequence[int]):
    """The token ids of texts, one after another, each of which may still have to be tokenized."""

    __slots__ = ("_encode", "_ids", "_parts")

    def __init__(
        self,
        parts: list[tuple[str, _Options] | list[int]],
        encode: Callable[..., list[int]],
    ) -> None:
        """Stand for ``parts``.

        Args:
            parts: texts with the options of ``encode``, and token ids.
            encode: the tokenizer's own.
        """
        self._parts, self._encode = parts, encode
        self._ids: list[int] | None = None

    @property
    def texts(self) -> list[tuple[str, _Options]]:
        """What is not tokenized yet, with the options of ``encode``."""
        return [part for part in self._parts if isinstance(part, tuple)]

    def put(self, tokens: Iterable[list[int]]) -> None:
        """Take the token ids of `texts`, one list each."""
        found = iter(tokens)
        self._parts = [next(found) if isinstance(part, tuple) else part for part in self._parts]

    def ids(self) -> list[int]:
        """Return the token ids."""
        if self._ids is None:
            self.put([self._encode(text, **dict(options)) for text, options in self.texts])
            lists = [part for part in self._parts if isinstance(part, list)]
            self._ids = lists[0] if len(lists) == 1 else [token for ids in lists for token in ids]
        return self._ids

    def __len__(self) -> int:
        return len(self.ids())

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self.ids()[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, EncodedLater) else other)

    def __hash__(self) -> int:
        raise TypeError("unhashable, as a list of token ids is")

    def __add__(self, other: EncodedLater | list[int]) -> EncodedLater:
        more = other._parts if isinstance(other, EncodedLater) else [other]
        return EncodedLater([*self._parts, *more], self._encode)

    def __radd__(self, other: list[int]) -> EncodedLater:
        return EncodedLater([other, *self._parts], self._encode)


class BatchEncoder:
    """The ``encode`` of a fast Hugging Face tokenizer, which it takes the place of."""

    def __init__(self, tokenizer: Any) -> None:
        """Take the place of ``tokenizer.encode``."""
        self._encode: Callable[..., list[int]] = tokenizer.encode
        self._ways = {
            special: FastEncoding(tokenizer, add_special_tokens=special)
            for special in (False, True)
        }
        tokenizer.encode = self._later

    def _later(self, text: Any, *arguments: Any, **options: Any) -> Any:
        plain = isinstance(text, str) and not arguments and options.keys() <= {_SPECIAL}
        if not plain or len(text) < _LEAST_CHARACTERS:
            return self._encode(text, *arguments, **options)
        return EncodedLater([(text, tuple(options.items()))], self._encode)

    def encode(self, given: Iterable[EncodedLater]) -> None:
        """Tokenize what is not tokenized yet, each different text once, in as few calls as can be.

        Texts that cannot be tokenized together stay as they are: each fails alone where it is used.
        """
        waiting = [(one, one.texts) for one in given]
        texts: defaultdict[_Options, dict[str, list[int]]] = defaultdict(dict)
        for _, parts in waiting:
            for text, options in parts:
                texts[options][text] = []
        for options, found in texts.items():
            way = self._ways[bool(dict(options).get(_SPECIAL, True))]
            try:
                encoded = way.encode(list(found))
            except Exception:  # whatever one of them raises it raises again alone, where it is used
                return
            found.update(zip(found, encoded, strict=True))
        for one, parts in waiting:
            one.put([texts[options][text] for text, options in parts])
