"""A checkpoint of any layout -> the weights of one rank: mapped files, only this rank's slices, assigned.

Nothing is allocated before every file, key and shape has been checked. While it copies, a rank holds
its own weights and a small window of the mapped files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..distributed.layers import PackedWeight
from ..errors import CheckpointFormatError, CheckpointMismatchError, CheckpointNotFoundError
from ..kernels import linear as kernels
from ..kernels import native
from ..model import Transformer
from ..printable import reason
from ..tokenizer import Tokenizer
from . import huge_pages as pages
from .files import as_path, check_folder, is_there
from .format import read_params, shard_files
from .hugging_face import HuggingFaceCheckpoint, is_hugging_face
from .meta import MetaCheckpoint
from .source import Checkpoint, Range

__all__ = ["load_weights", "open_checkpoint", "tokenizer_of"]

# Bytes of a block that is converted and then packed: small enough to be packed from the CPU's caches.
_BLOCK = 4 << 20


def open_checkpoint(
    folder: str | os.PathLike[str], *, max_seq_len: int = 2048, max_batch_size: int = 1, agree: bool = True
) -> Checkpoint:
    """Open and check a folder in Meta's or Hugging Face's layout; no weight is read yet.

    Where a folder holds both whole, Meta's files count.

    Args:
        max_seq_len, max_batch_size: limits that its ModelArgs shall carry.
        agree: refuse shards that hold different values of a replicated weight.

    Raises:
        CheckpointError: files missing, unreadable, broken, or not fitting together.
        ConfigError: a folder that is no path; hyperparameters missing, unknown or not supported.
    """
    folder = as_path(folder, "the checkpoint folder")
    try:
        return _open(folder, max_seq_len, max_batch_size, agree)
    except OSError as error:  # a disk that fails, a file that goes away under the reader
        raise CheckpointFormatError(
            f"{folder} cannot be read: {reason(error)}; check the disk, and that nothing else changes the folder"
        ) from error


def _open(folder: Path, max_seq_len: int, max_batch_size: int, agree: bool) -> Checkpoint:
    check_folder(folder)
    meta = any(folder.glob("consolidated.*.pth")) and is_there(folder / "params.json")
    if is_hugging_face(folder) and not meta:
        return HuggingFaceCheckpoint(folder, max_seq_len, max_batch_size)
    shard_files(folder)
    args = read_params(folder, max_seq_len=max_seq_len, max_batch_size=max_batch_size)
    return MetaCheckpoint(folder, args, agree=agree)


def tokenizer_of(checkpoint: Checkpoint, path: str | os.PathLike[str] | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint: `path`, by default tokenizer.model in its folder.

    Raises:
        CheckpointNotFoundError: there is none.
        CheckpointMismatchError: its pieces are not the rows of the embedding.
        TokenizerError: it is no SentencePiece model.
        ConfigError: `path` is no path.
    """
    found = checkpoint.folder / "tokenizer.model" if path is None else as_path(path, "the tokenizer's path")
    if path is None and not is_there(found):
        raise CheckpointNotFoundError(
            f"{found} is missing; fetch the tokenizer.model that came with the weights, or pass its path"
            " (tokenizer_path of Llama.build, --tokenizer of the commands)"
        )
    tokenizer = Tokenizer(found)
    if checkpoint.layout != "Meta" and tokenizer.n_words < checkpoint.args.vocab_size:
        raise CheckpointMismatchError(
            f"{found} has {tokenizer.n_words} pieces, but the embedding in {checkpoint.folder} has"
            f" {checkpoint.args.vocab_size} rows: tokens were added to this model (added_tokens.json), which this"
            " runtime does not encode, or the file is of another model"
        )
    if tokenizer.n_words != checkpoint.args.vocab_size:
        raise CheckpointMismatchError(
            f"{found} has {tokenizer.n_words} pieces, but the embedding in {checkpoint.folder} has"
            f" {checkpoint.args.vocab_size} rows; use the tokenizer.model that came with these weights"
        )
    return tokenizer


def load_weights(
    model: Transformer,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Assign this rank's weights to a model that was made on the meta device.

    Args:
        progress: is told the bytes of each weight as it arrives.
    """
    rank, size = model.parallel.rank, model.parallel.size
    parameters = list(model.named_parameters())
    modules: dict[str, Any] = {name: model.get_submodule(name.rpartition(".")[0]) for name, _ in parameters}
    on_cpu = device.type == "cpu"
    packs = {name: on_cpu and isinstance(modules[name], PackedWeight) for name in modules}
    blocks = {name: packs[name] and kernels.packs_blocks(p.shape, dtype) for name, p in parameters}
    # What is packed whole is read into one buffer that serves all: plain and packed weights taken
    # and freed in turn leave holes between what stays, up to 0.6 of its size (measured).
    borrows = {name: packs[name] and not blocks[name] for name in modules}
    staging = torch.empty(
        max((p.numel() for name, p in parameters if borrows[name]), default=0), dtype=dtype, device=device
    )
    # What is packed in blocks lies in one piece of memory, so that nearly all of it can be in huge pages.
    shapes = {name: native.packed_shape(*p.shape) for name, p in parameters if blocks[name]}
    arena = torch.empty(
        sum(torch.Size(shape).numel() for shape in shapes.values()), dtype=dtype, device=device
    )
    at = 0
    for name, parameter in parameters:
        shape = tuple(parameter.shape)
        nbytes = parameter.numel() * dtype.itemsize
        rows, columns = checkpoint.slice_of(name, rank, size)
        if blocks[name]:
            assert columns is not None
            packed = arena[at : at + torch.Size(shapes[name]).numel()].view(shapes[name])
            at += packed.numel()
            _pack(checkpoint, name, rows, columns, packed)
            modules[name].assign(packed)
        elif borrows[name]:
            value = staging[: parameter.numel()].view(shape)
            checkpoint.read(name, value, rows, columns)
            modules[name].assign(value if kernels.can_prepare(value) else value.clone())
        else:
            value = torch.empty(shape, dtype=dtype, device=device)
            checkpoint.read(name, value, rows, columns)
            modules[name].assign(value)
        progress(nbytes)
    if arena.numel():
        pages.make_huge(arena)


def _pack(checkpoint: Checkpoint, name: str, rows: Range, columns: Range, packed: torch.Tensor) -> None:
    """Fill `packed` with a window of a tensor, straight from the mapped files.

    What lies there in another dtype or order goes through a small block.
    """
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    parts = list(checkpoint.parts(name, rows, columns))
    places = [(part.rows.start, part.columns.start if part.columns else 0, part.rows.step) for part in parts]
    if all(
        step in (None, 1) and native.can_pack_block(part.source, packed, row, column, height)
        for part, (row, column, step) in zip(parts, places, strict=True)
    ):
        for part, (row, column, _) in zip(parts, places, strict=True):
            for first, window in checkpoint.windows(part.source, native.LANES):
                native.pack_block(window, packed, row + first, column)
        return
    step = max(1, _BLOCK // (width * packed.itemsize) // native.LANES) * native.LANES
    block = torch.empty(min(step, height), width, dtype=packed.dtype)
    for first in range(0, height, step):
        last = min(first + step, height)
        part_of = block[: last - first]
        checkpoint.read(name, part_of, (rows[0] + first, rows[0] + last), columns)
        native.pack_block(part_of, packed, first, 0)
