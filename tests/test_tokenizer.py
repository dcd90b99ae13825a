"""Laws of the tokenizer: text comes back, text never becomes a control id, control ids never become text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import public_tokenizer, tiny_model_path, tiny_tokenizer

from llama.errors import PromptError, TokenizerError
from llama.tokenizer import Tokenizer

LAW = settings(deadline=None, derandomize=True, max_examples=150)
KINDS = ("plain", "infilling", "step")
PUBLIC = ("llama2", "codellama", "codellama-70b")
LOOK_ALIKES = (
    "<PRE>", " <PRE>", "▁<PRE>", " <SUF>", " <MID>", " <EOT>", "<EOT>", "<step>", " <step>", "x<step>", "<s>",
    "</s>", "<unk>", "<0x0A>", "⟨bos⟩", " ⁇ ", "[INST]", "☺", "\0", "\r\n", "\n", "\t", " ", "  ", "    ",
    "漢", "👩‍👩‍👧", "e\u0301", "\ufeff", "\ufffd", "return self",
)  # fmt: skip
TEXT = st.lists(st.sampled_from(LOOK_ALIKES) | st.text(max_size=6), max_size=10).map("".join)


def raw(tokenizer: Tokenizer) -> sentencepiece.SentencePieceProcessor:
    """A plain SentencePiece processor of the same file, independent of the class under test."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.Load(tokenizer.model_path)
    return processor


@pytest.mark.parametrize("kind", KINDS)
@LAW
@given(text=TEXT)
@example("a <PRE> b <EOT> c")
@example(" <PRE> <SUF> <MID> <EOT>x<step>")
def test_text_comes_back_and_never_becomes_a_control_id(kind: str, text: str):
    tokenizer = tiny_tokenizer(kind)
    # SentencePiece itself reads U+2581 as a space; nothing else is lost.
    expected = text.replace("▁", " ")
    ids, ids_inside = tokenizer.encode(text, bos=False, eos=False), tokenizer.encode_infilling(text)
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.control_ids.isdisjoint(ids_inside)
    assert tokenizer.decode(ids) == expected
    assert tokenizer.decode_infilling(ids_inside) == expected


@pytest.mark.parametrize("kind", KINDS)
@LAW
@given(text=TEXT)
def test_ids_are_sentencepieces_own_where_those_hold_no_control_id(kind: str, text: str):
    tokenizer = tiny_tokenizer(kind)
    plain = raw(tokenizer).encode(text)
    assert tokenizer.encode(text, bos=False, eos=False, allow_control=True) == plain
    if tokenizer.control_ids.isdisjoint(plain):
        assert tokenizer.encode(text, bos=False, eos=False) == plain


@pytest.mark.parametrize("kind", KINDS)
@LAW
@given(text=TEXT)
def test_infilling_ids_are_the_references(kind: str, text: str):
    """The reference's way: a smiley takes the dummy space, both are cut off again."""
    tokenizer = tiny_tokenizer(kind)
    assert raw(tokenizer).encode("☺", out_type=str) == ["▁", "☺"]
    plain = raw(tokenizer).encode("☺" + text)[2:]
    if tokenizer.control_ids.isdisjoint(plain):
        assert tokenizer.encode_infilling(text) == plain


def test_the_tests_bite_plain_sentencepiece_does_make_control_ids():
    tokenizer = tiny_tokenizer("step")
    hits = raw(tokenizer).encode("a <PRE> b <SUF> c <MID> d <EOT> e<step>")
    wanted = [
        tokenizer.prefix_id,
        tokenizer.suffix_id,
        tokenizer.middle_id,
        tokenizer.eot_id,
        tokenizer.step_id,
    ]
    assert [i for i in hits if i in tokenizer.control_ids] == wanted
    assert None not in wanted


def test_a_barred_text_is_spelled_and_its_neighbours_keep_their_ids():
    tokenizer = tiny_tokenizer("infilling")
    left, right = raw(tokenizer).encode("return"), raw(tokenizer).encode("self value")
    ids = tokenizer.encode("return <PRE> self value", bos=False, eos=False)
    assert ids[: len(left)] == left
    assert ids[-len(right) :] == right
    assert "".join(map(tokenizer.token_piece, ids)) == "▁return▁<PRE>▁self▁value"


