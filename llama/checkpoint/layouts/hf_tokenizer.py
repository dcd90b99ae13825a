"""tokenizer.model -> the tokenizer files of a Hugging Face folder. Knows file formats, no tensors.

SentencePiece's byte-pair encoding repeatedly merges the two neighbours whose merged piece has the best score.
tokenizer.json stores a ranked list of merges instead: all ways to cut a piece into two pieces, ordered by the
score of the whole piece.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from ...errors import TokenizerError
from ...tokenizer import SPACE_SYMBOL, Tokenizer

__all__ = ["TOKENIZER_FILES", "tokenizer_files"]

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_FILL = "<FILL_ME>"
# Code Llama's 32,016 pieces have 61,260.
_MOST_MERGES = 500_000


def tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
    """The content of each of `TOKENIZER_FILES`. The first is the tokenizer's own model.

    Args:
        context: context length of the training, for tokenizer_config.json.
    """
    named = _named_pieces(tokenizer)
    plain = {key: named[key] for key in ("bos_token", "eos_token", "unk_token")}
    contents = (
        tokenizer.model_bytes,
        _json(_tokenizer_json(tokenizer, named)),
        _json(_tokenizer_config(tokenizer, named, context)),
        _json(plain),
    )
    return dict(zip(TOKENIZER_FILES, contents, strict=True))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _named_pieces(tokenizer: Tokenizer) -> dict[str, str]:
    """Control pieces by the names that transformers uses for them."""
    ids: dict[str, int | None] = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "unk_token": tokenizer.unk_id,
    }
    if tokenizer.supports_infilling:
        ids |= {
            "prefix_token": tokenizer.prefix_id,
            "middle_token": tokenizer.middle_id,
            "suffix_token": tokenizer.suffix_id,
            "eot_token": tokenizer.eot_id,
        }
    return {name: tokenizer.token_piece(i) for name, i in ids.items() if i is not None and i >= 0}


def merges(tokenizer: Tokenizer) -> list[str]:
    """Every pair of pieces that merges into a piece, as "left right", best first.

    Raises:
        TokenizerError: there are more than any real vocabulary has; each takes two strings in memory and in
            the file.
    """
    sp = tokenizer.sp_model
    ids = range(tokenizer.n_words)
    scores = {
        sp.id_to_piece(i): sp.get_score(i)
        for i in ids
        if not (sp.is_byte(i) or sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i))
    }
    pairs = (
        (-score, rank, left)
        for rank, (piece, score) in enumerate(scores.items())
        for left in range(1, len(piece))
        if piece[:left] in scores and piece[left:] in scores
    )
    ranked = list(itertools.islice(pairs, _MOST_MERGES + 1))
    if len(ranked) > _MOST_MERGES:
        raise TokenizerError(
            f"{tokenizer.model_path}: its pieces are made of one another in more than {_MOST_MERGES:,} ways, so its"
            " tokenizer.json would be larger than any; fetch the tokenizer.model that came with the weights"
        )
    pieces = list(scores)
    # Among the ways to make one piece, the longest left part comes first: runs of one character (the spaces
    # of an indentation) then merge from the left, as in SentencePiece.
    ranked.sort(key=lambda each: (each[0], each[1], -each[2]))
    return [f"{pieces[rank][:left]} {pieces[rank][left:]}" for _, rank, left in ranked]


def _added(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    ids = sorted({tokenizer.unk_id, *tokenizer.control_ids})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": tokenizer.token_piece(i), **flags} for i in ids]


def _tokenizer_json(tokenizer: Tokenizer, named: dict[str, str]) -> dict[str, Any]:
    bos = named["bos_token"]
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokenizer),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE_SYMBOL},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_SYMBOL},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                start,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": bos, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_SYMBOL}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": named.get("unk_token"),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {tokenizer.token_piece(i): i for i in range(tokenizer.n_words)},
            "merges": merges(tokenizer),
        },
    }


def _tokenizer_config(tokenizer: Tokenizer, named: dict[str, str], context: int) -> dict[str, Any]:
    infilling = tokenizer.supports_infilling
    config: dict[str, Any] = {
        # Not LlamaTokenizer: in transformers 5 that class drops the dummy space in front of a text that
        # begins with a space, such as indented code. These two use tokenizer.json unchanged.
        "tokenizer_class": "CodeLlamaTokenizer" if infilling else "PreTrainedTokenizerFast",
        **named,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": context,
    }
    if infilling:
        # transformers 5 puts a space in front of the suffix of an infilling prompt unless this key is false;
        # transformers 4 ignores the key (docs/checkpoints.md).
        config |= {"fill_token": _FILL, "add_prefix_space": False}
    return config
