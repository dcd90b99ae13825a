"""Many callers and many ranks: the engine behind asyncio, and the ranks that follow the first.

| file | holds |
|---|---|
| `async_engine`, `streams` | `AsyncEngine`; each caller's unread deltas |
| `kept_errors` | errors that are kept, and raised later |
| `inbox`, `protocol` | how events reach the thread that steps the engine; the events and their JSON |
| `ranks` | the loop of the first rank, `lead`, and of the others, `follow` |
| `channel`, `handshake` | the connection from the first rank to each other rank |
| `lifecycle`, `follower` | `serve`: a service from start to end, on rank 0 and on the others |
| `signals`, `timeouts` | signal handlers on an event loop; every time limit |

`serving` imports `engine`; neither `engine` nor `api` imports `serving`.

The HTTP server is in `llama/serving/http/`. It runs inside the `main` that `serve` awaits on rank 0, and needs
only `AsyncEngine`:

- `stream(request)`, `complete(request)`: a bad request raises at the call, before anything is sent.
- closing a stream, or cancelling its task: a client that hung up. Its request leaves before the next step.
- `batches(request)`: as `stream`, with everything unread at once, for one write to a socket.
- `accepting`, `failure`: for health checks. `waiting`: for queue limits. `snapshot`, `open_streams`: for gauges.
- `close(drain=True)`: let running requests finish.

The names below are imported on first use: events, streams and channels work without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_engine import AsyncEngine
    from .lifecycle import serve
    from .ranks import follow
    from .streams import TextDelta

__all__ = ["AsyncEngine", "TextDelta", "follow", "serve"]

_HOMES = {"AsyncEngine": "async_engine", "TextDelta": "streams", "follow": "ranks", "serve": "lifecycle"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
