"""A folder or file -> an opened Checkpoint, and the tokenizer that goes with it."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointFormatError, CheckpointMismatchError, CheckpointNotFoundError
from ..printable import reason
from ..tokenizer import Tokenizer
from .base import Checkpoint
from .files import as_path, check_folder, is_there
from .layouts.gguf import GgufCheckpoint
from .layouts.hugging_face import HuggingFaceCheckpoint
from .layouts.meta import MetaCheckpoint
from .lora import with_adapter
from .quantize import quantized
from .weight_files.gguf import is_gguf

__all__ = ["LAYOUTS", "check_path", "open_checkpoint", "tokenizer_of"]

# The first layout that recognizes a folder opens it; a folder can hold two.
LAYOUTS: tuple[type[Checkpoint], ...] = (
    MetaCheckpoint,
    GgufCheckpoint,
    HuggingFaceCheckpoint,
)


def check_path(path: Path) -> None:
    """Raise CheckpointNotFoundError if `path` is neither a readable folder nor a GGUF file."""
    if not _is_gguf(path):
        check_folder(path)


def _is_gguf(path: Path) -> bool:
    """Whether `path` is a file that is a GGUF, or should be one by its name."""
    return os.path.isfile(path) and (path.suffix == ".gguf" or is_gguf(path))


def open_checkpoint(
    folder: str | os.PathLike[str],
    *,
    max_seq_len: int = 2048,
    max_batch_size: int = 1,
    agree: bool = True,
    adapter: str | os.PathLike[str] | None = None,
    quantize: str | None = None,
) -> Checkpoint:
    """Open and check a folder in Meta's or Hugging Face's layout, or a GGUF. Weights are mapped, not read.

    If a folder holds both layouts complete, Meta's files are used.

    Args:
        folder: a folder, or a GGUF file: of one that was split, any of its files.
        max_seq_len, max_batch_size: limits to put into the checkpoint's ModelArgs.
        agree: refuse shards that hold different values of a replicated weight.
        adapter: the folder of a LoRA adapter, as PEFT saves it, to merge into the weights while they are read.
        quantize: "int8" or "int4", to quantize the matrices while they are read; see quantize.py.

    Raises:
        CheckpointError: files are missing, unreadable, damaged, or do not belong together.
        ConfigError: `folder` is not a path; hyperparameters are missing, unknown or not supported; `quantize` is
            unknown, or the checkpoint is quantized already.
    """
    folder = as_path(folder, "the checkpoint folder")
    try:
        check_path(folder)
        found = _layout_of(folder)(folder, max_seq_len, max_batch_size, agree=agree)
        found = found if adapter is None else with_adapter(found, adapter)
        return found if quantize is None else quantized(found, quantize)
    except OSError as error:  # the disk fails, or a file disappears while it is read
        raise CheckpointFormatError(
            f"{folder} cannot be read: {reason(error)}; check the disk, and that nothing else changes the folder"
        ) from error


def _layout_of(path: Path) -> type[Checkpoint]:
    if _is_gguf(path):
        return GgufCheckpoint
    # Meta's is the default: its errors say what is missing, and what the folder holds instead.
    return next((each for each in LAYOUTS if each.recognizes(path)), MetaCheckpoint)


def tokenizer_of(checkpoint: Checkpoint, path: str | os.PathLike[str] | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint: `path`, by default the one in its weight files, or tokenizer.model beside them.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointMismatchError: its number of pieces differs from the rows of the embedding.
        TokenizerError: it is not a SentencePiece model.
        ConfigError: `path` is not a path.
    """
    tokenizer = checkpoint.tokenizer() if path is None else None
    if tokenizer is None:
        tokenizer = Tokenizer(_tokenizer_file(checkpoint, path))
    rows = checkpoint.args.vocab_size
    if tokenizer.n_words != rows:
        fix = "use the tokenizer.model that came with these weights"
        if checkpoint.layout == HuggingFaceCheckpoint.layout and tokenizer.n_words < rows:
            fix = (
                "either tokens were added to this model (added_tokens.json), which this runtime does not encode, or"
                " the file belongs to another model"
            )
        raise CheckpointMismatchError(
            f"{tokenizer.model_path} has {tokenizer.n_words} pieces, but the embedding in {checkpoint.folder} has"
            f" {rows} rows; {fix}"
        )
    return tokenizer


def _tokenizer_file(checkpoint: Checkpoint, path: str | os.PathLike[str] | None) -> Path:
    if path is not None:
        return as_path(path, "the tokenizer's path")
    found = checkpoint.folder / "tokenizer.model"
    if not is_there(found):
        raise CheckpointNotFoundError(
            f"{found} is missing; fetch the tokenizer.model that came with the weights, or pass its path"
            " (tokenizer_path of Llama.build, --tokenizer of the commands)"
        )
    return found
