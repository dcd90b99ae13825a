"""Laws of the tokenizer in a GGUF: the same ids and texts as the SentencePiece model that it was written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import add_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import INFILLING, public_tokenizer, tiny_model_path, tiny_tokenizer

from llama.checkpoint.layouts.gguf_tokenizer import has_tokenizer, tokenizer_model
from llama.checkpoint.weight_files.gguf import open_gguf
from llama.errors import TokenizerError
from llama.prompts import chat_prompt, infilling_prompt
from llama.tokenizer import Tokenizer

KEY = "tokenizer.ggml."
TINY = ("plain", "infilling", "step")
PUBLIC = ("llama2", "codellama", "codellama-70b")
IDS = (
    "bos_id",
    "eos_id",
    "unk_id",
    "pad_id",
    "prefix_id",
    "suffix_id",
    "middle_id",
    "eot_id",
    "step_id",
    "n_words",
)
TRAPS = [
    " <PRE>",
    " <SUF>",
    " <MID>",
    " <EOT>",
    "<step>",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "\u2581",
    "\x00",
    "  ",
]
PIECES = st.one_of(
    st.sampled_from([*TRAPS, "def", "\n", "\t", "é", "漢", "😀", "ﬁ", "e\u0301"]), st.text(max_size=8)
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)


def metadata_of(tokenizer: Tokenizer, place: Path) -> dict[str, Any]:
    """The vocabulary as a file keeps it."""
    writer = gguf.GGUFWriter(place / "x.gguf", "llama")
    add_vocabulary(writer, tokenizer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dict(open_gguf(place / "x.gguf").metadata)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Tokenizer]]:
    """Tokenizers, and what a GGUF made of each."""
    place = tmp_path_factory.mktemp("vocabularies")
    tiny = {kind: tiny_tokenizer(kind) for kind in TINY}
    return {
        kind: (tokenizer, Tokenizer.from_bytes(tokenizer_model(metadata_of(tokenizer, place)), kind))
        for kind, tokenizer in tiny.items()
    }


def assert_alike(tokenizer: Tokenizer, twin: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert twin.encode(text, bos=True, eos=True) == ids
    assert twin.encode_infilling(text) == tokenizer.encode_infilling(text)
    assert twin.sp_model.encode(text) == tokenizer.sp_model.encode(text)
    assert twin.decode(ids) == tokenizer.decode(ids)
    assert twin.decode_infilling(ids[1:]) == tokenizer.decode_infilling(ids[1:])


def assert_same_pieces(tokenizer: Tokenizer, twin: Tokenizer) -> None:
    for name in (*IDS, "control_ids", "supports_infilling", "has_dummy_prefix"):
        assert getattr(twin, name) == getattr(tokenizer, name), name
    for i in range(tokenizer.n_words):
        assert twin.token_piece(i) == tokenizer.token_piece(i)
        assert twin.token_bytes(i) == tokenizer.token_bytes(i)
    if tokenizer.supports_infilling:
        for suffix_first in (False, True):
            prompts = [
                infilling_prompt(each, "def f(x):\n    ", "\n return x <EOT>", suffix_first=suffix_first)
                for each in (tokenizer, twin)
            ]
            assert prompts[0] == prompts[1]
    dialog: Any = [{"role": "user", "content": "Why this?"}]
    assert chat_prompt(tokenizer, dialog) == chat_prompt(twin, dialog)


@pytest.mark.parametrize("kind", TINY)
def test_pieces_and_prompts_are_the_same(twins: Any, kind: str) -> None:
    assert_same_pieces(*twins[kind])


@given(text=TEXTS, kind=st.sampled_from(TINY))
def test_any_text_has_the_same_ids(twins: Any, text: str, kind: str) -> None:
    assert_alike(*twins[kind], text)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_familys_vocabularies_have_the_same_ids(tmp_path: Path, name: str) -> None:
    tokenizer = public_tokenizer(name)
    twin = Tokenizer.from_bytes(tokenizer_model(metadata_of(tokenizer, tmp_path)), name)
    assert_same_pieces(tokenizer, twin)

    @settings(max_examples=40)
    @given(text=TEXTS)
    def alike(text: str) -> None:
        assert_alike(tokenizer, twin, text)

    alike()
    assert_alike(tokenizer, twin, Path(__file__).read_text())


def test_a_tokenizer_is_made_of_bytes_as_of_a_file() -> None:
    path = tiny_model_path()
    made, read = Tokenizer.from_bytes(path.read_bytes(), "x.gguf"), Tokenizer(path)
    assert (made.model_bytes, made.model_path) == (read.model_bytes, "x.gguf")
    assert read.model_bytes == path.read_bytes()
    assert_same_pieces(read, made)
    with pytest.raises(TokenizerError, match=r"^x\.gguf: its tokenizer takes 5,000,000 bytes"):
        Tokenizer.from_bytes(b"x" * 5_000_000, "x.gguf")


@pytest.fixture
def infilling(tmp_path: Path) -> dict[str, Any]:
    return metadata_of(tiny_tokenizer(), tmp_path)


@pytest.mark.parametrize(
    "keys",
    [
        ("prefix_token_id", "suffix_token_id", "middle_token_id", "eot_token_id"),
        ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "eot_token_id"),
    ],
)
def test_infilling_pieces_are_found_by_keys_where_their_names_are_others(
    infilling: dict[str, Any], keys: tuple[str, ...]
) -> None:
    known = tiny_tokenizer()
    tokens = infilling[KEY + "tokens"]
    numbers = [tokens.index(piece.encode()) for piece in INFILLING]
    for i in numbers:
        tokens[i] = b"<|other" + str(i).encode()
    without = Tokenizer.from_bytes(tokenizer_model(infilling), "x")
    assert not without.supports_infilling
    infilling |= {KEY + key: number for key, number in zip(keys, numbers, strict=True)}
    found = Tokenizer.from_bytes(tokenizer_model(infilling), "x")
    assert (found.prefix_id, found.suffix_id, found.middle_id, found.eot_id) == tuple(numbers)
    assert infilling_prompt(found, "a", "b") == infilling_prompt(known, "a", "b")
    # A key of some other use changes nothing: here eot is the end of a sequence.
    del infilling[KEY + keys[0]]
    infilling[KEY + "eot_token_id"] = known.eos_id
    assert not Tokenizer.from_bytes(tokenizer_model(infilling), "x").supports_infilling


def test_flags_of_the_normalizer_are_kept(infilling: dict[str, Any]) -> None:
    infilling[KEY + "add_space_prefix"] = False
    found = Tokenizer.from_bytes(tokenizer_model(infilling), "x")
    assert not found.has_dummy_prefix
    assert found.encode("def x", bos=False, eos=False) == tiny_tokenizer().encode_infilling("def x")


def test_a_padding_that_is_no_mark_for_nothing_is_left_out(infilling: dict[str, Any]) -> None:
    """Converters name eos or unk where a model has none; text that holds its id must stay text."""
    for number in (0, 2, 2**32 - 1):
        infilling[KEY + "padding_token_id"] = number
        assert Tokenizer.from_bytes(tokenizer_model(infilling), "x").pad_id == -1
    infilling[KEY + "token_type"] = infilling[KEY + "token_type"].copy()
    infilling[KEY + "token_type"][300], infilling[KEY + "padding_token_id"] = 3, 300
    assert Tokenizer.from_bytes(tokenizer_model(infilling), "x").pad_id == 300


def test_a_file_without_a_vocabulary_says_so() -> None:
    assert not has_tokenizer({})
    assert not has_tokenizer({KEY + "model": "no_vocab"})


def cut(values: Any) -> Any:
    return values[:-1]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model", "gpt2", "tokenizer.ggml.model is 'gpt2'; this runtime reads 'llama'"),
        ("model", 3, "tokenizer.ggml.model is 3"),
        ("tokens", None, "tokens is missing"),
        ("tokens", [], "tokens is missing"),
        ("tokens", np.zeros(436), "tokens is missing or not a list of texts"),
        ("tokens", lambda old: [*old[:-1], b"<s>"], "piece 435, b'<s>', is the same as 1"),
        ("tokens", lambda old: [*old[:-1], b""], "piece 435, b'', is empty"),
        ("tokens", lambda old: [*old[:-1], b"\xff"], "piece of the vocabulary is not UTF-8"),
        ("tokens", cut, "scores has 436 elements, but there are 435 pieces"),
        ("scores", None, "scores is missing"),
        ("scores", cut, "scores has 435 elements, but there are 436 pieces"),
        ("scores", lambda old: old * np.float32(np.nan), "scores holds NaN"),
        ("token_type", None, "token_type is missing"),
        ("token_type", cut, "token_type has 435 elements"),
        ("token_type", lambda old: old + 5, "is of type 6, not 1 to 6|is of type 7, not 1 to 6"),
        ("bos_token_id", 436, "bos_token_id is 436, but there are 436 pieces"),
        ("bos_token_id", "1", "bos_token_id is '1'; it must be an integer"),
        ("unknown_token_id", -3, "unknown_token_id is -3"),
        ("add_space_prefix", 1, "add_space_prefix is 1; it must be a truth value"),
    ],
)
def test_lists_that_contradict_each_other_are_named(
    infilling: dict[str, Any], key: str, value: Any, words: str
) -> None:
    infilling[KEY + key] = value(infilling[KEY + key]) if callable(value) else value
    if value is None:
        del infilling[KEY + key]
    with pytest.raises(TokenizerError, match=words):
        Tokenizer.from_bytes(tokenizer_model(infilling), "x")


def test_several_unknown_pieces_need_a_key(infilling: dict[str, Any]) -> None:
    types = infilling[KEY + "token_type"] = infilling[KEY + "token_type"].copy()
    types[400] = 2
    assert Tokenizer.from_bytes(tokenizer_model(infilling), "x").unk_id == 0
    del infilling[KEY + "unknown_token_id"]
    with pytest.raises(TokenizerError, match="2 pieces stand for unknown text"):
        tokenizer_model(infilling)
