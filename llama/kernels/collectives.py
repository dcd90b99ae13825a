"""csrc/ranks.c: collectives of CPU ranks on one machine. distributed/shared_memory.py has the protocol's other half."""

from __future__ import annotations

import ctypes

from . import compiled

__all__ = ["library"]


def library() -> ctypes.CDLL | None:
    """The library for any CPU, with `llama_ranks_bytes`, `_enter`, `_sum`, `_gather`; None if it was not compiled."""
    return compiled.base()
