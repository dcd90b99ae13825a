"""A checkpoint -> the weights of one model-parallel rank, which reads only its own slices.

Every file, key and shape has been checked before anything is allocated. While loading, a rank holds its own
weights and a small window of the mapped files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..distributed.layers import PackedWeight
from ..kernels import linear as kernels
from ..kernels import native
from ..model import Transformer
from . import huge_pages
from .base import Checkpoint, Range

__all__ = ["load_weights"]

# Bytes of a block that is converted and then packed; small enough to be packed from the CPU's caches.
_BLOCK = 4 << 20


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
        progress: called with the bytes of each weight as it arrives.
    """
    rank, size = model.parallel.rank, model.parallel.size
    parameters = dict(model.named_parameters())
    modules: dict[str, Any] = {name: model.get_submodule(name.rpartition(".")[0]) for name in parameters}
    products = [
        name for name in parameters if device.type == "cpu" and isinstance(modules[name], PackedWeight)
    ]
    blocked = [name for name in products if kernels.packs_blocks(parameters[name].shape, dtype)]
    # Weights that are packed as a whole share one staging buffer: allocating and freeing a plain copy of each in
    # turn leaves holes between the packed ones, up to 0.6 of their size (measured).
    staged = set(products) - set(blocked)
    largest = max((parameters[name].numel() for name in staged), default=0)
    staging = torch.empty(largest, dtype=dtype, device=device)
    arena, packed = _arena(
        {name: native.packed_shape(parameters[name].shape, dtype) for name in blocked}, dtype, device
    )
    for name, parameter in parameters.items():
        rows, columns = checkpoint.slice_of(name, rank, size)
        if name in packed:
            assert columns is not None
            _pack(checkpoint, name, rows, columns, packed[name])
            modules[name].assign(packed[name])
        elif name in staged:
            value = staging[: parameter.numel()].view(parameter.shape)
            checkpoint.read(name, value, rows, columns)
            modules[name].assign(value if kernels.can_prepare(value) else value.clone())
        else:
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
            checkpoint.read(name, value, rows, columns)
            modules[name].assign(value)
        progress(parameter.numel() * dtype.itemsize)
    if arena.numel():
        huge_pages.make_huge(arena)


def _arena(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One piece of memory for all weights packed in blocks, so that nearly all of it can be in huge pages.

    Returns:
        The memory, and each weight's part of it.
    """
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    arena = torch.empty(sum(sizes.values()), dtype=dtype, device=device)
    parts, at = {}, 0
    for name, shape in shapes.items():
        parts[name] = arena[at : at + sizes[name]].view(shape)
        at += sizes[name]
    return arena, parts


def _pack(checkpoint: Checkpoint, name: str, rows: Range, columns: Range, packed: torch.Tensor) -> None:
    """Fill `packed` with a window of a tensor, straight from the mapped files if dtype and row order allow it.

    Otherwise the window goes through a small block.
    """
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    parts = list(checkpoint.parts(name, rows, columns))
    origins = [(part.rows.start, part.columns.start if part.columns else 0, part.rows.step) for part in parts]
    if all(
        step in (None, 1) and native.can_pack_block(part.source, packed, row, column, height)
        for part, (row, column, step) in zip(parts, origins, strict=True)
    ):
        for part, (row, column, _) in zip(parts, origins, strict=True):
            for first, window in checkpoint.windows(part.source, native.LANES):
                native.pack_block(window, packed, row + first, column)
        return
    step = max(1, _BLOCK // (width * packed.itemsize) // native.LANES) * native.LANES
    buffer = torch.empty(min(step, height), width, dtype=packed.dtype, device=packed.device)
    for first in range(0, height, step):
        last = min(first + step, height)
        block = buffer[: last - first]
        checkpoint.read(name, block, (rows[0] + first, rows[0] + last), columns)
        native.pack_block(block, packed, first, 0)
