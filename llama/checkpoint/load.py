"""A checkpoint -> the weights of one model-parallel rank, which reads only its own slices.

Every file, key and shape has been checked before anything is allocated. While loading, a rank holds its own
weights and a small window of the mapped files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..kernels.operators import weight_format
from ..kernels.quantized import Form
from ..kernels.weights import LANES, PLAIN, Blocked, PackedWeight, WeightFormat
from ..model import Transformer
from ..sizing.shapes import is_product
from . import huge_pages
from .base import Checkpoint
from .memory import WeightMemory, Window, weight_memory
from .upload import Upload

__all__ = ["load_weights"]

# Bytes of a block that is converted and then packed; small enough to be packed from the CPU's caches.
_BLOCK = 4 << 20
# Parts of the arena begin at whole lines of the CPU's caches.
_ALIGNED = 64


def load_weights(
    model: Transformer,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    memory: WeightMemory | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Assign this rank's weights to a model that was made on the meta device.

    Args:
        memory: what `weight_memory` says of this rank, if it was asked before.
        progress: called with the bytes of each weight as it arrives.
    """
    if memory is None:
        memory = weight_memory(checkpoint, model.parallel.rank, model.parallel.size, device, dtype)
    plain = weight_format(dtype, device)
    arena, packed = _arena(memory, plain) if device.type == "cpu" else (None, {})
    # Weights that are packed as a whole share one staging buffer: allocating and freeing a plain copy of each in
    # turn leaves holes between the packed ones, up to 0.6 of their size (measured).
    staged = {
        name: math.prod(window.shape)
        for name, window in memory.windows.items()
        if plain is not PLAIN and is_product(name) and window.format is None and name not in packed
    }
    staging = torch.empty(max(staged.values(), default=0), dtype=dtype, device=device)
    on_cuda = device.type == "cuda"
    upload = Upload(device) if on_cuda else None
    joined = _Joined(model.joined_weights() if on_cuda else [], memory)
    for name, window in memory.windows.items():
        module: Any = model.get_submodule(name.rpartition(".")[0])
        if window.format is not None and window.form is not None:
            weight = packed.get(name) or window.format.empty(window.matrix, window.form, dtype, device)
            _write_blocks(checkpoint, window, window.form, weight)
            module.assign(weight)
        elif name in packed:
            _write(checkpoint, window, packed[name])
            module.assign(packed[name])
        else:
            count = math.prod(window.shape)
            value = staging[:count] if name in staged else joined.empty(name)
            if value is None:
                value = torch.empty(count, dtype=dtype, device=device)
            value = value.view(window.shape)
            if upload is None:
                checkpoint.read(name, value, window.rows, window.columns)
            else:
                upload.fill(value, _reader(checkpoint, window))
            module.assign(value)
        progress(window.nbytes)
    if upload is not None:
        upload.finish()
    if arena is not None:
        huge_pages.make_huge(arena)


class _Joined:
    """Room for weights that are multiplied as one: those of a group are neighbouring rows of one matrix.

    Args:
        groups: names of the weights, as `Transformer.joined_weights` gives them.
    """

    def __init__(self, groups: Sequence[Sequence[str]], memory: WeightMemory) -> None:
        self._memory = memory
        self._group = {name: group for group in groups for name in group}
        self._parts: dict[str, torch.Tensor] = {}

    def empty(self, name: str) -> torch.Tensor | None:
        """This weight's rows; None if it is in no group, or one of the group is not plain."""
        group = self._group.get(name, ())
        windows = [self._memory.windows[each] for each in group]
        if not windows or any(window.format is not None for window in windows):
            return None
        if name not in self._parts:
            heights = [window.shape[0] for window in windows]
            size = sum(heights), windows[0].shape[1]
            matrix = torch.empty(size, dtype=self._memory.dtype, device=self._memory.device)
            self._parts |= zip(group, torch.split(matrix, heights), strict=True)
        return self._parts.pop(name)


def _reader(checkpoint: Checkpoint, window: Window) -> Callable[[torch.Tensor, int, int], None]:
    """What reads some rows of a window."""

    def read(block: torch.Tensor, first: int, last: int) -> None:
        rows = window.rows[0] + first, window.rows[0] + last
        checkpoint.read(window.name, block, rows, window.columns)

    return read


