"""The engine: requests, scheduler, runner and the loop around them."""

from .engine import Engine
from .request import Counts, Delta, FinishReason, Request, Sequence, Times, TokenScore

__all__ = ["Counts", "Delta", "Engine", "FinishReason", "Request", "Sequence", "Times", "TokenScore"]
