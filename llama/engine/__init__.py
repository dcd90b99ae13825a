"""The engine: requests in, one step at a time, tokens and text out.

Only `Engine` needs torch, so it is imported on first use: requests, scheduling and drafts work without.
"""

from typing import TYPE_CHECKING, Any

from .request import FinishReason, Request
from .request_state import Feed
from .sequence import Counts, Delta, SequenceState, Times, TokenScore
from .snapshot import Snapshot

if TYPE_CHECKING:
    from .engine import Engine

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
]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from .engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
