"""The engine: requests in, one step at a time, tokens and text out.

Only `Engine` and `run_largest` need torch, so they are imported on first use: requests, scheduling and drafts work
without.
"""

from typing import TYPE_CHECKING, Any

from .request import FinishReason, Request
from .request_state import Feed
from .sequence import Counts, Delta, SequenceState, Times, TokenScore
from .snapshot import Snapshot

if TYPE_CHECKING:
    from .engine import Engine
    from .largest_step import run_largest

__all__ = [
    "Counts",
    "Delta",
    "Engine",
    "Feed",
    "FinishReason",
    "Request",
    "SequenceState",
    "Snapshot",
    "Times",
    "TokenScore",
    "run_largest",
]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from .engine import Engine

        return Engine
    if name == "run_largest":
        from .largest_step import run_largest

        return run_largest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
