"""The engine: requests, scheduler, runner and the loop around them."""

from .engine import Engine
from .request import Delta, FinishReason, Request, Sequence, TokenScore

__all__ = ["Delta", "Engine", "FinishReason", "Request", "Sequence", "TokenScore"]
