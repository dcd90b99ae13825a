"""Laws of the tokenizer files that `convert` writes: transformers gives the ids that SentencePiece gives."""

from __future__ import annotations

import functools
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conversions import (
    WIDE,
    to,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ranks import ROOT
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import public_tokenizer, tiny_model_path, tiny_tokenizer

GOLDEN_PREFIX = (
    "822 3349 29918 5464 29918 294 18869 29898 29879 29901 851 29897 1599 851 29901 13 1678 9995 29871"
)


GOLDEN_SUFFIX = "13 1678 736 1121 13"


PREFIX, SUFFIX = 'def remove_non_ascii(s: str) -> str:\n    """ ', "\n    return result\n"


def ids(text: str) -> list[int]:
    return [int(each) for each in text.split()]


# Of this process: another may be using its own at the same time.
_folders: list[Path] = []


@functools.cache
def with_public_tokenizer(name: str) -> Path:
    """A tiny model of that vocabulary, converted."""
    tokenizer = public_tokenizer(name)
    folder = Path(tempfile.mkdtemp(prefix="llama-converted-"))
    _folders.append(folder)
    params = {**SHAPE, "dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "multiple_of": 8}
    weights = random_weights(params, tokenizer.n_words)
    save_checkpoint(folder / "meta", params, weights, Path(tokenizer.model_path))
    to("hf", folder / "meta", folder / "hf")
    shutil.rmtree(folder / "meta")
    return folder / "hf"


@pytest.fixture(scope="module", autouse=True)
def _no_folders_left() -> Iterator[None]:
    yield
    while _folders:
        shutil.rmtree(_folders.pop(), ignore_errors=True)
    with_public_tokenizer.cache_clear()


@functools.cache
def theirs_of(name: str, auto: bool) -> Any:
    from transformers import AutoTokenizer, CodeLlamaTokenizer

    folder = with_public_tokenizer(name)
    return (AutoTokenizer if auto else CodeLlamaTokenizer).from_pretrained(folder)


@pytest.mark.parametrize("name", ["codellama", "codellama-70b"])
@pytest.mark.parametrize("auto", [True, False], ids=["AutoTokenizer", "CodeLlamaTokenizer"])
def test_golden_infilling_ids(name: str, auto: bool) -> None:
    public_tokenizer(name)
    tokenizer = theirs_of(name, auto)
    assert type(tokenizer).__name__.startswith("CodeLlamaTokenizer")
    psm = [1, 32007, *ids(GOLDEN_PREFIX), 32008, *ids(GOLDEN_SUFFIX), 32009]
    spm = [1, 32007, 32008, *ids(GOLDEN_SUFFIX), 32009, *ids(GOLDEN_PREFIX)]
    for _ in range(2):  # a call leaves nothing behind
        assert tokenizer(PREFIX + "<FILL_ME>" + SUFFIX)["input_ids"] == psm
        assert tokenizer(PREFIX, suffix=SUFFIX)["input_ids"] == psm
        assert tokenizer(PREFIX, suffix=SUFFIX, suffix_first=True)["input_ids"] == spm
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert (tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.middle_id) == (32007, 32008, 32009)
    assert tokenizer.eot_id == 32010
    assert tokenizer.model_max_length == 16384


def test_the_70b_step_piece_is_a_special_token() -> None:
    public_tokenizer("codellama-70b")
    tokenizer = theirs_of("codellama-70b", True)
    assert tokenizer.convert_tokens_to_ids("<step>") == 32015
    assert tokenizer("a<step>")["input_ids"][-1] == 32015
    config = json.loads((with_public_tokenizer("codellama-70b") / "generation_config.json").read_text())
    assert config["eos_token_id"] == [2, 32010, 32015]


# Spelled out, these are control tokens to transformers, or a space to SentencePiece.
_NOT_TEXT = ("<s>", "</s>", "<unk>", "<PRE>", "<SUF>", "<MID>", "<EOT>", "<step>", "<FILL_ME>", "▁", "<0x")


def code_like(draw: random.Random) -> str:
    words = [
        "def",
        "return",
        "self",
        "    ",
        "\t",
        "\n",
        "\n\n",
        " ",
        "  ",
        "(",
        ")",
        ":",
        "->",
        "==",
        "0x1F",
        "12345",
    ]
    words += [
        "é",
        "漢字",
        "🙂",
        "ü",
        "#",
        '"""',
        "camelCase",
        "snake_case",
        "<",
        ">",
        "{",
        "}",
        "'",
        "\\n",
        "\r\n",
        "....",
    ]
    words += ["aaaaaaaa", "--------", "        ", "import numpy as np", "ѣ", "‍", "\u0301", "€"]
    return "".join(draw.choices(words, k=draw.randint(0, 40)))


@pytest.mark.parametrize("name", ["codellama", "codellama-70b", "llama2"])
def test_ids_of_text_are_those_of_sentencepiece(name: str) -> None:
    sp = public_tokenizer(name).sp_model
    tokenizer = theirs_of(name, True)
    if name == "llama2":
        assert not hasattr(tokenizer, "prefix_id")
    else:
        # transformers 5 leaves the leading space out before the first infilling (docs/checkpoints.md).
        tokenizer.set_infilling_processor(True)
    draw = random.Random(0)
    texts = [code_like(draw) for _ in range(400)]
    texts += [each * n + "x" for each in " =-#\n\t0a" for n in (2, 3, 5, 7, 16, 17, 31, 64, 119)]
    texts += ["", " ", "  x", "x ", "\n", " \n ", (ROOT / "llama" / "model.py").read_text()]
    for text in texts:
        assert tokenizer(text)["input_ids"] == [1, *sp.encode(text)], repr(text)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40))
