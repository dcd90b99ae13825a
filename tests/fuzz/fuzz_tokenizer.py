"""tokenizer.model files, damaged as bytes and as messages. What is accepted encodes, decodes and converts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from mutations import damaged
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from target import Target
from tiny_tokenizers import tiny_model_path

from llama.checkpoint.layouts.hf_tokenizer import tokenizer_files
from llama.tokenizer import Tokenizer

_TEXTS = ("def f(x):\n    return x", " <PRE> a <SUF> b <MID>", "☺ 漢 é\0\t", "", "    ", "<step>")
_PIECES = (
    "",
    "▁<PRE>",
    "<s>",
    "<0x00>",
    "<0xZZ>",
    "a" * 300,
    "\x1b[1m",
    "▁",
    "x" * 100_000,
    "\ue000",
    "<step>",
    "▁▁▁",
)
_SCORES = (0.0, -1e30, float("nan"), float("inf"), float("-inf"), 1e38)


class _Tokenizer:
    name = "tokenizer"

    def __init__(self) -> None:
        self._sound: list[bytes] = []

    def prepare(self, folder: Path) -> None:
        self._sound = [tiny_model_path(kind).read_bytes() for kind in ("plain", "step")]

    def mutate(self, rng: random.Random, folder: Path) -> Path:
        raw = rng.choice(self._sound)
        if rng.random() < 0.6:
            raw = self._changed(rng, raw)
        # Text within a piece keeps the message sound, and is then no UTF-8.
        if rng.random() < 0.3:
            at = rng.randrange(len(raw))
            raw = raw[:at] + bytes([rng.randrange(128, 256)]) + raw[at + 1 :]
        if rng.random() < 0.3:
            raw = damaged(rng, raw)
        path = folder / "tokenizer.model"
        path.write_bytes(raw)
        return path

    def _changed(self, rng: random.Random, raw: bytes) -> bytes:
        model: Any = model_pb2.ModelProto()
        model.ParseFromString(raw)
        trainer, normalizer = model.trainer_spec, model.normalizer_spec
        for _ in range(rng.randint(1, 3)):
            if not model.pieces:
                break
            piece = rng.choice(model.pieces)
            kind = rng.randrange(12)
            if kind < 3:
                piece.piece = rng.choice(_PIECES)
            elif kind < 5:
                piece.type = rng.randint(1, 6)
            elif kind == 5:
                piece.score = rng.choice(_SCORES)
            elif kind == 6:
                name = rng.choice(("unk_piece", "bos_piece", "eos_piece", "pad_piece", "unk_surface"))
                setattr(trainer, name, rng.choice(_PIECES))
            elif kind == 7:
                trainer.model_type = rng.randint(1, 4)
            elif kind == 8:
                trainer.treat_whitespace_as_suffix = trainer.byte_fallback = rng.random() < 0.5
            elif kind == 9:
                name = rng.choice(("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"))
                setattr(normalizer, name, rng.random() < 0.5)
            elif kind == 10:
                size = rng.choice((0, 4, 64, 1024, 2048))
                normalizer.precompiled_charsmap = size.to_bytes(4, "little") + rng.randbytes(
                    rng.choice((size, 16))
                )
            else:
                del model.pieces[rng.randrange(len(model.pieces)) :]
        changed: bytes = model.SerializeToString()
        return changed

    def read(self, path: Path) -> str:
        tokenizer = Tokenizer(path)
        for text in _TEXTS:
            ids = tokenizer.encode(text, bos=True, eos=False)
            assert ids[0] == tokenizer.bos_id
            assert tokenizer.control_ids.isdisjoint(ids[1:]), "text has become a control id"
            tokenizer.decode(ids)
            tokenizer.decode_infilling(tokenizer.encode_infilling(text))
        ids = list(range(tokenizer.n_words))
        tokenizer.decode(ids).encode("utf-8")
        for i in ids:
            tokenizer.token_bytes(i)
        tokenizer_files(tokenizer, 64)
        return "accepted"


TARGET: Target = _Tokenizer()
