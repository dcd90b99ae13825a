"""Bodies that no route takes, and how to see that the engine never heard of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from http_service import Served

# What is wrong, and the bytes. Each is wrong for every route that reads a body.
BROKEN = {
    "no JSON": b"prompt=def",
    "nothing": b"",
    "half of it": b'{"prompt": "a"',
    "no object": b"[1, 2]",
    "no UTF-8": b'{"prompt": "\xff"}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "deep nesting": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "half a surrogate pair": b'{"prompt": "\\ud800"}',
}

broken_bodies = pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)


@contextlib.contextmanager
def untouched(served: Served) -> Iterator[None]:
    """No request is handed to the engine within the block."""
    engine = served.service.engine
    # The only number that is exact at once; the snapshot follows with the engine's next step.
    asked = engine._asked
    yield
    assert engine._asked == asked
    assert engine.open_streams == 0
