"""Decoding at batches that are bound by memory, and by products."""

from __future__ import annotations

from ..models import make_model, shape
from ..workplace import Workplace
from .engine_runs import decode

__all__ = ["run"]


def run(place: Workplace) -> None:
    """7B at batch 1, 8, 64, 256."""
    model = make_model(shape("7B", place.tiny), place.device)
    for batch in (1, 2, 4, 6) if place.tiny else (1, 8, 64, 256):
        decode(place, model, f"7B, batch {batch}", batch)