def _arena(memory: WeightMemory, plain: WeightFormat) -> tuple[torch.Tensor | None, dict[str, PackedWeight]]:
    """One piece of memory for all weights that are packed in blocks, so that nearly all of it can be in huge pages.

    Returns:
        The memory, and each weight, whose codes and scales are a part of it that has yet to be written.
    """
    lies: dict[str, Mapping[str, tuple[torch.Size, torch.dtype]]] = {}
    for name, window in memory.windows.items():
        if window.format is not None and window.form is not None:
            lies[name] = window.format.parts(window.matrix, window.form)
        elif isinstance(plain, Blocked) and is_product(name):
            lies[name] = {"codes": (torch.Size(plain.codes_shape(window.matrix, memory.dtype)), memory.dtype)}
    if not lies:
        return None, {}
    sizes = [_aligned(size, dtype) for parts in lies.values() for size, dtype in parts.values()]
    arena = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu")
    pieces = iter(torch.split(arena, sizes))
    weights = {}
    for name, parts in lies.items():
        window = memory.windows[name]
        found = {
            field: next(pieces)[: size.numel() * each.itemsize].view(each).view(size)
            for field, (size, each) in parts.items()
        }
        form = None if window.format is None else window.form
        order, dtype = (None, None) if form is None else (form.order, memory.dtype)
        weights[name] = PackedWeight(
            window.format or plain, window.matrix, **found, order=order, plain_dtype=dtype
        )
    return arena, weights


def _aligned(size: torch.Size, dtype: torch.dtype) -> int:
    return -(-size.numel() * dtype.itemsize // _ALIGNED) * _ALIGNED


def _write_blocks(checkpoint: Checkpoint, window: Window, form: Form, weight: PackedWeight) -> None:
    """Fill a quantized weight, some rows at a time, straight from the file if the kernels take its blocks."""
    assert window.columns is not None
    assert window.format is not None
    height = window.shape[0]
    raw = checkpoint.raw(window.name, window.rows, window.columns)
    if raw is not None and window.format.takes_raw(raw):
        for first, data in checkpoint.windows(raw.data, LANES):
            if not window.format.write_raw(weight, replace(raw, data=data), first):
                rows = window.rows[0] + first, window.rows[0] + first + len(data)
                raise checkpoint.not_finite(window.name, rows)
        return
    step = max(1, _BLOCK // form.columns // LANES) * LANES
    for first in range(0, height, step):
        last = min(first + step, height)
        rows = window.rows[0] + first, window.rows[0] + last
        window.format.write(weight, checkpoint.blocks(window.name, rows, window.columns), first)


def _write(checkpoint: Checkpoint, window: Window, weight: PackedWeight) -> None:
    """Fill `weight` with a window of a tensor, straight from the mapped files if dtype and row order allow it.

    Otherwise the window goes through a small block.
    """
    form, codes, name = weight.format, weight.codes, window.name
    assert isinstance(form, Blocked)
    height, width = weight.shape
    parts = list(checkpoint.parts(name, window.rows, window.columns)) if checkpoint.is_mapped(name) else []
    origins = [(part.rows.start, part.columns.start if part.columns else 0, part.rows.step) for part in parts]
    if parts and all(
        step in (None, 1) and form.takes_block(weight, part.source, row, column)
        for part, (row, column, step) in zip(parts, origins, strict=True)
    ):
        for part, (row, column, _) in zip(parts, origins, strict=True):
            for first, some in checkpoint.windows(part.source, LANES):
                form.write(weight, some, row + first, column)
        return
    step = max(1, _BLOCK // (width * codes.itemsize) // LANES) * LANES
    buffer = torch.empty(min(step, height), width, dtype=codes.dtype, device=codes.device)
    for first in range(0, height, step):
        last = min(first + step, height)
        block = buffer[: last - first]
        checkpoint.read(name, block, (window.rows[0] + first, window.rows[0] + last), window.columns)
        form.write(weight, block, first, 0)
