"""Ranks: how they come together, what they exchange, and the layers that are split over them."""

from .parallel import Parallel

__all__ = ["Parallel"]
