"""The engine: requests in, one step at a time, tokens and text out."""

from .engine import Engine
from .live import Feed
from .request import Counts, Delta, FinishReason, Request, SequenceState, Times, TokenScore

__all__ = [
    "Counts",
    "Delta",
    "Engine",
    "Feed",
    "FinishReason",
    "Request",
    "SequenceState",
    "Times",
    "TokenScore",
]
