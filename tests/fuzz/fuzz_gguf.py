"""GGUF files: damaged headers, and damaged metadata of a whole model. What is accepted, the package `gguf` reads as
the same keys and tensors.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf_forge import Forged, Tensor
from mutations import damaged
from target import Target
from tiny_tokenizers import tiny_tokenizer

from llama.checkpoint import open_checkpoint, tokenizer_of
from llama.checkpoint.weight_files.gguf import open_gguf

_SHAPE: dict[bytes, tuple[str, Any]] = {
    b"general.architecture": ("str", b"llama"),
    b"general.alignment": ("u32", 32),
    b"llama.embedding_length": ("u32", 32),
    b"llama.block_count": ("u32", 1),
    b"llama.feed_forward_length": ("u32", 64),
    b"llama.attention.head_count": ("u32", 2),
    b"llama.attention.head_count_kv": ("u32", 1),
    b"llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
    b"llama.rope.freq_base": ("f32", 1e6),
}
_NUMBERS = (0, 1, 2, 3, 16, 31, 33, 255, 256, 2**16, 2**31, 2**32 - 1)
_EXTENTS = (0, 1, 2, 31, 32, 33, 256, 2**31, 2**32, 2**62, 2**63 - 64)


def _model() -> Forged:
    """A model of one layer with the vocabulary of the tests."""
    sp, rows = tiny_tokenizer().sp_model, tiny_tokenizer().n_words
    keys: list[tuple[bytes, str, Any]] = [(key, *value) for key, value in _SHAPE.items()]
    kinds = [
        2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(rows)
    ]
    keys += [
        (b"tokenizer.ggml.model", "str", b"llama"),
        (b"tokenizer.ggml.tokens", "array", ("str", [sp.id_to_piece(i).encode() for i in range(rows)])),
        (b"tokenizer.ggml.scores", "array", ("f32", [sp.get_score(i) for i in range(rows)])),
        (b"tokenizer.ggml.token_type", "array", ("i32", kinds)),
        (b"tokenizer.ggml.bos_token_id", "u32", 1),
    ]

    def matrix(name: bytes, out: int, columns: int) -> Tensor:
        return Tensor(name, (columns, out), 8, nbytes=out * columns // 32 * 34)

    def norm(name: bytes) -> Tensor:
        return Tensor(name, (32,), 0, nbytes=128)

    layer = [
        *(matrix(b"blk.0.attn_" + part, out, 32) for part, out in ((b"q.weight", 32), (b"k.weight", 16))),
        matrix(b"blk.0.attn_v.weight", 16, 32),
        matrix(b"blk.0.attn_output.weight", 32, 32),
        *(matrix(b"blk.0.ffn_" + part, 64, 32) for part in (b"gate.weight", b"up.weight")),
        matrix(b"blk.0.ffn_down.weight", 32, 64),
        norm(b"blk.0.attn_norm.weight"),
        norm(b"blk.0.ffn_norm.weight"),
    ]
    ends = [
        matrix(b"token_embd.weight", rows, 32),
        norm(b"output_norm.weight"),
        matrix(b"output.weight", rows, 32),
    ]
    return Forged(keys, [ends[0], *layer, *ends[1:]])


class _Gguf:
    name = "gguf"

    def __init__(self) -> None:
        self._model = _model()

    def prepare(self, folder: Path) -> None:
        path = folder / "sound.gguf"
        path.write_bytes(self._model.content())
        assert self.read(path) == "accepted"
        tokenizer_of(open_checkpoint(path))

    def mutate(self, rng: random.Random, folder: Path) -> Path:
        forged = Forged(list(self._model.keys), list(self._model.tensors))
        kind = rng.random()
        if kind < 0.25:
            self._change_key(rng, forged)
        elif kind < 0.5:
            self._change_tensor(rng, forged)
        elif kind < 0.6:
            setattr(forged, rng.choice(("count", "key_count")), rng.choice((*_EXTENTS, 5, 13)))
        raw = forged.content()
        if kind > 0.45:
            raw = damaged(rng, raw, rng.choice((32, 300, len(forged.header()), len(forged.header()), None)))
        path = folder / "x.gguf"
        path.write_bytes(raw)
        return path

    def _change_key(self, rng: random.Random, forged: Forged) -> None:
        at = rng.randrange(len(forged.keys))
        key, kind, value = forged.keys[at]
        change = rng.randrange(5)
        if change == 0:
            forged.keys[at] = key, "u32", rng.choice(_NUMBERS)
        elif change == 1:
            forged.keys[at] = key, "str", rng.choice((b"", b"gpt2", b"x" * 9999, b"\xff\x00\x1b[1m"))
        elif change == 2:
            forged.keys[at] = key, "array", ("i32", [1] * rng.choice((0, 1, 436)))
        elif change == 3:
            forged.keys.insert(
                at, (rng.choice((key, b"x", b"llama.expert_count", b"split.count")), kind, value)
            )
        else:
            del forged.keys[at]

    def _change_tensor(self, rng: random.Random, forged: Forged) -> None:
        at = rng.randrange(len(forged.tensors))
        old = forged.tensors[at]
        change = rng.randrange(5)
        name, extents, kind, place = old.name, list(old.extents), old.kind, old.at
        if change == 0:
            name = rng.choice((b"", b"output.weight", b"blk.1.attn_q.weight", b"x" * 300, b"\xff", b"\n"))
        elif change == 1:
            extents = rng.choice(
                ([], extents[::-1], [*extents, 1], [1] * 9, [rng.choice(_EXTENTS), *extents[1:]])
            )
        elif change == 2:
            kind = rng.choice((*range(45), 2**32 - 1))
        elif change == 3:
            place = rng.choice((*_EXTENTS, 64, 4096))
        else:
            del forged.tensors[at]
            return
        forged.tensors[at] = Tensor(name, tuple(extents), kind, place, old.nbytes)

    def read(self, path: Path) -> str:
        ours = open_gguf(path)
        self._compare(ours, path)
        checkpoint = open_checkpoint(path)
        tokenizer_of(checkpoint)
        return "accepted"

    def _compare(self, ours: Any, path: Path) -> None:
        """What was accepted is what the package reads."""
        reader = gguf.GGUFReader(path)
        names = [key for key in reader.fields if not key.startswith("GGUF.")]
        assert list(ours.metadata) == names
        for key, value in ours.metadata.items():
            if isinstance(value, list | str):
                continue  # the package reads UTF-8 only
            theirs = reader.fields[key].contents()
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, np.array(theirs, value.dtype), equal_nan=value.dtype.kind == "f")
            else:
                assert value == theirs or value != value, key
        assert list(ours.tensors) == [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            raw = ours.tensors[tensor.name].data.contiguous().view(torch.uint8)
            assert raw.numpy().tobytes() == tensor.data.tobytes()


TARGET: Target = _Gguf()
