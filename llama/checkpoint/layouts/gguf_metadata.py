"""A model -> the metadata of a GGUF file: hyperparameters, and the vocabulary of its tokenizer.model.

Keys as llama.cpp reads them. The vocabulary is taken from the SentencePiece model's own bytes, piece by piece, so that
nothing of it is guessed. Sources: sentencepiece_model.proto, protobuf's encoding, GGUF's list of keys.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from ...chat_templates import chat_template
from ...errors import TokenizerError
from ...sizing.args import ModelArgs
from ...tokenizer import Tokenizer
from ..weight_files.gguf_writer import Value

__all__ = ["metadata_of"]

# general.quantization_version: of the block formats, since llama.cpp changed them in 2023.
_QUANTIZATION_VERSION = 2
_NORMAL = 1


def metadata_of(
    args: ModelArgs, tokenizer: Tokenizer, *, name: str, context: int, file_type: int, quantized: bool
) -> dict[str, Value]:
    """The metadata, in the order in which they are written.

    Args:
        name: of the model, for people.
        context: tokens of a sequence in training.
        file_type: llama.cpp's number for most of its tensors' type.
    """
    found: dict[str, Value] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "general.file_type": file_type,
        "llama.context_length": context,
        "llama.embedding_length": args.dim,
        "llama.block_count": args.n_layers,
        "llama.feed_forward_length": args.ffn_dim,
        "llama.attention.head_count": args.n_heads,
        "llama.attention.head_count_kv": args.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": float(args.norm_eps),
        "llama.rope.freq_base": float(args.rope_theta),
        "llama.rope.dimension_count": args.head_dim,
        "llama.vocab_size": args.vocab_size,
    }
    if quantized:
        found["general.quantization_version"] = _QUANTIZATION_VERSION
    return found | _vocabulary(tokenizer)


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Value]:
    key = "tokenizer.ggml."
    pieces = list(_pieces(tokenizer))
    ids: dict[str, int | None] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "unknown_token_id": tokenizer.unk_id,
        "padding_token_id": tokenizer.pad_id,
    }
    if tokenizer.supports_infilling:
        for part, number in (
            ("prefix", tokenizer.prefix_id),
            ("suffix", tokenizer.suffix_id),
            ("middle", tokenizer.middle_id),
        ):
            # The older name, and the one that llama.cpp has had since 2024; it reads both.
            ids |= {f"{part}_token_id": number, f"fim_{part[:3]}_token_id": number}
        ids["eot_token_id"] = tokenizer.eot_id
    return {
        key + "model": "llama",
        key + "pre": "default",
        key + "tokens": [piece for piece, _, _ in pieces],
        key + "scores": np.array([score for _, score, _ in pieces], "<f4"),
        key + "token_type": np.array([kind for _, _, kind in pieces], "<i4"),
        **{key + name: number for name, number in ids.items() if number is not None and number >= 0},
        key + "add_bos_token": True,
        key + "add_eos_token": False,
        key + "add_space_prefix": True,
        "tokenizer.chat_template": chat_template(tokenizer),
    }


def _pieces(tokenizer: Tokenizer) -> Iterator[tuple[bytes, float, int]]:
    """Text, score and type of each piece: GGUF has the numbers of SentencePiece's types."""
    count = 0
    for field, value in _fields(tokenizer.model_bytes):
        if field != 1 or not isinstance(value, bytes):
            continue
        piece, score, kind = b"", 0.0, _NORMAL
        for part, content in _fields(value):
            if part == 1 and isinstance(content, bytes):
                piece = content
            elif part == 2 and isinstance(content, bytes):
                score = struct.unpack("<f", content)[0]
            elif part == 3 and isinstance(content, int):
                kind = content
        count += 1
        yield piece, score, kind
    if count != tokenizer.n_words:
        raise TokenizerError(
            f"{tokenizer.model_path} holds {count:,} pieces, but SentencePiece finds {tokenizer.n_words:,}; fetch the"
            " tokenizer.model that came with the weights"
        )


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a message that SentencePiece has read: nothing of it is checked again."""
    at = 0

    def varint() -> int:
        nonlocal at
        found = shift = 0
        while True:
            byte = message[at]
            at += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}[tag & 7] if tag & 7 != 2 else varint()
        yield tag >> 3, message[at : at + size]
        at += size
