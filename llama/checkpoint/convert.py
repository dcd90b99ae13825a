"""Any checkpoint -> another layout, number of shards or dtype, a window at a time.

The plan of the files is made first, from shapes alone; their size is then known before a byte is
written. The files are written into a folder beside the target, which takes the target's name when all is
there, read back, and opened as a reader opens it. A conversion that ends early leaves no folder that looks whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointWriteError, ConfigError, LlamaError
from ..printable import reason
from ..sizing.args import can_split
from ..sizing.family import member_of
from ..tokenizer import Tokenizer
from .files import create, strict_object
from .hf_config import config_of, generation_config_of, params_of, trained_context
from .hf_tokenizer import tokenizer_files
from .hugging_face import HuggingFaceCheckpoint, hf_name, rotary_heads
from .kept import kept_files
from .load import open_checkpoint, tokenizer_of
from .names import CHECKLIST, CONFIG, GENERATION_CONFIG, INDEX, PARAMS, TOKENIZER, part_name, shard_name
from .pth import PthWriter
from .safetensors import SafetensorsWriter
from .source import Checkpoint, Range, dtype_name
from .target import Target

__all__ = ["Converted", "convert", "plan_files"]

# Bytes of a tensor that are in memory at once, for each file that is being written.
_WINDOW = 16 << 20
# Of one safetensors file, as the hub's own tools cut them.
_LARGEST_FILE = 5 * 10**9
_WORKERS = 4


@dataclass(frozen=True)
class Piece:
    """A window of a tensor that goes into a file; `name` is Meta's, `key` the one in the file."""

    name: str
    key: str
    rows: Range
    columns: Range | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the window."""
        ranges = [self.rows] if self.columns is None else [self.rows, self.columns]
        return tuple(stop - start for start, stop in ranges)


@dataclass(frozen=True)
class File:
    """A weight file to be written."""

    name: str
    pieces: tuple[Piece, ...]

    def nbytes(self, dtype: torch.dtype) -> int:
        """Of its tensors."""
        return sum(torch.Size(piece.shape).numel() for piece in self.pieces) * dtype.itemsize


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    folder: Path
    files: tuple[str, ...]
    nbytes: int
    dtype: torch.dtype


def convert(
    source: Checkpoint,
    target: Path,
    *,
    layout: str,
    tokenizer_path: Path | None = None,
    shards: int | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Converted:
    """Write a checkpoint in another layout, number of shards or dtype.

    Memory stays at a few windows of 16 MB for each file under way, whatever the size of the model.

    Args:
        source: an opened checkpoint.
        target: the new folder.
        layout: "meta" or "hf".
        tokenizer_path: by default tokenizer.model in the source's folder.
        shards: files of Meta's layout; by default as many as the source has in Meta's layout, else what
            Meta ships that member of the family in.
        dtype: by default as stored.
        force: replace a checkpoint folder that is there.
        progress: is told bytes as they are written. Called from several threads.

    Raises:
        CheckpointWriteError: the target exists, cannot be written, or its disk is full, or what was written cannot
            be opened; nothing is left.
        CheckpointFormatError: a file that goes along is a link out of the source's folder, or not what its name says.
        CheckpointNotFoundError, CheckpointMismatchError, TokenizerError: no tokenizer, or a foreign one.
        ConfigError: a number of shards that the model's heads do not allow, a value that float16 has not.
    """
    dtype = source.dtype if dtype is None else dtype
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ConfigError(f"weights of {dtype} cannot be written; pass --dtype bfloat16, float16 or float32")
    tokenizer = tokenizer_of(source, tokenizer_path)
    files = plan_files(source, layout, shards, dtype)
    total = sum(file.nbytes(dtype) for file in files)
    # What its own files say of the model beyond its shape goes along: templates, ids that end an answer, context.
    kept = kept_files(source.folder) if isinstance(source, HuggingFaceCheckpoint) and layout == "hf" else {}
    with Target(target, total, force=force, source=source.folder) as unfinished:
        hashes = _write_all(source, files, unfinished.folder, dtype, progress)
        if layout == "meta":
            _finish_meta(source, tokenizer, unfinished.folder, hashes)
        else:
            _finish_hugging_face(source, tokenizer, unfinished.folder, files, dtype, kept)
        _check_opens(source, layout, dtype, unfinished.folder, unfinished.final)
        names = tuple(
            sorted(path.name for path in unfinished.folder.iterdir() if not path.name.startswith("."))
        )
        unfinished.publish()
    return Converted(target, names, total, dtype)


def plan_files(source: Checkpoint, layout: str, shards: int | None, dtype: torch.dtype) -> list[File]:
    """The weight files of the target.

    Raises:
        ConfigError: see `convert`.
    """
    if layout == "hf":
        if shards is not None:
            raise ConfigError("a Hugging Face folder has no model-parallel shards; leave --mp out")
        return _hugging_face_files(source.shapes, dtype)
    if layout != "meta":
        raise ConfigError(f"the layout is {layout!r}; use meta or hf")
    if shards is None:
        member = member_of(source.args)
        shards = source.shards if source.layout == "Meta" else 1 if member is None else member.shards
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


def _meta_file(source: Checkpoint, shard: int, shards: int) -> File:
    pieces = [Piece(name, name, *source.slice_of(name, shard, shards)) for name in source.shapes]
    return File(shard_name(shard), tuple(pieces))


def _hugging_face_files(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> list[File]:
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
    return [File(part_name(i, len(groups)), tuple(group)) for i, group in enumerate(groups, 1)]


def _write_all(
    source: Checkpoint, files: list[File], folder: Path, dtype: torch.dtype, progress: Callable[[int], None]
) -> dict[str, str | None]:
    """Write the files, several at a time -> the md5 of each, where one is taken."""
    stop = threading.Event()

    def one(file: File) -> str | None:
        try:
            return _write_file(source, file, folder / file.name, dtype, progress, stop)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(min(_WORKERS, len(files), os.cpu_count() or 1)) as pool:
        try:
            futures = [pool.submit(one, file) for file in files]
            # The first error that is one: those after it may only say that they were told to stop.
            errors = [error for future in futures if (error := future.exception()) is not None]
        except BaseException:  # Ctrl-C in this thread
            stop.set()
            raise
    real = [error for error in errors if not isinstance(error, _StoppedError)]
    if real:
        raise real[0]
    return {file.name: future.result() for file, future in zip(files, futures, strict=True)}


class _StoppedError(Exception):
    """Another file failed."""


def _write_file(
    source: Checkpoint,
    file: File,
    path: Path,
    dtype: torch.dtype,
    progress: Callable[[int], None],
    stop: threading.Event,
) -> str | None:
    shapes = {piece.key: piece.shape for piece in file.pieces}

    def counted(piece: Piece) -> Iterator[torch.Tensor]:
        for chunk in _chunks(source, piece, dtype, path.suffix == ".safetensors"):
            if stop.is_set():
                raise _StoppedError
            yield chunk
            progress(chunk.nbytes)

    kind = SafetensorsWriter if path.suffix == ".safetensors" else PthWriter
    with kind(path, shapes, dtype) as writer:
        for piece in file.pieces:
            writer.write(counted(piece))
        written = writer.close()
    for _ in written.read_back():
        if stop.is_set():
            raise _StoppedError
    return written.md5


def _chunks(source: Checkpoint, piece: Piece, dtype: torch.dtype, to_hf: bool) -> Iterator[torch.Tensor]:
    """A piece in contiguous windows of rows, in the order of the target's layout."""
    heads = rotary_heads(piece.name, source.args.n_heads, source.args.kv_heads) if to_hf else 0
    parts = list(source.parts(piece.name, piece.rows, piece.columns))
    whole = parts[0].source
    if not heads and len(parts) == 1 and whole.dtype == dtype and whole.is_contiguous():
        for _, window in source.windows(whole):
            yield window
        return
    height, width = piece.shape[0], piece.shape[1] if len(piece.shape) > 1 else 1
    # Whole heads: their rows are reordered together.
    multiple = source.args.head_dim if heads else 1
    step = max(1, _WINDOW // (width * dtype.itemsize) // multiple) * multiple
    buffer = torch.empty(min(step, height), *piece.shape[1:], dtype=dtype)
    for first in range(0, height, step):
        last = min(first + step, height)
        out = buffer[: last - first]
        rows = (piece.rows[0] + first, piece.rows[0] + last)
        source.read(piece.name, out, rows, piece.columns)
        if torch.finfo(dtype).max < torch.finfo(source.dtype).max:
            _check_range(source, piece, rows, out)
        if heads:
            out = out.view(-1, multiple // 2, 2, width).transpose(1, 2).reshape(-1, width)
        yield out


def _check_range(source: Checkpoint, piece: Piece, rows: Range, out: torch.Tensor) -> None:
    """What becomes infinite in a narrower dtype would be lost."""
    if out.isfinite().all():
        return
    exact = torch.empty(out.shape, dtype=source.dtype)
    source.read(piece.name, exact, rows, piece.columns)
    lost = exact[exact.isfinite() & ~out.isfinite()]
    if lost.numel():
        raise ConfigError(
            f"{piece.name} holds values up to {float(lost.abs().max()):.6g}, but {dtype_name(out.dtype)} ends at"
            f" {torch.finfo(out.dtype).max:.6g}; keep {dtype_name(source.dtype)}"
        )


def _finish_meta(
    source: Checkpoint, tokenizer: Tokenizer, folder: Path, hashes: dict[str, str | None]
) -> None:
    hashes[TOKENIZER] = create(folder / TOKENIZER, Path(tokenizer.model_path).read_bytes())
    if source.layout == "Meta":
        params = (source.folder / PARAMS).read_bytes()
    else:
        params = (json.dumps(params_of(source.args)) + "\n").encode()
    hashes[PARAMS] = hashlib.md5(params, usedforsecurity=False).hexdigest()
    lines = [f"{digest}  {name}\n" for name, digest in sorted(hashes.items())]
    create(folder / CHECKLIST, "".join(lines).encode())
    # Last: without it no loader takes the folder for a checkpoint.
    create(folder / PARAMS, params)


def _finish_hugging_face(
    source: Checkpoint,
    tokenizer: Tokenizer,
    folder: Path,
    files: list[File],
    dtype: torch.dtype,
    kept: dict[str, bytes],
) -> None:
    contents = tokenizer_files(tokenizer, trained_context(source.args))
    contents[GENERATION_CONFIG] = _json(generation_config_of(tokenizer))
    if len(files) > 1:
        total = sum(file.nbytes(dtype) for file in files)
        where = {piece.key: file.name for file in files for piece in file.pieces}
        contents[INDEX] = _json({"metadata": {"total_size": total}, "weight_map": where})
    config = config_of(source.args, dtype, tokenizer)
    if CONFIG in kept:
        own = strict_object(kept.pop(CONFIG))
        own.pop("dtype", None)  # transformers 5's name for torch_dtype
        # vocab_size too: where it is left out transformers takes 32,000, whatever the embedding has.
        said = ("architectures", "tie_word_embeddings", "torch_dtype", "vocab_size")
        config = own | {key: config[key] for key in said}
    for name, content in (contents | kept).items():
        create(folder / name, content)
    # Last: without it no loader takes the folder for a checkpoint.
    create(folder / CONFIG, _json(config))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _check_opens(source: Checkpoint, layout: str, dtype: torch.dtype, folder: Path, final: Path) -> None:
    """Open what was written as any reader would, and hold it to what it was made of.

    Raises:
        CheckpointWriteError: it cannot be opened, or is another model.
    """
    try:
        written = open_checkpoint(folder)
        tokenizer_of(written)
    except LlamaError as error:
        raise CheckpointWriteError(
            f"{final} was not written: what was to be it cannot be opened ({reason(error)}). Nothing was left behind"
        ) from error
    wanted = _identity(source, {"meta": "Meta", "hf": "Hugging Face"}[layout], dtype)
    found = _identity(written, written.layout, written.dtype)
    wrong = [
        f"{name} is {found[name]}, not {value}" for name, value in wanted.items() if found[name] != value
    ]
    if wrong:
        raise CheckpointWriteError(
            f"{final} was not written: in what was to be it {'; '.join(wrong)}. Nothing was left behind"
        )


def _identity(checkpoint: Checkpoint, layout: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a conversion may not change, and what it was asked for. The names and shapes of tensors follow from it."""
    args = checkpoint.args
    names = ("dim", "n_layers", "n_heads", "kv_heads", "ffn_dim", "vocab_size", "norm_eps", "rope_theta")
    return {"layout": layout, "dtype": dtype_name(dtype)} | {name: getattr(args, name) for name in names}
