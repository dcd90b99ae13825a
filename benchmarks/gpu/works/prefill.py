"""Prompts, from the request to the first token."""

from __future__ import annotations

from ..models import make_model, shape
from ..workplace import Workplace
from .engine_runs import plain_attention, prefill

__all__ = ["run"]


def run(place: Workplace) -> None:
    """7B, prompts of 2,048 and 16,384 tokens; the longer one with torch's plain attention, too."""
    model = make_model(shape("7B", place.tiny), place.device)
    for length, rounds in ((2048, 9), (16384, 5)):
        prefill(place, model, "7B, prompt", length, rounds)
    with plain_attention():
        prefill(place, model, "7B, plain attention, prompt", 16384, 3)
