"""Decoding at batches that are bound by memory, and by products."""

from __future__ import annotations

from ..models import make_model, shape
from ..workplace import Workplace
from .engine_runs import decode, plain_attention

__all__ = ["run"]


def run(place: Workplace) -> None:
    """7B at batch 1, 8, 64, 256; and at 64 with torch's plain attention."""
    model = make_model(shape("7B", place.tiny), place.device)
    for batch in (1, 2, 4, 6) if place.tiny else (1, 8, 64, 256):
        decode(place, model, f"7B, batch {batch}", batch)
    batch = 4 if place.tiny else 64
    with plain_attention():
        decode(place, model, f"7B, batch {batch}, plain attention", batch)
