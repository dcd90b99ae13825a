"""A checkpoint -> the weights of one model-parallel rank, which reads only its own slices.

Every file, key and shape has been checked before anything is allocated. While loading, a rank holds its own
weights and a small window of the mapped files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..distributed.layers import ParallelLinear
from ..kernels.operators import weight_format
from ..kernels.weights import LANES, PLAIN, Blocked, PackedWeight
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
    form = weight_format(dtype, device)
    products = [
        name for name in parameters if form is not PLAIN and isinstance(modules[name], ParallelLinear)
    ]
    blocks: dict[str, PackedWeight] = {}
    arena: torch.Tensor | None = None
    if isinstance(form, Blocked):
        arena, blocks = _arena(form, {name: modules[name].shape for name in products}, dtype)
    # Weights that are packed as a whole share one staging buffer: allocating and freeing a plain copy of each in
    # turn leaves holes between the packed ones, up to 0.6 of their size (measured).
    staged = set(products) - set(blocks)
    largest = max((parameters[name].numel() for name in staged), default=0)
    staging = torch.empty(largest, dtype=dtype, device=device)
    for name, parameter in parameters.items():
        rows, columns = checkpoint.slice_of(name, rank, size)
        if name in blocks:
            assert columns is not None
            _write(checkpoint, name, rows, columns, blocks[name])
            modules[name].assign(blocks[name])
        elif name in staged:
            value = staging[: parameter.numel()].view(parameter.shape)
            checkpoint.read(name, value, rows, columns)
            modules[name].assign(value)
        else:
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
            checkpoint.read(name, value, rows, columns)
            modules[name].assign(value)
        progress(parameter.numel() * dtype.itemsize)
    if arena is not None:
        huge_pages.make_huge(arena)


def _arena(
    form: Blocked, shapes: dict[str, tuple[int, int]], dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, PackedWeight]]:
    """One piece of memory for all weights packed in blocks, so that nearly all of it can be in huge pages.

    Returns:
        The memory, and each weight, whose codes are a part of it that has yet to be written.
    """
    lies = {name: torch.Size(form.codes_shape(shape, dtype)) for name, shape in shapes.items()}
    arena = torch.empty(sum(size.numel() for size in lies.values()), dtype=dtype, device="cpu")
    parts, at = {}, 0
    for name, size in lies.items():
        parts[name] = PackedWeight(form, shapes[name], arena[at : at + size.numel()].view(size))
        at += size.numel()
    return arena, parts


def _write(checkpoint: Checkpoint, name: str, rows: Range, columns: Range, weight: PackedWeight) -> None:
    """Fill `weight` with a window of a tensor, straight from the mapped files if dtype and row order allow it.

    Otherwise the window goes through a small block.
    """
    form, codes = weight.format, weight.codes
    assert isinstance(form, Blocked)
    height, width = weight.shape
    mapped = checkpoint.is_mapped(name)
    parts = list(checkpoint.parts(name, rows, columns)) if mapped else []
    origins = [(part.rows.start, part.columns.start if part.columns else 0, part.rows.step) for part in parts]
    if mapped and all(
        step in (None, 1) and form.takes_block(weight, part.source, row, column)
        for part, (row, column, step) in zip(parts, origins, strict=True)
    ):
        for part, (row, column, _) in zip(parts, origins, strict=True):
            for first, window in checkpoint.windows(part.source, LANES):
                form.write(weight, window, row + first, column)
        return
    step = max(1, _BLOCK // (width * codes.itemsize) // LANES) * LANES
    buffer = torch.empty(min(step, height), width, dtype=codes.dtype, device=codes.device)
    for first in range(0, height, step):
        last = min(first + step, height)
        block = buffer[: last - first]
        checkpoint.read(name, block, (rows[0] + first, rows[0] + last), columns)
        form.write(weight, block, first, 0)
