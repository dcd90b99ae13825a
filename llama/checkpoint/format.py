"""Meta's checkpoint format: files, keys, shapes, and along which axis each weight is split.

A folder holds consolidated.NN.pth (one for each model-parallel rank it was saved for), params.json,
tokenizer.model and checklist.chk. Every reshard, merge and slice is `AXES` plus an index
computation; both are here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CheckpointMismatchError, CheckpointNotFoundError, ConfigError
from ..model import ModelArgs
from .files import check_folder, is_there, read_json, some

__all__ = [
    "AXES",
    "Span",
    "axis_of",
    "expected_shapes",
    "read_params",
    "shard_files",
    "spans",
    "tensor_names",
]

# The dimension along which a weight is split over ranks, by the last part of its name; None: every
# rank has all of it.
AXES: dict[str, int | None] = {
    "tok_embeddings": 1,
    "wq": 0,
    "wk": 0,
    "wv": 0,
    "wo": 1,
    "w1": 0,
    "w2": 1,
    "w3": 0,
    "attention_norm": None,
    "ffn_norm": None,
    "norm": None,
    "output": 0,
}

# Saved by older exporters; the table is computed from rope_theta, in float32.
IGNORED = frozenset({"rope.freqs"})

_LAYER = (
    *(f"attention.{part}" for part in ("wq", "wk", "wv", "wo")),
    *(f"feed_forward.{part}" for part in ("w1", "w2", "w3")),
    "attention_norm",
    "ffn_norm",
)


def axis_of(name: str) -> int | None:
    """The split dimension of a tensor, e.g. 0 for "layers.3.attention.wq.weight"."""
    return AXES[name.split(".")[-2]]


def tensor_names(n_layers: int) -> Iterator[str]:
    """Every tensor of a model, in the order in which a forward pass meets them."""
    yield "tok_embeddings.weight"
    for layer in range(n_layers):
        for part in _LAYER:
            yield f"layers.{layer}.{part}.weight"
    yield "norm.weight"
    yield "output.weight"


def expected_shapes(args: ModelArgs) -> dict[str, tuple[int, ...]]:
    """The whole shape of every tensor, before any split."""
    kv = args.kv_heads * args.head_dim
    by_part: dict[str, tuple[int, ...]] = {
        "tok_embeddings": (args.vocab_size, args.dim),
        "output": (args.vocab_size, args.dim),
        "wq": (args.dim, args.dim),
        "wk": (kv, args.dim),
        "wv": (kv, args.dim),
        "wo": (args.dim, args.dim),
        "w1": (args.ffn_dim, args.dim),
        "w2": (args.dim, args.ffn_dim),
        "w3": (args.ffn_dim, args.dim),
        "attention_norm": (args.dim,),
        "ffn_norm": (args.dim,),
        "norm": (args.dim,),
    }
    return {name: by_part[name.split(".")[-2]] for name in tensor_names(args.n_layers)}


@dataclass(frozen=True)
class Span:
    """Entries [start, stop) of shard `shard` along the split dimension."""

    shard: int
    start: int
    stop: int


def wanted_range(name: str, total: int, args: ModelArgs, rank: int, size: int) -> tuple[int, int]:
    """The part of the split dimension that rank `rank` of `size` holds, as [start, stop) of the whole.

    Where ranks outnumber key/value heads, neighbouring ranks hold the same head.
    """
    pieces = min(size, args.kv_heads) if name.split(".")[-2] in ("wk", "wv") else size
    piece = rank * pieces // size
    return piece * total // pieces, (piece + 1) * total // pieces


def spans(start: int, stop: int, extents: list[int]) -> list[Span]:
    """Where [start, stop) of a dimension lies, when shard i holds the next extents[i] of it."""
    found = []
    first = 0
    for shard, extent in enumerate(extents):
        a, b = max(start, first), min(stop, first + extent)
        if a < b:
            found.append(Span(shard, a - first, b - first))
        first += extent
    return found


def read_params(folder: Path, *, max_seq_len: int, max_batch_size: int) -> ModelArgs:
    """ModelArgs from params.json; vocab_size stays -1 where the file leaves it to the embedding.

    Raises:
        CheckpointNotFoundError: no params.json.
        CheckpointFormatError: not a JSON object, or a key in it twice.
        ConfigError: missing or unknown keys, bad values.
    """
    path = folder / "params.json"
    params = read_json(path)
    try:
        return ModelArgs.from_params(params, max_seq_len=max_seq_len, max_batch_size=max_batch_size)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def with_vocab(args: ModelArgs, rows: int, config: str = "params.json") -> ModelArgs:
    """The args with the vocabulary of the embedding.

    Raises:
        CheckpointMismatchError: params.json (or what else the args are from) names another one.
    """
    if args.vocab_size not in (-1, rows):
        raise CheckpointMismatchError(
            f"{config} has vocab_size {args.vocab_size}, but the embedding has {rows} rows;"
            " the two belong to different models"
        )
    return replace(args, vocab_size=rows)


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder, in rank order.

    Raises:
        CheckpointNotFoundError: no folder, no shards (says what is there instead), or a gap in them.
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
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return (
            "it has weights in Hugging Face's layout, but no config.json; fetch the one that came with them"
        )
    inner = [
        path
        # In a cache of Hugging Face's hub, a snapshot is the folder of a model.
        for path in (*sorted(folder.iterdir()), *sorted(folder.glob("snapshots/*")))
        if os.path.isdir(path) and (any(path.glob("consolidated.*.pth")) or is_there(path / "config.json"))
    ]
    if inner:
        return f"there is one in the folder {inner[0].relative_to(folder)} inside it; pass {inner[0]}"
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"it holds {shown}; pass the folder of one model"
