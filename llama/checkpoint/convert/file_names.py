"""Every file name that a conversion writes, and no other.

The writer takes its names from here, a finished folder is checked against them before it is published, and
--force removes a file only if its name is one of them.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..layouts.hf_tokenizer import TOKENIZER_FILES
from ..layouts.hugging_face import COMPANION_FILES

__all__ = ["is_weights", "is_written", "part_name", "shard_name"]

PARAMS = "params.json"
CHECKLIST = "checklist.chk"
TOKENIZER = "tokenizer.model"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
INDEX = "model.safetensors.index.json"
# A GGUF file until it is complete: no loader looks for that name.
UNFINISHED = "weights.unfinished"

_FIXED = frozenset(
    {
        PARAMS,
        CHECKLIST,
        TOKENIZER,
        CONFIG,
        GENERATION_CONFIG,
        INDEX,
        UNFINISHED,
        *TOKENIZER_FILES,
        *COMPANION_FILES,
    }
)


def shard_name(shard: int) -> str:
    """The name of a shard in Meta's layout, e.g. consolidated.00.pth."""
    return f"consolidated.{shard:02d}.pth"


def part_name(number: int, count: int) -> str:
    """The name of file `number` (from 1) of `count`, e.g. model-00001-of-00003.safetensors."""
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def is_weights(name: str) -> bool:
    """Whether a name that a conversion writes is that of a weight file."""
    return Path(name).suffix in (".pth", ".safetensors")


def is_written(name: str) -> bool:
    """Whether a conversion writes a file of this name: the functions above return it for its numbers."""
    numbers = [int(each) for each in re.findall("[0-9]+", name)]
    if len(numbers) == 1:
        return name == shard_name(numbers[0])
    if len(numbers) == 2:
        return 1 <= numbers[0] <= numbers[1] and name == part_name(*numbers)
    return name in _FIXED or name == part_name(1, 1)
