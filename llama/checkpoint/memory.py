"""How the weights of one rank will lie in memory, and what they take, before any of them is read."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ..kernels.operators import quantized_format, why_not_quantized
from ..kernels.quantized import Form
from ..kernels.quantized_weights import QuantizedFormat
from ..sizing.budget import amount
from ..sizing.shapes import is_product
from .base import Checkpoint, Range, dtype_name

__all__ = ["WeightMemory", "Window", "largest_rank", "weight_memory"]


@dataclass(frozen=True)
class Window:
    """A rank's part of a tensor.

    Args:
        rows, columns: of the whole tensor.
        shape: of the part.
        form: how it is quantized in the checkpoint; None if it is plain there, or looked up and never multiplied by.
        format: how it is stored quantized on the device; None if it becomes plain.
        nbytes: that it takes. A plain weight's are those of its numbers, without what a layout fills up.
    """

    name: str
    rows: Range
    columns: Range | None
    shape: tuple[int, ...]
    form: Form | None
    format: QuantizedFormat | None
    nbytes: int

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of a matrix."""
        return self.shape[0], self.shape[1]

    @property
    def kind(self) -> str | None:
        """The name of the quantized format in memory."""
        return None if self.form is None or self.format is None else self.form.format


@dataclass(frozen=True)
class WeightMemory:
    """All tensors of a rank, by name.

    Args:
        device: that they are loaded to.
        dtype: of those that are plain there, and of the activations.
    """

    windows: dict[str, Window]
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all weights on this rank."""
        return sum(window.nbytes for window in self.windows.values())

    def describe(self, called: str | None = None) -> str:
        """What the weights are, with the name that people have for it: "k4 and int8 (Q4_K_M), activations float16"."""
        by_kind = Counter[str]()
        for window in self.windows.values():
            if window.kind is not None:
                by_kind[window.kind] += window.nbytes
        kinds = " and ".join(kind for kind, _ in by_kind.most_common())
        if not kinds:
            return dtype_name(self.dtype) if called is None else f"{dtype_name(self.dtype)}, from {called}"
        name = f" ({called})" if called not in (None, kinds) else ""
        return f"{kinds}{name}, activations {dtype_name(self.dtype)}"

    def made_plain(self) -> list[str]:
        """A line for each format and reason, of matrices that are quantized in the checkpoint and not here."""
        found: dict[tuple[str, str], list[int]] = {}
        for window in self.windows.values():
            if window.form is not None and window.format is None:
                key = window.form.format, why_not_quantized(window.form, self.device)
                found.setdefault(key, []).append(window.nbytes)
        return [
            f"{len(sizes)} matrices of {kind} are loaded as {dtype_name(self.dtype)}, {amount(sum(sizes))}:"
            f" {self.device.type} has no kernel for them ({why})"
            for (kind, why), sizes in found.items()
        ]


def weight_memory(
    checkpoint: Checkpoint, rank: int, size: int, device: torch.device, dtype: torch.dtype
) -> WeightMemory:
    """What rank `rank` of `size` will hold. Reads no weight."""
    windows = {}
    # Matrices that read the same input do so in the same order, and share it.
    orders: deque[torch.Tensor] = deque(maxlen=4)
    for name in checkpoint.shapes:
        rows, columns = checkpoint.slice_of(name, rank, size)
        form = checkpoint.form(name, columns) if columns is not None and is_product(name) else None
        stored = None if form is None else quantized_format(form, device)
        shape: tuple[int, ...] = tuple(each[1] - each[0] for each in (rows, columns) if each is not None)
        nbytes = math.prod(shape) * dtype.itemsize
        if form is not None and stored is not None:
            nbytes = 0
            if form.order is not None:
                order, nbytes = _known(form.order, orders)
                form = replace(form, order=order)
            parts = stored.parts((shape[0], shape[1]), form)
            nbytes += sum(sizes.numel() * each.itemsize for sizes, each in parts.values())
        windows[name] = Window(name, rows, columns, shape, form, stored, nbytes)
    return WeightMemory(windows, device, dtype)


def largest_rank(checkpoint: Checkpoint, size: int, dtype: torch.dtype) -> int:
    """Bytes of the weights on that of `size` ranks which holds most, on CPUs."""
    device = torch.device("cpu")
    return max(weight_memory(checkpoint, rank, size, device, dtype).nbytes for rank in range(size))


def _known(order: torch.Tensor, orders: deque[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """An equal one of these, which takes no more bytes, or this one and its bytes."""
    same = next((each for each in orders if torch.equal(each, order)), None)
    if same is not None:
        return same, 0
    orders.append(order)
    return order, order.nbytes
