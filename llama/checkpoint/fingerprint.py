"""A digest that tells the weights of one checkpoint from those of another, in a moment for any size."""

from __future__ import annotations

import hashlib

import torch

from .base import Checkpoint, dtype_name

__all__ = ["fingerprint"]

# Of each tensor: so many rows, evenly spaced from the first to the last, and so many of their first values.
_ROWS, _COLUMNS = 3, 512


def fingerprint(checkpoint: Checkpoint) -> str:
    """A SHA-256 over names, shapes, dtype and some values of every tensor, as hex digits.

    It is the same for both layouts, for any number of weight files, and so for any number of ranks: tensors are read
    under Meta's names, whole and in Meta's order. Training changes all values of a tensor, so a few thousand of
    each tell two models apart; that every byte is sound is what `verify` checks. Reads 2 MB of a 7B.

    Raises:
        CheckpointFormatError: a file was truncated since it was opened.
    """
    digest = hashlib.sha256(dtype_name(checkpoint.dtype).encode())
    for name, shape in checkpoint.shapes.items():
        digest.update(f"\n{name} {shape}\n".encode())
        columns = None if len(shape) == 1 else (0, min(shape[1], _COLUMNS))
        extent = min(shape[0], _COLUMNS) if columns is None else 1
        last = shape[0] - extent
        for first in sorted({last * part // (_ROWS - 1) for part in range(_ROWS)}):
            size = (extent,) if columns is None else (extent, columns[1])
            window = torch.empty(size, dtype=checkpoint.dtype)
            checkpoint.read(name, window, (first, first + extent), columns)
            digest.update(window.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