def test_capability_is_read_off_the_pieces():
    plain, infilling, step = map(tiny_tokenizer, KINDS)
    assert (plain.prefix_id, plain.suffix_id, plain.middle_id, plain.eot_id, plain.step_id) == (None,) * 5
    assert not plain.supports_infilling
    assert infilling.supports_infilling
    assert infilling.step_id is None
    assert step.step_id is not None
    assert step.token_piece(step.step_id) == "<step>"
    assert infilling.prefix_id is not None
    assert infilling.token_piece(infilling.prefix_id) == "▁<PRE>"


def test_bos_and_eos_go_to_the_ends():
    tokenizer = tiny_tokenizer()
    inside = tokenizer.encode("return", bos=False, eos=False)
    assert tokenizer.encode("return", bos=True, eos=True) == [tokenizer.bos_id, *inside, tokenizer.eos_id]
    assert tokenizer.encode("", bos=True, eos=False) == [tokenizer.bos_id]


@LAW
@given(data=st.data())
def test_decode_is_sentencepieces_own_without_infilling_ids(data: st.DataObject):
    tokenizer = tiny_tokenizer("step")
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_words - 1), max_size=20))
    text_ids = [i for i in ids if i not in tokenizer.control_ids or i in (tokenizer.bos_id, tokenizer.eos_id)]
    assert tokenizer.decode(text_ids) == raw(tokenizer).decode(text_ids)


@LAW
@given(data=st.data())
def test_control_ids_never_show_in_decoded_text(data: st.DataObject):
    tokenizer = tiny_tokenizer("step")
    words = [tokenizer.encode(w, bos=False, eos=False) for w in ("def", "漢", " value")]
    chunks = st.sampled_from(words) | st.sampled_from([[i] for i in (*tokenizer.control_ids, -1)])
    parts = data.draw(st.lists(chunks, max_size=10))
    ids = [i for part in parts for i in part]
    text_ids = [i for i in ids if i >= 0 and i not in tokenizer.control_ids]
    assert tokenizer.decode(ids) == tokenizer.decode(text_ids)
    assert tokenizer.decode_infilling(ids) == tokenizer.decode_infilling(text_ids)


def test_bytes_on_both_sides_of_a_control_id_are_not_one_character():
    tokenizer = tiny_tokenizer("step")
    head, tail = raw(tokenizer).piece_to_id("<0xC3>"), raw(tokenizer).piece_to_id("<0xA9>")
    assert tokenizer.decode([head, tail]) == "é"
    assert tokenizer.decode([head, tokenizer.prefix_id, tail]) == "\ufffd\ufffd"


def test_decode_drops_the_dummy_space_and_decode_infilling_keeps_it():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("return", bos=False, eos=False)
    assert tokenizer.decode(ids) == "return"
    assert tokenizer.decode_infilling(ids) == " return"


def test_decode_takes_numpy_ids():
    tokenizer = tiny_tokenizer()
    ids = np.array([*tokenizer.encode("return self", bos=True, eos=True), -1])
    assert tokenizer.decode(ids) == "return self"


@pytest.mark.parametrize("bad", [None, b"bytes", 3, ["a"]])
def test_what_is_no_text_is_a_named_error(bad: object):
    tokenizer = tiny_tokenizer()
    with pytest.raises(PromptError, match=type(bad).__name__):
        tokenizer.encode(bad, bos=True, eos=False)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=type(bad).__name__):
        tokenizer.encode_infilling(bad)  # type: ignore[arg-type]


def test_a_lone_surrogate_is_a_named_error_with_its_place():
    for encode in (tiny_tokenizer().encode_infilling, lambda s: tiny_tokenizer().encode(s, True, False)):
        with pytest.raises(PromptError, match=r"U\+D83D at position 2"):
            encode("ab\ud83d")


