"""The text of single tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import tiny_tokenizer

from llama.errors import TokenizerError
from llama.serving.http.token_texts import TokenNames, TokenTexts, token_bytes

KINDS = ("plain", "infilling", "step")
IDS = st.lists(st.integers(0, tiny_tokenizer("plain").n_words - 1), max_size=24)


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_of_a_vocabulary_has_a_name_of_its_own(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    names = TokenNames(tokenizer)
    assert len({names[token] for token in range(tokenizer.n_words)}) == tokenizer.n_words


def test_a_name_is_the_text_of_a_piece_the_spelling_of_a_control_id_or_bytes() -> None:
    tokenizer = tiny_tokenizer()
    names = TokenNames(tokenizer)
    assert [names[token] for token in tokenizer.encode("return\n", bos=True, eos=True)] == [
        "<s>", " return", "\n", "</s>",
    ]  # fmt: skip
    assert names[tokenizer.unk_id] == "<unk>"
    assert names[tokenizer.prefix_id] == " <PRE>"
    byte = {value: tokenizer.sp_model.piece_to_id(f"<0x{value:02X}>") for value in (0xE4, ord("("))}
    assert names[byte[0xE4]] == "bytes:\\xe4"
    # The vocabulary also has "(" itself.
    assert names[byte[ord("(")]] == "bytes:\\x28"


@given(ids=IDS, starts=st.booleans(), cuts=st.lists(st.integers(0, 24), max_size=4))
def test_the_texts_of_tokens_joined_are_their_text_however_they_come(ids, starts, cuts) -> None:
    tokenizer = tiny_tokenizer("plain")
    texts = TokenTexts(tokenizer, start_of_text=starts)
    parts, begin = [], 0
    for end in sorted(min(cut, len(ids)) for cut in cuts):
        parts += texts.push(ids[begin:end])
        begin = end
    parts += texts.push(ids[begin:], final=True)
    whole = tokenizer.decode(ids) if starts else tokenizer.decode_infilling(ids)
    if begin < len(ids):
        assert "".join(parts) == whole
    assert len(parts) == len(ids)
    assert whole.startswith("".join(parts[:begin]))


def test_a_character_of_several_bytes_belongs_to_its_last() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode_infilling("a🙂")
    *_, last = TokenTexts(tokenizer, start_of_text=False).push(ids)
    assert last == "🙂"
    assert TokenTexts(tokenizer, start_of_text=False).push(ids[:-1])[-3:] == ["", "", ""]
    assert TokenTexts(tokenizer, start_of_text=False).push(ids[:-1], final=True)[-1] == "\ufffd" * 3


@given(text=st.text(max_size=20).filter(lambda text: "▁" not in text))
def test_the_bytes_of_tokens_joined_are_the_bytes_of_their_text(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.bos_id, *tokenizer.encode_infilling(text)]
    assert b"".join(token_bytes(tokenizer, token) for token in ids) == text.encode()


def test_an_id_outside_the_vocabulary_is_an_error() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(TokenizerError, match="outside"):
        TokenNames(tokenizer)[tokenizer.n_words]
