"""The metadata of a GGUF file -> ModelArgs. What asks for another computation is refused, with the key's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...printable import shown
from ...sizing.args import ModelArgs
from .hf_config import ffn_rule

__all__ = ["FILE_TYPES", "args_of"]

_ARCHITECTURE = "llama"
# The default of llama.cpp.
_ROPE_THETA = 10000.0
_MOST = 1 << 24
# Keys below "llama." that are read, or that change no number.
_READ = {
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "attention.key_length",
    "attention.value_length",
    "context_length",
    "vocab_size",
}
# Keys whose values here mean what happens without them.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "tensor_data_layout": ("reference", "Meta AI original pth"),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0,),
    "rope.scale_linear": (1.0,),
    "rope.scaling.finetuned": (True,),
    "attention.causal": (True,),
}
# general.file_type -> what people call it, for the types that are read here.
FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"},
    **{21: "Q2_K_S", 32: "BF16"},
}


def args_of(metadata: Mapping[str, Any], *, max_seq_len: int, max_batch_size: int) -> ModelArgs:
    """ModelArgs; vocab_size stays -1 if the metadata leave it to the embedding.

    Raises:
        ConfigError: another architecture, rope scaling, experts, head dimensions of their own; missing or invalid
            values.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture != _ARCHITECTURE:
        raise ConfigError(
            f"general.architecture is {shown(architecture)}; this runtime computes {_ARCHITECTURE!r}, the Code Llama"
            " family"
        )
    kind = metadata.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        raise ConfigError(f"general.type is {shown(kind)}; this runtime loads models")
    prefix = _ARCHITECTURE + "."
    told = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    _refuse(told)
    dim, heads = _whole(told, "embedding_length"), _whole(told, "attention.head_count")
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if key in told and _whole(told, key) * heads != dim:
            raise ConfigError(
                f"llama.{key} is {told[key]}, but llama.embedding_length {dim} / {heads} heads = {dim / heads:g}; this"
                " runtime splits it evenly, and rotates whole heads"
            )
    multiple_of, multiplier = ffn_rule(dim, _whole(told, "feed_forward_length"), "llama.feed_forward_length")
    return ModelArgs(
        dim=dim,
        n_layers=_whole(told, "block_count"),
        n_heads=heads,
        n_kv_heads=_whole(told, "attention.head_count_kv") if "attention.head_count_kv" in told else None,
        vocab_size=_whole(told, "vocab_size") if "vocab_size" in told else -1,
        multiple_of=multiple_of,
        ffn_dim_multiplier=multiplier,
        norm_eps=_number(told, "attention.layer_norm_rms_epsilon"),
        rope_theta=_number(told, "rope.freq_base", _ROPE_THETA),
        max_seq_len=max_seq_len,
        max_batch_size=max_batch_size,
    )


def _refuse(told: Mapping[str, Any]) -> None:
    for key, value in told.items():
        if key in _READ:
            continue
        if key in _HARMLESS:
            if not isinstance(value, np.ndarray | list) and value in _HARMLESS[key]:
                continue
        elif isinstance(value, bool | int | float | str) and not value:
            continue  # no experts, no clamp, no scale: absent or 0, it is the same
        raise ConfigError(
            f"llama.{key} is {shown(value)}; this runtime does not compute it, and ignoring it would give wrong results"
        )


def _whole(told: Mapping[str, Any], key: str) -> int:
    value = _present(told, key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise ConfigError(f"llama.{key} is {shown(value)}; it must be an integer from 1 to {_MOST:,}")
    return value


def _number(told: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = _present(told, key) if default is None or key in told else default
    if isinstance(value, bool) or not isinstance(value, float):
        raise ConfigError(f"llama.{key} is {shown(value)}; it must be a floating-point number")
    # Stored in float32: the shortest number that means the same, 1e-5 instead of 9.999999747378752e-06.
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _present(told: Mapping[str, Any], key: str) -> Any:
    if key not in told:
        raise ConfigError(f"it lacks llama.{key}; fetch the file again, or convert it with a newer llama.cpp")
    return told[key]
