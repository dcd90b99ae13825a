"""Server-sent events: the `data` of each, from the bytes of a response.

Written here because httpx's `aiter_lines` also ends lines at U+2028, U+0085 and a few more, which a model's
text may hold. Source: HTML Living Standard, 9.2 (here without `id` and `retry`, which no such server uses).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable

from .backend import ServerError

__all__ = ["events"]

_MOST_BYTES = 16 << 20  # of one event; a server that sends more is broken


async def events(chunks: AsyncIterable[bytes]) -> AsyncGenerator[str, None]:
    """The data of each event. Comments, which servers send to keep a connection open, are dropped.

    Raises:
        ServerError: an event that is not UTF-8, or larger than 16 MiB.
    """
    data: list[bytes] = []
    size = 0
    async for line in _lines(chunks):
        size += len(line)
        if size > _MOST_BYTES:
            raise ServerError(f"the server sent an event of more than {_MOST_BYTES >> 20} MiB")
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line:
            if data:
                yield _text(b"\n".join(data))
            data, size = [], 0
    if data:  # the connection ended behind an event's last line
        yield _text(b"\n".join(data))


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
        if len(rest) > _MOST_BYTES:
            raise ServerError(f"the server sent a line of more than {_MOST_BYTES >> 20} MiB")
    if rest:
        yield rest.removesuffix(b"\r")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ServerError(f"the server sent an event that is not UTF-8: {error}") from None
