"""Texts tokenized together, in pieces and later, have the token ids they have alone.

pytest test/requests/test_encoding.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.requests import fast_encoding
from sglang.srt.blendserve.requests.encoding import BatchEncoder, EncodedLater
from sglang.srt.blendserve.requests.fast_encoding import FastEncoding

MARKERS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "<reponame>", "|>", "<")
WORDS = (
    "hello",
    " world",
    "\n",
    "  ",
    " ",
    "\t",
    "'s",
    "12345",
    "é",
    "天気",
    "ZWJ\u200d",
    "\r\n",
    "a b",
    "",
)

TEXT = st.lists(st.sampled_from(MARKERS + WORDS) | st.text(max_size=4), max_size=12).map("".join)


def load(model_path: Path) -> Any:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Any:
    """SmolLM2's."""
    return load(model_path)


@pytest.fixture(scope="module")
def both(model_path: Path) -> tuple[Any, Any, BatchEncoder]:
    """A tokenizer, and one whose ``encode`` is another's."""
    odd = load(model_path)
    return load(model_path), odd, BatchEncoder(odd)


@given(st.lists(TEXT, min_size=1, max_size=5), st.booleans())
def test_pieces_have_the_ids_of_whole_texts(
    tokenizer: Any, texts: list[str], special: bool
) -> None:
    way = FastEncoding(tokenizer, add_special_tokens=special)
    assert way.in_pieces
    way._to_compare = 0  # so that nothing but the pieces answers
    wanted = [tokenizer.encode(text, add_special_tokens=special) for text in texts]
    assert way.encode(texts) == wanted
    assert way.encode(texts[::-1]) == wanted[::-1]


def test_what_would_come_out_otherwise_is_tokenized_plainly(tokenizer: Any) -> None:
    way = FastEncoding(tokenizer, add_special_tokens=False)
    way._quickly = lambda texts: [[7]] * len(texts)  # type: ignore[method-assign]
    assert way.encode(["one<|im_end|>two"]) == [tokenizer.encode("one<|im_end|>two")]
    assert way.encode(["three"]) == [tokenizer.encode("three")]


def test_a_text_is_not_cut_where_its_pieces_depend_on_their_place(model_path: Path) -> None:
    from tokenizers import AddedToken, pre_tokenizers, processors

    metaspace, stripping, with_bos = load(model_path), load(model_path), load(model_path)
    metaspace._tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    stripping._tokenizer.add_special_tokens([AddedToken("<strip>", lstrip=True, special=True)])
    with_bos._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    for odd in (metaspace, stripping, with_bos):
        way = FastEncoding(odd, add_special_tokens=True)
        assert not way.in_pieces
        assert way.encode(["a b <|im_end|> c"]) == [odd("a b <|im_end|> c")["input_ids"]]
    assert FastEncoding(with_bos, add_special_tokens=False).in_pieces


def test_pieces_are_forgotten(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_encoding, "_KEPT_TOKENS", 20)
    way = FastEncoding(tokenizer, add_special_tokens=False)
    texts = [f"shared text<|im_end|>number {index} of them" for index in range(30)]
    for text in texts:
        assert way.encode([text]) == [tokenizer.encode(text)]
        assert sum(map(len, way._pieces.values())) == way._kept <= 20


@given(st.lists(st.tuples(TEXT, st.sampled_from((None, False, True))), min_size=1, max_size=4))
def test_what_is_encoded_later_is_what_it_stands_for(
    both: tuple[Any, Any, BatchEncoder], given_: list[tuple[str, bool | None]]
) -> None:
    plain, odd, encoder = both
    long = [
        (text + " and more than sixty-four characters, so that it waits" * 2, s)
        for text, s in given_
    ]
    options = [{} if s is None else {"add_special_tokens": s} for _, s in long]
    wanted = [plain.encode(text, **o) for (text, _), o in zip(long, options, strict=True)]
    later = [odd.encode(text, **o) for (text, _), o in zip(long, options, strict=True)]
    assert all(isinstance(one, EncodedLater) for one in later)
    joined = later[0] + later[-1]
    in_front = [1, 2] + odd.encode(long[0][0], **options[0])  # noqa: RUF005 - its __radd__
    looked_at = odd.encode(long[0][0], **options[0])
    assert (looked_at[0], looked_at[1:], len(looked_at)) == (
        wanted[0][0], wanted[0][1:], len(wanted[0]),
    )  # fmt: skip
    encoder.encode([*later, joined, in_front])
    assert [list(one) for one in later] == wanted
    assert joined == wanted[0] + wanted[-1]
    assert in_front == [1, 2, *wanted[0]]
    assert odd.encode("short") == plain.encode("short")
    assert type(odd.encode("short")) is list
