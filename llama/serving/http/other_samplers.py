"""Samplers of llama.cpp that this server does not have. Clients send them all, most of them switched off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["OFF", "PARAMETERS"]

OFF: Mapping[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "typ_p": (1,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "dynatemp_range": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "top_n_sigma": (-1, 0),
    "adaptive_target": (-1,),
    "min_keep": (0,),
}
"""Their main fields, with the values that switch them off; any other is refused."""

PARAMETERS = frozenset(
    {
        *("mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold", "adaptive_decay"),
        *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
        *("penalty_last_n", "penalize_nl"),
    }
)
"""Fields that mean nothing while those are off."""
