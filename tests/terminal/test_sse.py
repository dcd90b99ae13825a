"""Laws of server-sent events: however the bytes are cut, and whatever text they carry."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama.terminal import sse
from llama.terminal.backend import ServerError
from llama.terminal.sse import events

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def found(*chunks: bytes) -> list[str]:
    async def feed():
        for chunk in chunks:
            yield chunk

    async def main() -> list[str]:
        return [data async for data in events(feed())]

    return asyncio.run(main())


@given(st.lists(TEXTS, max_size=4), st.lists(st.integers(0, 500)), st.sampled_from(["\n", "\r\n"]))
def test_however_a_response_is_cut_its_events_are_the_same(
    texts: list[str], cuts: list[int], end: str
) -> None:
    """U+2028 and U+0085 are text, and no line breaks as for Python."""
    data = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    content = "".join(f"data: {each}{end}{end}" for each in data).encode()
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    chunks = [content[a:b] for a, b in pairwise(places)]
    assert found(*chunks) == data


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (b": ping\n\ndata: x\n\n", ["x"]),
        (b"event: message\nid: 1\ndata: x\n\n", ["x"]),
        (b"data:x\n\ndata:  y\n\n", ["x", " y"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data: x\n", ["x"]),
        (b"data: x", ["x"]),
        (b"\n\n\n", []),
    ],
)
def test_events(content: bytes, data: list[str]) -> None:
    assert found(content) == data


def test_a_server_that_never_ends_a_line_or_an_event_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_MOST_BYTES", 1 << 20)
    with pytest.raises(ServerError, match="a line of more than 1 MiB"):
        found(*[b"x" * 100_000] * 20)
    with pytest.raises(ServerError, match="an event of more than 1 MiB"):
        found(*[b"data: " + b"x" * 100_000 + b"\n"] * 20)


def test_bytes_that_are_no_text_are_an_error() -> None:
    with pytest.raises(ServerError, match="UTF-8"):
        found(b"data: \xff\n\n")
