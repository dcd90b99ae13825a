"""A model-parallel runtime for the Code Llama family.

Start at `Llama.build`; docs/architecture.md shows the way from a call to a matrix product.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generation import Dialog, Llama, StreamDelta
    from .model import Transformer
    from .sizing.args import ModelArgs
    from .tokenizer import Tokenizer

__all__ = ["Dialog", "Llama", "ModelArgs", "StreamDelta", "Tokenizer", "Transformer"]
__version__ = "0.1.0"

_HOMES = {"ModelArgs": "model", "Transformer": "model", "Tokenizer": "tokenizer"}


def __getattr__(name: str) -> Any:
    # On first use: `codellama --help` needs none of them, and torch alone takes seconds to import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'generation')}", __name__), name)
