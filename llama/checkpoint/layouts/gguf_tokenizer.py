"""The vocabulary in the metadata of a GGUF file -> a SentencePiece model, as bytes.

llama.cpp's converter stores the pieces, scores and types of the model's own tokenizer.model, and leaves out what is
the same for every Llama: byte-pair encoding, no normalization, a dummy space in front. From these the model is
written again, so that the same library encodes with the same pieces. Sources: sentencepiece_model.proto, protobuf's
encoding, GGUF's list of keys.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import TokenizerError
from ...printable import shown

__all__ = ["has_tokenizer", "pieces_of", "tokenizer_model"]

_KEY = "tokenizer.ggml."
# Types of pieces, the same numbers in both formats.
_NORMAL, _UNKNOWN, _CONTROL, _BYTE, _KINDS = 1, 2, 3, 6, range(1, 7)
# Keys that name the infilling pieces, of older and newer converters -> how Code Llama spells them.
_INFILLING = {
    "▁<PRE>": ("prefix_token_id", "fim_pre_token_id"),
    "▁<SUF>": ("suffix_token_id", "fim_suf_token_id"),
    "▁<MID>": ("middle_token_id", "fim_mid_token_id"),
    "▁<EOT>": ("eot_token_id",),
}
# ModelProto: pieces = 1 (piece = 1, score = 2, type = 3), trainer_spec = 2, normalizer_spec = 3.
_BYTE_PAIRS = 2


def has_tokenizer(metadata: Mapping[str, Any]) -> bool:
    """Whether there is one: some files are made without."""
    kind = metadata.get(_KEY + "model", "no_vocab")
    return not isinstance(kind, str) or kind not in ("no_vocab", "none")


def pieces_of(metadata: Mapping[str, Any]) -> int | None:
    """The number of pieces, None without a vocabulary."""
    tokens = metadata.get(_KEY + "tokens")
    return len(tokens) if isinstance(tokens, list | np.ndarray) else None


def tokenizer_model(metadata: Mapping[str, Any]) -> bytes:
    """The SentencePiece model.

    Raises:
        TokenizerError: it is of another kind (byte-level BPE, WordPiece ...), or its lists contradict each other.
    """
    kind = metadata[_KEY + "model"]
    if not isinstance(kind, str) or kind != "llama":
        raise TokenizerError(
            f"{_KEY}model is {shown(kind)}; this runtime reads 'llama', the SentencePiece vocabularies of Code Llama"
        )
    pieces, scores, types = _lists(metadata)
    special = {
        name: _id(metadata, f"{name}_token_id", len(pieces)) for name in ("bos", "eos", "unknown", "padding")
    }
    for name in ("bos", "eos"):
        if (number := special[name]) is not None and types[number] != _UNKNOWN:
            types[number] = _CONTROL
    _one_unknown(types, special["unknown"])
    _name_infilling(metadata, pieces)
    padding = special["padding"]
    if padding in (special["bos"], special["eos"]) or (padding is not None and types[padding] != _CONTROL):
        padding = None  # one that stands for text, or ends it, is no mark for "no token"
    unknown = types.index(_UNKNOWN)
    named = {40: unknown, 41: special["bos"], 42: special["eos"], 43: padding}
    trainer = _number(3, _BYTE_PAIRS) + _number(4, len(pieces)) + _number(35, int(_BYTE in types))
    for field, number in named.items():
        trainer += _number(field, -1 if number is None else number)
        if number is not None:
            trainer += _bytes(field + 5, pieces[number])  # unk_piece = 45, bos_piece = 46, ...
    prefix = _truth(metadata, "add_space_prefix", True)
    blanks = _truth(metadata, "remove_extra_whitespaces", False)
    normalizer = _bytes(1, b"identity") + _number(3, int(prefix)) + _number(4, int(blanks))
    return b"".join([*_pieces(pieces, scores, types), _bytes(2, trainer), _bytes(3, normalizer)])


def _lists(metadata: Mapping[str, Any]) -> tuple[list[bytes], list[float], list[int]]:
    pieces = metadata.get(_KEY + "tokens")
    scores, types = metadata.get(_KEY + "scores"), metadata.get(_KEY + "token_type")
    if not isinstance(pieces, list) or not pieces:
        raise TokenizerError(f"{_KEY}tokens is missing or not a list of texts; fetch the file again")
    for name, values, kinds in (("scores", scores, "f"), ("token_type", types, "iu")):
        if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds:
            raise TokenizerError(f"{_KEY}{name} is missing or not a list of numbers; fetch the file again")
        if len(values) != len(pieces):
            raise TokenizerError(
                f"{_KEY}{name} has {len(values):,} elements, but there are {len(pieces):,} pieces; fetch the file again"
            )
    assert scores is not None
    assert types is not None
    found: list[int] = types.tolist()
    seen: dict[bytes, int] = {}
    for i, piece in enumerate(pieces):
        if not piece or piece in seen:
            why = f"is the same as {seen[piece]:,}" if piece else "is empty"
            raise TokenizerError(f"piece {i:,}, {shown(piece)}, {why}; fetch the file again")
        if found[i] not in _KINDS:
            raise TokenizerError(f"piece {i:,} is of type {found[i]}, not 1 to 6; fetch the file again")
        seen[piece] = i
    if not bool(np.isfinite(scores).all()):
        raise TokenizerError(f"{_KEY}scores holds NaN or infinity; fetch the file again")
    return list(pieces), scores.tolist(), found


def _id(metadata: Mapping[str, Any], key: str, pieces: int) -> int | None:
    found = metadata.get(_KEY + key)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int):
        raise TokenizerError(f"{_KEY}{key} is {shown(found)}; it must be an integer")
    if found in (-1, 2**32 - 1):  # "none", as older converters wrote it
        return None
    if not 0 <= found < pieces:
        raise TokenizerError(
            f"{_KEY}{key} is {found:,}, but there are {pieces:,} pieces; fetch the file again"
        )
    return found


def _truth(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    found = metadata.get(_KEY + key, default)
    if not isinstance(found, bool):
        raise TokenizerError(f"{_KEY}{key} is {shown(found)}; it must be a truth value")
    return found


def _one_unknown(types: list[int], told: int | None) -> None:
    """Make sure that one piece stands for text outside the vocabulary, the one that is named if there are several."""
    found = [i for i, kind in enumerate(types) if kind == _UNKNOWN]
    if told is None and len(found) != 1:
        raise TokenizerError(
            f"{len(found)} pieces stand for unknown text, and no {_KEY}unknown_token_id says which; fetch the file"
            " again"
        )
    if told is not None:
        for i in found:
            types[i] = _CONTROL
        types[told] = _UNKNOWN


def _name_infilling(metadata: Mapping[str, Any], pieces: list[bytes]) -> None:
    """Spell the infilling pieces as Code Llama does, if only keys name them: all else finds them by name."""
    named = {
        piece: next((i for key in keys if (i := _id(metadata, key, len(pieces))) is not None), None)
        for piece, keys in _INFILLING.items()
    }
    numbers = list(named.values())
    if None in numbers or len(set(numbers)) < len(numbers):
        return
    if any(piece.encode() in pieces for piece in named):
        return
    for piece, number in named.items():
        assert number is not None
        pieces[number] = piece.encode()


# ---- protobuf ----


def _pieces(pieces: list[bytes], scores: list[float], types: list[int]) -> Iterator[bytes]:
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        told = _number(3, kind) if kind != _NORMAL else b""
        yield _bytes(1, _bytes(1, piece) + b"\x15" + struct.pack("<f", score) + told)


def _bytes(field: int, content: bytes) -> bytes:
    """A field of text, or an embedded message."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    """A field of an integer, a truth value or an enum."""
    return _varint(field << 3) + _varint(value % (1 << 64))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
