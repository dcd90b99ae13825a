"""Damage that several targets share: to bytes, and to JSON. Decided by the random state alone."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

__all__ = ["Raw", "damaged", "damaged_json", "dump", "odd"]


class Raw(str):
    """JSON text that `dump` writes as it is."""


# What a key may hold that no program writes.
_ODD: list[Any] = [
    *(Raw(text) for text in ("1e999", "-1e999", "NaN", "Infinity", "-0", "1.0", "01", "1e2", "null", "'x'")),
    *(
        Raw(text)
        for text in ("1" + "0" * 310, "-1" + "0" * 310, "1" * 4000, "9" * 5000, '"\\ud800"', '"\\u0000"')
    ),
    *(Raw("[" * depth + "]" * depth) for depth in (50, 100_000)),
    *(Raw(text) for text in ("[" * 5000, '{"a":' * 5000, "1,1", "[1,2]")),
    *(-1, 0, 1, 2, 3, 7, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**6, 1.5, 1e308, 5e-324, True, False, None),
    *(
        "",
        "x" * 10_000,
        "64",
        "\x1b[31m\n\r\x00",
        "é☺\u2028",
        "..",
        "/etc/passwd",
        "silu",
        "llama",
        "default",
    ),
    *([], {}, [1] * 1000, [[]], [None], {"a": {"b": []}}, {"x": 1}, ["LlamaForCausalLM"]),
]


def odd(rng: random.Random) -> Any:
    """One of them, to be changed at will."""
    return copy.deepcopy(rng.choice(_ODD))


def dump(value: Any) -> str:
    """As json.dumps, with `Raw` text."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{dump(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in it."""
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    else:
        return []
    return [place for key, each in inner for place in ((value, key), *_places(each))]


def damaged_json(rng: random.Random, content: dict[str, Any], keys: tuple[str, ...] = ()) -> bytes:
    """The text of an object in which one to three places have changed.

    Args:
        keys: names that may be added at the top.
    """
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(content)
        container, key = rng.choice(places) if places else (content, "x")
        kind = rng.random()
        if kind < 0.45:
            container[key] = odd(rng)
        elif kind < 0.6 and isinstance(container[key] if places else None, int):
            container[key] = container[key] * rng.choice((0, 2, -1)) + rng.choice((-1, 0, 1, 8))
        elif kind < 0.7 and places:
            del container[key]
        elif kind < 0.78 and places:
            container[key] = Raw(f"{dump(container[key])},{json.dumps(str(key))}:{dump(odd(rng))}")
        elif kind < 0.85:
            content[rng.choice(("", "x", "\x1b[1m", "__metadata__", "é" * 200))] = odd(rng)
        elif keys:
            content[rng.choice(keys)] = odd(rng)
    text = dump(content).encode("utf-8", "surrogatepass")
    return damaged(rng, text) if rng.random() < 0.2 else text


def damaged(rng: random.Random, content: bytes, first: int | None = None) -> bytes:
    """The bytes with one to four stretches changed, all within the first `first` if that is given."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, min(len(data), first or len(data))))
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if at < len(data) else b"\0"
        elif kind == 1:
            data[at : at + 1] = bytes(
                [rng.choice((0, 1, 0x3C, 0x7F, 0x80, 0xFF, 0x22, 0x2C, 0x30, rng.randrange(256)))]
            )
        elif kind == 2:
            number = rng.choice(
                (0, 1, 2, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(data))
            )
            size = rng.choice((2, 4, 8))
            data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 8, 64))]
        elif kind == 4:
            data[at:at] = data[at : at + rng.choice((1, 8, 64, 512))]
        elif kind == 5:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
        elif kind == 6:
            start = rng.randrange(max(1, len(data)))
            data[at : at + 16] = data[start : start + 16]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)
