"""The files of a folder in Meta's layout, and where a slice of a split weight lies in the shards.

A folder holds consolidated.NN.pth (one shard for each model-parallel rank it was saved for), params.json,
tokenizer.model and checklist.chk. Resharding, merging and slicing are the table of split axes
(sizing/shapes.py) plus the index computation here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import CheckpointMismatchError, CheckpointNotFoundError, ConfigError
from ...sizing.args import ModelArgs
from ..files import check_folder, is_there, read_json, some

__all__ = ["Span", "read_params", "shard_files", "spans", "with_vocab"]


@dataclass(frozen=True)
class Span:
    """Indices [start, stop) of shard `shard` along the split dimension."""

    shard: int
    start: int
    stop: int


def spans(start: int, stop: int, extents: list[int]) -> list[Span]:
    """Where [start, stop) of a dimension is stored, if shard i holds the next extents[i] indices of it."""
    found = []
    first = 0
    for shard, extent in enumerate(extents):
        a, b = max(start, first), min(stop, first + extent)
        if a < b:
            found.append(Span(shard, a - first, b - first))
        first += extent
    return found


def read_params(folder: Path, *, max_seq_len: int, max_batch_size: int) -> ModelArgs:
    """ModelArgs from params.json. vocab_size stays -1 if the file leaves it to the embedding.

    Raises:
        CheckpointNotFoundError: there is no params.json.
        CheckpointFormatError: it is not a JSON object, or has a key twice.
        ConfigError: keys are missing or unknown, or values are out of range.
    """
    path = folder / "params.json"
    params = read_json(path)
    try:
        return ModelArgs.from_params(params, max_seq_len=max_seq_len, max_batch_size=max_batch_size)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def with_vocab(args: ModelArgs, rows: int, config: str = "params.json") -> ModelArgs:
    """The args with the vocabulary size set to the rows of the embedding.

    Raises:
        CheckpointMismatchError: `config`, the file that the args come from, names another vocabulary size.
    """
    if args.vocab_size not in (-1, rows):
        raise CheckpointMismatchError(
            f"{config} has vocab_size {args.vocab_size}, but the embedding has {rows} rows;"
            " the two belong to different models"
        )
    return replace(args, vocab_size=rows)


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder, in order of rank.

    Raises:
        CheckpointNotFoundError: there is no folder, it has no shards (the message says what it has), or one
            is missing.
    """
    check_folder(folder)
    numbered = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := re.fullmatch(r"consolidated\.(\d{2,3})\.pth", path.name))
    }
    if not numbered:
        raise CheckpointNotFoundError(f"no consolidated.NN.pth in {folder}: {_what_is_there(folder)}")
    missing = sorted(set(range(max(numbered) + 1)) - set(numbered))
    if missing:
        names = some([f"consolidated.{i:02d}.pth" for i in missing])
        raise CheckpointNotFoundError(
            f"{folder} has {len(numbered)} shards, but {names} is missing; download it again"
        )
    return [numbered[i] for i in range(len(numbered))]


def _what_is_there(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "the folder is empty; the download has not begun, or went elsewhere"
    if any(name.endswith(".part") for name in names):
        return "it holds unfinished downloads (.part); run the download again to complete them"
    if "adapter_config.json" in names:
        return (
            "it holds an adapter; pass its base model, and this folder as adapter (--adapter of the commands)"
        )
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return (
            "it has weights in Hugging Face's layout, but no config.json; fetch the one that came with them"
        )
    inner = [
        path
        # In the cache of Hugging Face's hub, each snapshot is a model's folder.
        for path in (*sorted(folder.iterdir()), *sorted(folder.glob("snapshots/*")))
        if os.path.isdir(path) and (any(path.glob("consolidated.*.pth")) or is_there(path / "config.json"))
    ]
    if inner:
        return f"there is one in the folder {inner[0].relative_to(folder)} inside it; pass {inner[0]}"
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"it holds {shown}; pass the folder of one model"
