"""A checkpoint that writes words and never ends by itself, whatever it is asked."""

from __future__ import annotations

import re
from pathlib import Path

from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

_WORD = re.compile("▁?[a-z]+")


def endless_checkpoint(folder: Path) -> Path:
    """Save random weights in float32, one shard, whose greedy text is made of pieces of small letters alone.

    The rows of all other ids, those that end a text among them, are zero in the output layer: such a logit
    is 0, and of the ninety others one is greater.
    """
    sp = tiny_tokenizer().sp_model
    weights = random_weights(SHAPE, sp.vocab_size())
    for number in range(sp.vocab_size()):
        if not _WORD.fullmatch(sp.id_to_piece(number)):
            weights["output.weight"][number] = 0
    return save_checkpoint(folder, SHAPE, weights, tiny_model_path())
