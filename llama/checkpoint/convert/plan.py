"""Which tensors go into which file of a conversion: decided from shapes, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import ConfigError
from ...sizing.args import can_split
from ...sizing.family import member_of
from ..base import Checkpoint, Range
from ..layouts.hugging_face import hf_name
from .file_names import part_name, shard_name

__all__ = ["Piece", "PlannedFile", "plan_files"]

# Bytes of one safetensors file, the same limit as that of the hub's own tools.
_LARGEST_FILE = 5 * 10**9


@dataclass(frozen=True)
class Piece:
    """A window of a tensor that goes into a file. `name` is Meta's, `key` the name in the file."""

    name: str
    key: str
    rows: Range
    columns: Range | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the window."""
        ranges = [self.rows] if self.columns is None else [self.rows, self.columns]
        return tuple(stop - start for start, stop in ranges)


@dataclass(frozen=True)
class PlannedFile:
    """A weight file to write."""

    name: str
    pieces: tuple[Piece, ...]

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of its tensors."""
        return sum(torch.Size(piece.shape).numel() for piece in self.pieces) * dtype.itemsize


def plan_files(source: Checkpoint, layout: str, shards: int | None, dtype: torch.dtype) -> list[PlannedFile]:
    """The weight files to write.

    Raises:
        ConfigError: the layout is unknown, or the model cannot be split into that many shards.
    """
    if layout == "hf":
        if shards is not None:
            raise ConfigError("a Hugging Face folder has no model-parallel shards; leave --mp out")
        return _hugging_face_files(source.shapes, dtype)
    if layout != "meta":
        raise ConfigError(f"the layout is {layout!r}; use meta or hf")
    if shards is None:
        member = member_of(source.args)
        shards = source.mp_shards or (1 if member is None else member.shards)
    if shards < 1 or not can_split(source.args, shards) or source.args.kv_heads % shards:
        sizes = [
            n
            for n in range(1, source.args.kv_heads + 1)
            if can_split(source.args, n) and source.args.kv_heads % n == 0
        ]
        raise ConfigError(
            f"{shards} shards cannot hold this model in equal parts with whole heads ({source.args.n_heads} heads,"
            f" {source.args.kv_heads} key/value heads, dim {source.args.dim}, ffn {source.args.ffn_dim}, vocabulary"
            f" {source.args.vocab_size}); use one of {', '.join(map(str, sizes))}"
        )
    return [_meta_file(source, i, shards) for i in range(shards)]


def _meta_file(source: Checkpoint, shard: int, shards: int) -> PlannedFile:
    pieces = [Piece(name, name, *source.slice_of(name, shard, shards)) for name in source.shapes]
    return PlannedFile(shard_name(shard), tuple(pieces))


def _hugging_face_files(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> list[PlannedFile]:
    groups: list[list[Piece]] = [[]]
    size = 0
    for name, shape in shapes.items():
        piece = Piece(name, hf_name(name), (0, shape[0]), (0, shape[1]) if len(shape) > 1 else None)
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        if groups[-1] and size + nbytes > _LARGEST_FILE:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += nbytes
    return [PlannedFile(part_name(i, len(groups)), tuple(group)) for i, group in enumerate(groups, 1)]
