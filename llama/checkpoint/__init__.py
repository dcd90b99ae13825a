"""Checkpoints: formats, loading, and the checks before it."""

from .format import read_params, shard_files
from .hugging_face import HuggingFaceCheckpoint
from .load import load_weights, open_checkpoint, tokenizer_of
from .meta import MetaCheckpoint
from .source import Checkpoint

__all__ = [
    "Checkpoint",
    "HuggingFaceCheckpoint",
    "MetaCheckpoint",
    "load_weights",
    "open_checkpoint",
    "read_params",
    "shard_files",
    "tokenizer_of",
]
