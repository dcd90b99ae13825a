"""Any checkpoint -> another layout, number of shards or dtype, one window at a time.

The files are planned first, from shapes alone, so their size is known before a byte is written. They are
written into a temporary folder beside the target, read back, and opened the way a reader opens a checkpoint;
then the folder gets the target's name. A conversion that ends early leaves no folder that looks complete.
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

from ...errors import CheckpointWriteError, ConfigError, LlamaError
from ...printable import reason
from ...tokenizer import Tokenizer
from ..base import Checkpoint, Range, dtype_name
from ..files import strict_object
from ..layouts.gguf import GgufCheckpoint
from ..layouts.hf_config import config_of, generation_config_of, params_of, trained_context
from ..layouts.hf_tokenizer import tokenizer_files
from ..layouts.hugging_face import HuggingFaceCheckpoint, rotary_heads
from ..layouts.meta import MetaCheckpoint
from ..opening import open_checkpoint, tokenizer_of
from ..weight_files.output_file import create
from ..weight_files.pth import PthWriter
from ..weight_files.safetensors import SafetensorsWriter
from .companion_files import companion_files
from .file_names import CHECKLIST, CONFIG, GENERATION_CONFIG, INDEX, PARAMS, TOKENIZER
from .output_folder import OutputFolder
from .plan import Piece, PlannedFile, plan_files

__all__ = ["Converted", "chunks", "convert", "differences"]

# Bytes of a tensor that are in memory at once, for each file being written.
_WINDOW = 16 << 20
_WORKERS = 4


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

    Memory stays at a few windows of 16 MB for each file being written, whatever the size of the model.

    Args:
        source: an opened checkpoint.
        target: the folder to create.
        layout: "meta" or "hf".
        tokenizer_path: by default tokenizer.model in the source's folder.
        shards: number of files in Meta's layout. By default as many as the source has, if it is in Meta's
            layout; else as many as Meta ships that model of the family in.
        dtype: by default as stored; of a quantized source, whose weights become plain, float16.
        force: replace an existing checkpoint folder.
        progress: called with the bytes written, from several threads.

    Raises:
        CheckpointWriteError: the target exists or cannot be written, its disk is full, or what was written
            cannot be opened. Nothing is left behind.
        CheckpointFormatError: a companion file is a link out of the source's folder, or not what its name
            says.
        CheckpointNotFoundError, CheckpointMismatchError, TokenizerError: no tokenizer, or one of another
            model.
        ConfigError: a number of shards that the model's heads do not allow, or a value that the dtype cannot
            hold.
    """
    dtype = source.dtype if dtype is None else dtype
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ConfigError(f"weights of {dtype} cannot be written; pass --dtype bfloat16, float16 or float32")
    tokenizer = tokenizer_of(source, tokenizer_path)
    files = plan_files(source, layout, shards, dtype)
    total = sum(file.nbytes(dtype) for file in files)
    # From Hugging Face to Hugging Face, chat templates, ids that end an answer and the context length are
    # copied.
    copied = source.layout == HuggingFaceCheckpoint.layout and layout == "hf"
    kept = companion_files(source.folder) if copied else {}
    # Of a GGUF the folder may hold other models, and the new one too.
    kept_whole = source.files[0] if source.layout == GgufCheckpoint.layout else source.folder
    with OutputFolder(target, total, force=force, source=kept_whole) as unfinished:
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


def _write_all(
    source: Checkpoint,
    files: list[PlannedFile],
    folder: Path,
    dtype: torch.dtype,
    progress: Callable[[int], None],
) -> dict[str, str | None]:
    """Write the files, several at a time -> the md5 of each .pth, else None."""
    stop = threading.Event()

    def one(file: PlannedFile) -> str | None:
        try:
            return _write_file(source, file, folder / file.name, dtype, progress, stop)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(min(_WORKERS, len(files), os.cpu_count() or 1)) as pool:
        try:
            futures = [pool.submit(one, file) for file in files]
            # An error may have stopped the other files: these only report that they were stopped.
            errors = [error for future in futures if (error := future.exception()) is not None]
        except BaseException:  # Ctrl-C in this thread
            stop.set()
            raise
    real = [error for error in errors if not isinstance(error, _StoppedError)]
    if real:
        raise real[0]
    return {file.name: future.result() for file, future in zip(files, futures, strict=True)}


class _StoppedError(Exception):
    """Another file failed, so this one was stopped."""


def _write_file(
    source: Checkpoint,
    file: PlannedFile,
    path: Path,
    dtype: torch.dtype,
    progress: Callable[[int], None],
    stop: threading.Event,
) -> str | None:
    shapes = {piece.key: piece.shape for piece in file.pieces}

    def counted(piece: Piece) -> Iterator[torch.Tensor]:
        for chunk in chunks(source, piece, dtype, path.suffix == ".safetensors"):
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


