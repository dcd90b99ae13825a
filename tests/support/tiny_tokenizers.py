"""Tokenizers for tests: small SentencePiece models trained on the spot, and the public ones where given.

Not called `tokenizers.py`: pytest may put this folder on the import path, where that name would hide the
package `tokenizers`, which transformers imports.
"""

from __future__ import annotations

import atexit
import functools
import io
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import sentencepiece

from llama.tokenizer import Tokenizer

INFILLING = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
STEP = "<step>"
VOCAB_SIZE = 420
_SENTENCE = (
    "def return self value list index print range class import none true false step user system result"
    " the model code of a to in is for text token PRE SUF MID EOT INST SYS <s> </s> <a> <b> <step> é ü 漢 字"
)


def shared_data() -> Path | None:
    """The folder with the public tokenizers, None where LLAMA_TEST_DATA is unset."""
    folder = os.environ.get("LLAMA_TEST_DATA")
    return Path(folder) if folder else None


def public_tokenizer(name: str) -> Tokenizer:
    """One of `llama2`, `codellama`, `codellama-70b`; skips the test where it is not there."""
    folder = shared_data()
    if folder is None:
        pytest.skip("LLAMA_TEST_DATA is unset: the folder with the public tokenizers")
    return _load(folder / f"{name}-tokenizer.model")


def tiny_tokenizer(kind: str = "infilling") -> Tokenizer:
    """A trained tokenizer: `plain` (no control pieces), `infilling`, `step` (infilling and `<step>`)."""
    return _load(tiny_model_path(kind))


@functools.cache
def tiny_model_path(kind: str = "infilling") -> Path:
    """The file of `tiny_tokenizer(kind)`, made once per process."""
    pieces = {"plain": (), "infilling": INFILLING, "step": (*INFILLING, STEP)}[kind]
    path = _folder() / f"{kind}.model"
    path.write_bytes(_with_pieces(_trained(), pieces))
    return path


@functools.cache
def _load(path: Path) -> Tokenizer:
    return Tokenizer(path)


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="llama-tokenizers-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def _trained() -> bytes:
    """A BPE model with the settings of Llama's own: identity normalizer, byte fallback, split digits."""
    draw = random.Random(0)
    words = _SENTENCE.split()
    lines = [" ".join(draw.choices(words, k=10)) for _ in range(300)]
    lines += ["    return x(a, b)[0] + 1.5", "0123456789 []()<>/:;,.='\"_-+*#☺" * 4]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _with_pieces(proto: bytes, pieces: tuple[str, ...]) -> bytes:
    """Adds `pieces` as Code Llama has them: ordinary ones of falling score, with those that lead to them."""
    from sentencepiece import sentencepiece_model_pb2 as model_pb2

    model = model_pb2.ModelProto()
    model.ParseFromString(proto)
    known = {piece.piece for piece in model.pieces}
    score = model.pieces[-1].score
    # BPE joins two pieces at a time, so the way to a piece leads over its beginnings.
    ways = [piece[:end] for piece in pieces for end in range(2, len(piece))]
    for piece in dict.fromkeys([*ways, *pieces]):
        if piece not in known:
            score -= 1.0
            model.pieces.add(piece=piece, score=score, type=model_pb2.ModelProto.SentencePiece.NORMAL)
    model.trainer_spec.vocab_size = len(model.pieces)
    serialized: bytes = model.SerializeToString()
    return serialized