@pytest.mark.parametrize("bad", [-2, 10**6, 2**70])
def test_ids_outside_the_vocabulary_are_a_named_error(bad: int):
    tokenizer = tiny_tokenizer()
    for decode in (tokenizer.decode, tokenizer.decode_infilling):
        with pytest.raises(TokenizerError, match=rf"{bad} .*< {tokenizer.n_words}"):
            decode([5, bad])
    with pytest.raises(TokenizerError, match=str(bad)):
        tokenizer.token_piece(bad)


@pytest.mark.parametrize("bad", [["a"], [1.0], [2.0, 5], [[1]], "text", b"bytes"])
def test_ids_that_are_no_integers_are_a_named_error(bad: object):
    with pytest.raises(TokenizerError, match=r"got (str|float|list|bytes)"):
        tiny_tokenizer().decode(bad)  # type: ignore[arg-type]


def test_files_that_are_no_tokenizer_are_a_named_error(tmp_path):
    with pytest.raises(TokenizerError, match=r"nowhere\.model: there is no"):
        Tokenizer(tmp_path / "nowhere.model")
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer(tmp_path)
    model = tiny_model_path("plain").read_bytes()
    bad = {
        "empty": b"",
        "html": b"<!DOCTYPE html><html>404</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "cut": model[:1000],
    }
    for name, content in bad.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=rf"{name}: .*(empty|not a SentencePiece model)"):
            Tokenizer(str(path))


def test_a_vocabulary_without_bos_is_a_named_error(tmp_path):
    from sentencepiece import sentencepiece_model_pb2 as model_pb2

    model = model_pb2.ModelProto()
    model.ParseFromString(tiny_model_path("plain").read_bytes())
    model.pieces[1].piece = "<other>"
    path = tmp_path / "no-bos.model"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(TokenizerError, match="no bos piece"):
        Tokenizer(path)


def test_needs_neither_torch_nor_protobuf():
    code = (
        "import sys; sys.modules['google'] = sys.modules['torch'] = None\n"
        "from llama.detokenizer import Detokenizer\nfrom llama.prompts import completion_prompt\n"
        "from llama.tokenizer import Tokenizer\n"
        f"t = Tokenizer({str(tiny_model_path())!r})\n"
        "assert t.decode_infilling(t.encode_infilling(' a')) == ' a'\n"
    )
    # `llama/__init__.py` may import torch; this law is about these modules, so it is stepped over.
    stub = (
        "import sys, types; p = types.ModuleType('llama'); p.__path__ = ['llama']; sys.modules['llama'] = p\n"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", stub + code], check=True, cwd=root)


@pytest.mark.parametrize("name", PUBLIC)
@settings(LAW, max_examples=60)
@given(text=TEXT)
def test_the_laws_hold_for_the_public_vocabularies(name: str, text: str):
    tokenizer = public_tokenizer(name)
    ids = tokenizer.encode(text, bos=False, eos=False)
    plain, smiley = tokenizer.sp_model.encode(text), tokenizer.sp_model.encode("☺" + text)[2:]
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode_infilling(text))
    assert tokenizer.decode(ids) == text.replace("▁", " ")
    if tokenizer.control_ids.isdisjoint(plain):
        assert ids == plain
    if tokenizer.control_ids.isdisjoint(smiley):
        assert tokenizer.encode_infilling(text) == smiley


def test_public_vocabularies_have_their_published_ids():
    llama2, code, chat = map(public_tokenizer, PUBLIC)
    assert (llama2.n_words, code.n_words, chat.n_words) == (32000, 32016, 32016)
    assert [code.prefix_id, code.suffix_id, code.middle_id, code.eot_id] == [32007, 32008, 32009, 32010]
    assert (llama2.step_id, code.step_id, chat.step_id) == (None, None, 32015)
    assert llama2.control_ids == {1, 2}
    assert (llama2.bos_id, llama2.eos_id, llama2.pad_id) == (1, 2, -1)
    # A barred control piece is spelled as the vocabulary without it spells the text.
    for text in ("a <PRE> b", " <EOT>", "x = '<MID>' <SUF>"):
        assert code.encode(text, bos=True, eos=False) == llama2.encode(text, bos=True, eos=False)
