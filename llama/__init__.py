"""A model-parallel runtime for the Code Llama family.

Start at `Llama.build`; docs/architecture.md shows the way from a call to a matrix product.
"""

from .generation import Dialog, Llama, StreamDelta
from .model import ModelArgs, Transformer
from .tokenizer import Tokenizer

__all__ = ["Dialog", "Llama", "ModelArgs", "StreamDelta", "Tokenizer", "Transformer"]
__version__ = "0.1.0"