def chunks(source: Checkpoint, piece: Piece, dtype: torch.dtype, to_hf: bool) -> Iterator[torch.Tensor]:
    """A piece in contiguous windows of rows, in the row order of the target's layout."""
    heads = rotary_heads(piece.name, source.args.n_heads, source.args.kv_heads) if to_hf else 0
    if source.is_mapped(piece.name) and not heads:
        parts = list(source.parts(piece.name, piece.rows, piece.columns))
        whole = parts[0].source
        if len(parts) == 1 and whole.dtype == dtype and whole.is_contiguous():
            for _, window in source.windows(whole):
                yield window
            return
    height, width = piece.shape[0], piece.shape[1] if len(piece.shape) > 1 else 1
    # Whole heads: the rows of a head are permuted together.
    multiple = source.args.head_dim if heads else 1
    step = max(1, _WINDOW // (width * dtype.itemsize) // multiple) * multiple
    buffer = torch.empty(min(step, height), *piece.shape[1:], dtype=dtype)
    for first in range(0, height, step):
        last = min(first + step, height)
        out = buffer[: last - first]
        rows = (piece.rows[0] + first, piece.rows[0] + last)
        source.read(piece.name, out, rows, piece.columns)
        _check_range(source, piece, rows, out)
        if heads:
            out = out.view(-1, multiple // 2, 2, width).transpose(1, 2).reshape(-1, width)
        yield out


def _check_range(source: Checkpoint, piece: Piece, rows: Range, out: torch.Tensor) -> None:
    """Raise ConfigError if a finite value became infinite in the narrower dtype of `out`."""
    stored = source.dtype_of(piece.name)
    if torch.finfo(out.dtype).max >= torch.finfo(stored).max or out.isfinite().all():
        return
    exact = torch.empty(out.shape, dtype=stored)
    source.read(piece.name, exact, rows, piece.columns)
    lost = exact[exact.isfinite() & ~out.isfinite()]
    if lost.numel():
        raise ConfigError(
            f"{piece.name} holds values up to {float(lost.abs().max()):.6g}, but {dtype_name(out.dtype)} ends at"
            f" {torch.finfo(out.dtype).max:.6g}; keep {dtype_name(stored)}"
        )


def _finish_meta(
    source: Checkpoint, tokenizer: Tokenizer, folder: Path, hashes: dict[str, str | None]
) -> None:
    hashes[TOKENIZER] = create(folder / TOKENIZER, tokenizer.model_bytes)
    if source.layout == MetaCheckpoint.layout:
        params = (source.folder / PARAMS).read_bytes()
    else:
        params = (json.dumps(params_of(source.args)) + "\n").encode()
    hashes[PARAMS] = hashlib.md5(params, usedforsecurity=False).hexdigest()
    lines = [f"{digest}  {name}\n" for name, digest in sorted(hashes.items())]
    create(folder / CHECKLIST, "".join(lines).encode())
    # Last, because without it no loader takes the folder for a checkpoint.
    create(folder / PARAMS, params)


def _finish_hugging_face(
    source: Checkpoint,
    tokenizer: Tokenizer,
    folder: Path,
    files: list[PlannedFile],
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
        own.pop("quantization_config", None)  # what is written here is plain
        # vocab_size too: without it transformers assumes 32,000, whatever the embedding has.
        ours = ("architectures", "tie_word_embeddings", "torch_dtype", "vocab_size")
        config = own | {key: config[key] for key in ours}
    for name, content in (contents | kept).items():
        create(folder / name, content)
    # Last, because without it no loader takes the folder for a checkpoint.
    create(folder / CONFIG, _json(config))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _check_opens(source: Checkpoint, layout: str, dtype: torch.dtype, folder: Path, final: Path) -> None:
    """Open what was written as any reader would, and compare it with the source.

    Raises:
        CheckpointWriteError: it cannot be opened, or differs.
    """
    try:
        written = open_checkpoint(folder)
        tokenizer_of(written)
    except LlamaError as error:
        raise CheckpointWriteError(
            f"{final} was not written: the converted files cannot be opened ({reason(error)}). Nothing was left behind"
        ) from error
    expected = {"meta": MetaCheckpoint, "hf": HuggingFaceCheckpoint}[layout].layout
    wrong = differences(source, written, expected, dtype)
    if wrong:
        raise CheckpointWriteError(
            f"{final} was not written: in the converted files {'; '.join(wrong)}. Nothing was left behind"
        )


def differences(source: Checkpoint, written: Checkpoint, layout: str, dtype: torch.dtype) -> list[str]:
    """What differs, in what was written, from the source or from what was asked for."""
    wanted = _identity(source, layout, dtype)
    found = _identity(written, written.layout, written.dtype)
    return [f"{name} is {found[name]}, not {value}" for name, value in wanted.items() if found[name] != value]


def _identity(checkpoint: Checkpoint, layout: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a conversion must keep, and what was asked for. Names and shapes of tensors follow from it."""
    args = checkpoint.args
    names = ("dim", "n_layers", "n_heads", "kv_heads", "ffn_dim", "vocab_size", "norm_eps", "rope_theta")
    return {"layout": layout, "dtype": dtype_name(dtype)} | {name: getattr(args, name) for name in names}
