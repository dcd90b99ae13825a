"""The engine: requests, scheduler, runner and the loop around them; a front for asynchronous callers."""

from .engine import Engine
from .front import AsyncEngine, TextDelta
from .live import Feed
from .request import Counts, Delta, FinishReason, Request, Sequence, Times, TokenScore
from .service import follow
from .serving import serve

__all__ = [
    "AsyncEngine",
    "Counts",
    "Delta",
    "Engine",
    "Feed",
    "FinishReason",
    "Request",
    "Sequence",
    "TextDelta",
    "Times",
    "TokenScore",
    "follow",
    "serve",
]
