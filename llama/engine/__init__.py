"""The engine: requests, scheduler, runner and the loop around them; a front for asynchronous callers."""

from .engine import Engine
from .front import AsyncEngine, TextDelta
from .request import Delta, FinishReason, Request, Sequence, TokenScore
from .service import follow
from .serving import serve

__all__ = [
    "AsyncEngine",
    "Delta",
    "Engine",
    "FinishReason",
    "Request",
    "Sequence",
    "TextDelta",
    "TokenScore",
    "follow",
    "serve",
]
