"""Token ids of many texts as a Hugging Face tokenizer has them, by the shortest way that has.

`FastEncoding` tokenizes what stands between special tokens once, however many texts share it: a
system prompt, a list of tools, the markers of a chat template. And it asks `tokenizers` for no
offsets, which take a quarter of the time. Both only where the tokenizer's own parts allow it, and
where the first texts come out equal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

_KEPT_TOKENS = 1 << 20
"""Token ids of pieces that are kept: about 36 bytes each."""

_COMPARED = 64
"""Texts that are tokenized both ways before only one is taken."""

_ALONE = frozenset((
    "ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit",
    "BertPreTokenizer", "CharDelimiterSplit", "UnicodeScripts",
))  # fmt: skip
"""Pre-tokenizers that treat a piece alike wherever it stands, which Metaspace does not."""


class FastEncoding:
    """The texts of one tokenizer under one choice of ``add_special_tokens``."""

    def __init__(self, tokenizer: Any, *, add_special_tokens: bool) -> None:
        """Find out what ways there are.

        Args:
            tokenizer: a Hugging Face tokenizer, fast or not.
            add_special_tokens: whether to put BOS and the like around texts.
        """
        self._tokenizer = tokenizer
        self._special = add_special_tokens
        self._backend = _plain_backend(tokenizer)
        self._cut = None if self._backend is None else _cuts(self._backend, add_special_tokens)
        self._to_compare = _COMPARED
        self._pieces: dict[str, list[int]] = {}
        self._kept = 0

    @property
    def in_pieces(self) -> bool:
        """Whether texts are cut at special tokens."""
        return self._cut is not None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text.

        Raises:
            Exception: the tokenizer does not take one of them.
        """
        if self._backend is None:
            return self._plainly(texts)
        found = self._in_pieces(texts) if self._cut is not None else self._quickly(texts)
        if self._to_compare > 0:
            self._to_compare -= len(texts)
            plainly = self._plainly(texts)
            if found != plainly:
                self._backend = None
                return plainly
        return found

    def _plainly(self, texts: list[str]) -> list[list[int]]:
        given = {"add_special_tokens": self._special, "return_attention_mask": False}
        found: list[list[int]] = self._tokenizer(texts, **given)["input_ids"]
        return found

    def _quickly(self, texts: list[str]) -> list[list[int]]:
        assert self._backend is not None
        found = self._backend.encode_batch_fast(texts, add_special_tokens=self._special)
        return [one.ids for one in found]

    def _in_pieces(self, texts: list[str]) -> list[list[int]]:
        """Tokenize the pieces that are not known, and put all together."""
        divided = [list(self._divide(text)) for text in texts]
        new = dict.fromkeys(p for p in chain.from_iterable(divided) if p not in self._pieces)
        if new:
            self._keep(zip(new, self._quickly(list(new)), strict=True))
        found = [
            pieces[0] if len(pieces) == 1 else list(chain.from_iterable(pieces))
            for pieces in ([self._pieces[piece] for piece in one] for one in divided)
        ]
        self._forget()
        return found

    def _divide(self, text: str) -> Iterator[str]:
        assert self._cut is not None
        start = 0
        for match in self._cut.finditer(text):
            if match.start() > start:
                yield text[start : match.start()]
            yield match.group()
            start = match.end()
        if start < len(text):
            yield text[start:]

    def _keep(self, found: Iterable[tuple[str, list[int]]]) -> None:
        for piece, ids in found:
            self._pieces[piece] = ids
            self._kept += len(ids)

    def _forget(self) -> None:
        """Let the oldest pieces go, shared ones too: these come back with the next text."""
        while self._kept > _KEPT_TOKENS:
            piece = next(iter(self._pieces))
            self._kept -= len(self._pieces.pop(piece))


def _plain_backend(tokenizer: Any) -> Any:
    """Return the `tokenizers.Tokenizer` if nothing but it makes the ids, else None."""
    backend: Any = getattr(tokenizer, "_tokenizer", None)
    if not getattr(tokenizer, "is_fast", False) or not hasattr(backend, "encode_batch_fast"):
        return None
    method = getattr(type(tokenizer), "_encode_plus", None)
    module = getattr(method, "__module__", "")
    if module != "transformers.tokenization_utils_tokenizers" or "_encode_plus" in vars(tokenizer):
        return None
    if getattr(tokenizer, "split_special_tokens", False) or backend.encode_special_tokens:
        return None
    limited = backend.truncation is not None or backend.padding is not None
    return None if limited else backend


def _cuts(backend: Any, add_special_tokens: bool) -> re.Pattern[str] | None:
    """Return what matches the special tokens at which a text may be cut, None if at none.

    `tokenizers` itself first cuts a text there, and then treats each piece alone.
    """
    post = backend.post_processor
    if add_special_tokens and post is not None and post.num_special_tokens_to_add(False):
        return None
    parts = json.loads(backend.to_str())
    if not _treats_alone(parts.get("pre_tokenizer")) or (parts["model"].get("dropout") is not None):
        return None
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None
    raw = {token.content for token in added if token.content and not token.normalized}
    if not raw:
        return None
    # The longest first, as `tokenizers` takes the longest of those that begin at a place.
    longest_first = sorted(raw, key=lambda content: (-len(content), content))
    return re.compile("|".join(map(re.escape, longest_first)))


def _treats_alone(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    if pre_tokenizer["type"] == "Sequence":
        return all(map(_treats_alone, pre_tokenizer["pretokenizers"]))
    return pre_tokenizer["type"] in _ALONE
