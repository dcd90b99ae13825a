"""The engine: requests in, one step at a time, tokens and text out."""

from .engine import Engine
from .request import FinishReason, Request
from .request_state import Feed
from .sequence import Counts, Delta, SequenceState, Times, TokenScore

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
