"""Many callers and many ranks: the engine behind asyncio, and the ranks that follow the first."""

from .async_engine import AsyncEngine, TextDelta
from .lifecycle import serve
from .ranks import follow

__all__ = ["AsyncEngine", "TextDelta", "follow", "serve"]
