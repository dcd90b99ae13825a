"""34B: whether a model that nearly fills the device works, and how fast."""

from __future__ import annotations

from ..models import make_model, shape, weight_bytes
from ..workplace import Workplace
from .engine_runs import decode, prefill

__all__ = ["run"]

# Beside the weights: one of them twice while it is made, a cache, what a step computes.
_BESIDE = 3 << 30


def run(place: Workplace) -> None:
    """Decoding at batch 1 and 8, and a prompt of 2,048 tokens."""
    args = shape("34B", place.tiny)
    needed, free = weight_bytes(args) + _BESIDE, place.free()
    if needed > free:
        place.lacks(f"34B: it needs {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free")
        return
    model = make_model(args, place.device)
    decode(place, model, "34B, batch 1", 1)
    decode(place, model, "34B, batch 8", 8)
    prefill(place, model, "34B, prompt", 2048, 5)