@example(text="\x00")
@example(text=" a b")
def test_ids_of_any_text_are_those_of_sentencepiece(text: str) -> None:
    if any(each in text for each in _NOT_TEXT):
        return
    sp = public_tokenizer("llama2").sp_model
    assert theirs_of("llama2", True)(text)["input_ids"] == [1, *sp.encode(text)]


@settings(max_examples=100, deadline=None)
@given(prefix=st.text(max_size=30), suffix=st.text(min_size=1, max_size=30), suffix_first=st.booleans())
@example(prefix="", suffix=" x", suffix_first=False)
@example(prefix=" x", suffix="\n", suffix_first=True)
def test_infilling_ids_of_any_text(prefix: str, suffix: str, suffix_first: bool) -> None:
    """sp0 is the reference's way: encode with a piece in front, and drop it."""
    if any(each in text for each in _NOT_TEXT for text in (prefix, suffix)):
        return
    sp = public_tokenizer("codellama").sp_model
    before, after = sp.encode(prefix), sp.encode("☺" + suffix)[2:]
    if prefix == "":  # transformers puts the dummy space there all the same
        before = [sp.piece_to_id("▁")]
    expected = (
        [1, 32007, 32008, *after, 32009, *before]
        if suffix_first
        else [1, 32007, *before, 32008, *after, 32009]
    )
    found = theirs_of("codellama", True)(prefix, suffix=suffix, suffix_first=suffix_first)["input_ids"]
    assert found == expected


@pytest.mark.parametrize("kind", ["plain", "infilling", "step"])
def test_tiny_vocabularies_too(tmp_path: Path, kind: str) -> None:
    """So that the law is tested without the public tokenizers as well."""
    from transformers import AutoTokenizer

    path = tiny_model_path(kind)
    sp = tiny_tokenizer(kind).sp_model
    weights = random_weights(WIDE, tiny_tokenizer(kind).n_words)
    save_checkpoint(tmp_path / "a", WIDE, weights, path)
    to("hf", tmp_path / "a", tmp_path / "b")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert type(tokenizer).__name__.startswith("CodeLlamaTokenizer") == (kind != "plain")
    if kind != "plain":
        tokenizer.set_infilling_processor(True)
    draw = random.Random(1)
    for text in (code_like(draw) for _ in range(200)):
        assert tokenizer(text)["input_ids"] == [1, *sp.encode(text)], repr(text)
    assert (
        tokenizer.decode(tokenizer("def  f(x):\n    é")["input_ids"], skip_special_tokens=True)
        == "def  f(x):\n    é"
    )
