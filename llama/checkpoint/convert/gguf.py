"""Any checkpoint -> one GGUF file, one window at a time.

Matrices that are quantized, or are to be, keep their blocks bit for bit: int8 is Q8_0, int4 Q4_0, k4 Q4_K. So the file
computes what the source computes. All else is plain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ...errors import CheckpointWriteError, ConfigError, LlamaError
from ...kernels.quantized import Blocks, to_int8
from ...printable import reason
from ..base import Checkpoint
from ..layouts.gguf import gguf_name
from ..layouts.gguf_metadata import metadata_of
from ..layouts.hf_config import trained_context
from ..opening import open_checkpoint, tokenizer_of
from ..weight_files.gguf_writer import GgufWriter, PlannedTensor, Value, packed, type_number
from .conversion import Converted, chunks, differences
from .output_gguf import OutputGguf
from .plan import Piece

__all__ = ["convert_to_gguf", "gguf_bytes"]

# Codes of a matrix that are in memory at once.
_WINDOW = 16 << 20
# Formats of kernels/quantized.py whose blocks GGUF has; others become int8.
_TAKEN = ("int8", "int4", "k4")
# llama.cpp's general.file_type, by the type of most bytes. With k4 some matrices are int8, as in its Q4_K_M.
_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q8_0": 7, "Q4_K": 15}


def convert_to_gguf(
    source: Checkpoint,
    target: Path,
    *,
    tokenizer_path: Path | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Converted:
    """Write a checkpoint as a GGUF file that llama.cpp and this runtime load.

    Memory stays at a few windows of 16 MB, whatever the size of the model.

    Args:
        source: an opened checkpoint; one that is quantized while it is read gives a quantized file.
        target: the file to create; its name ends in .gguf.
        tokenizer_path: by default the source's own.
        dtype: of what is not quantized, but norms, which are float32; by default as stored.
        force: replace an existing GGUF file.
        progress: called with the bytes written.

    Raises:
        CheckpointWriteError: the target exists or cannot be written, its disk is full, or what was written cannot be
            opened. Nothing is left behind.
        CheckpointNotFoundError, CheckpointMismatchError, TokenizerError: no tokenizer, or one of another model.
        ConfigError: the target's name, or a value that the dtype cannot hold.
    """
    dtype = source.dtype if dtype is None else dtype
    if target.suffix != ".gguf":
        raise ConfigError(f"{target} would be a GGUF file; give it a name that ends in .gguf")
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ConfigError(f"weights of {dtype} cannot be written; pass --dtype bfloat16, float16 or float32")
    tokenizer = tokenizer_of(source, tokenizer_path)
    tensors = _plan(source, dtype)
    metadata = metadata_of(
        source.args,
        tokenizer,
        name=source.folder.resolve().name,
        context=source.context_length or trained_context(source.args),
        file_type=_file_type(tensors),
        quantized=any(each.kind.dtype is None for each in tensors.values()),
    )
    total = GgufWriter.size(metadata, list(tensors.values()))
    with OutputGguf(target, total, force=force, sources=source.files) as unfinished:
        _write(source, unfinished.file, metadata, tensors, progress)
        _check(source, dtype, tensors, unfinished)
        unfinished.publish()
    return Converted(target, (target.name,), total, dtype)


def gguf_bytes(source: Checkpoint, dtype: torch.dtype) -> int:
    """Bytes of the tensors that `convert_to_gguf` writes."""
    return sum(each.nbytes for each in _plan(source, dtype).values())


def _plan(source: Checkpoint, dtype: torch.dtype) -> dict[str, PlannedTensor]:
    return {name: _planned(source, name, dtype) for name in source.shapes}


def _planned(source: Checkpoint, name: str, dtype: torch.dtype) -> PlannedTensor:
    shape = source.shapes[name]
    kind: str | torch.dtype = torch.float32 if len(shape) == 1 else dtype
    form = source.form(name, (0, shape[1])) if len(shape) == 2 else None
    if form is not None:
        kind = form.format if form.format in _TAKEN and form.order is None else "int8"
    return PlannedTensor(gguf_name(name), shape, type_number(kind))


def _file_type(tensors: dict[str, PlannedTensor]) -> int:
    sizes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and name.startswith("layers."):
            sizes[tensor.kind.name] += tensor.nbytes
    return _FILE_TYPES[sizes.most_common(1)[0][0]]


def _write(
    source: Checkpoint,
    path: Path,
    metadata: dict[str, Value],
    tensors: dict[str, PlannedTensor],
    progress: Callable[[int], None],
) -> None:
    with GgufWriter(path, metadata, list(tensors.values())) as writer:
        for name, tensor in tensors.items():
            writer.write(_counted(_pieces(source, name, tensor), progress))
        written = writer.close()
    for _ in written.read_back():
        pass


def _counted(pieces: Iterator[torch.Tensor], progress: Callable[[int], None]) -> Iterator[torch.Tensor]:
    for piece in pieces:
        yield piece
        progress(piece.nbytes)


def _pieces(source: Checkpoint, name: str, tensor: PlannedTensor) -> Iterator[torch.Tensor]:
    """The bytes of a tensor, some rows at a time."""
    kind, height = tensor.kind, tensor.shape[0]
    columns = (0, tensor.shape[1]) if len(tensor.shape) == 2 else None
    if kind.dtype is not None:
        yield from chunks(source, Piece(name, tensor.name, (0, height), columns), kind.dtype, False)
        return
    assert columns is not None
    step = max(1, _WINDOW // columns[1])
    for first in range(0, height, step):
        rows = first, min(first + step, height)
        yield packed(_blocks(source, name, rows, columns, kind.kind))


def _blocks(
    source: Checkpoint, name: str, rows: tuple[int, int], columns: tuple[int, int], kind: str | None
) -> Blocks:
    found = source.form(name, columns)
    assert found is not None
    if found.format == kind and found.order is None:
        return source.blocks(name, rows, columns)
    values = torch.empty(rows[1] - rows[0], columns[1])
    source.read(name, values, rows, columns)
    return to_int8(values)


def _check(
    source: Checkpoint, dtype: torch.dtype, tensors: dict[str, PlannedTensor], unfinished: OutputGguf
) -> None:
    """Open what was written as any reader would, and compare it with the source.

    Raises:
        CheckpointWriteError: it cannot be opened, or differs.
    """
    try:
        written = open_checkpoint(unfinished.file)
        tokenizer_of(written)
    except LlamaError as error:
        raise CheckpointWriteError(
            f"{unfinished.final} was not written: it cannot be opened ({reason(error)}). Nothing was left behind"
        ) from error
    quantized = any(each.kind.dtype is None for each in tensors.values())
    wrong = differences(source, written, "GGUF", torch.float16 if quantized else dtype)
    if wrong:
        raise CheckpointWriteError(
            f"{unfinished.final} was not written: in it {'; '.join(wrong)}. Nothing was left behind"
        )
