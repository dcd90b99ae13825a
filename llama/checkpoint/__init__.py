"""Checkpoints: formats, loading, and the checks before it."""

from .format import read_params, shard_files
from .load import MetaCheckpoint, load_weights

__all__ = ["MetaCheckpoint", "load_weights", "read_params", "shard_files"]
