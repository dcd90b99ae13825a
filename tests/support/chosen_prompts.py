"""Prompts chosen by the greedy answer that a model gives, for laws that need an answer of a kind: one that ends, say.

The bundled checkpoint may be replaced by any other, so no test may know its texts. A search that finds nothing fails.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from llama import Llama

TEXTS = (
    "def fib(",
    "def fib(n):\n    if",
    "import os\n\n\ndef main(",
    "class Stack:\n    def __init__(self, items):\n",
    "def add(a, b):\n    return",
    "def read(path):\n    with open(path) as file:\n",
    "if __name__ == '__main__':\n    main(",
    "for each in range(10):\n    print(",
    "def is_even(n):\n    return n % 2 ==",
    "class Point:\n    pass\n",
    'def greet(name):\n    """Say hello."""\n',
    "try:\n    import json\nexcept",
    "def test_sum():\n    assert",
    "x = [1, 2, 3]\nprint(x",
    "    def close(self):\n        self.",
    "# Reverse a list.\ndef reverse(items):\n    return items[",
)
HOLES = (
    ("class Reader:\n    def read(self, size):\n        self.", "\n    def close(self):\n        pass\n"),
    ("def f(x):\n    return ", "\n\nprint(f(1))\n"),
    ("class Stack:\n    def push(self, item):\n", "\n\nstack = Stack()\n"),
    ("import os\n\n\ndef main():\n", '\n\nif __name__ == "__main__":\n    main()\n'),
    ("def both(a, b):\n    if a:\n", "\n    return b\n"),
    ("", "\n\nprint(add(1, 2))\n"),
    ("def first():\n    pass\n\n\n", "\n\ndef last():\n    pass\n"),
    ("for each in items:\n    ", "\n\nprint(total)\n"),
)

# How many are asked at once, as most searches end with the first few.
BATCH = 4

Has = Callable[[Any], bool]


def completed(
    llama: Llama, has: Has, most: int = 24, among: Sequence[str] = TEXTS, **options: Any
) -> tuple[str, Any]:
    """The first text whose continuation (of `text_completion`, with tokens) has the property, and this answer."""
    given: dict[str, Any] = {"logprobs": True, **options}
    return _first(lambda part: llama.text_completion(part, 0, 1, most, **given), among, has)


def infilled(
    llama: Llama, has: Has, most: int = 24, among: Sequence[tuple[str, str]] = HOLES, **options: Any
) -> tuple[tuple[str, str], Any]:
    """The first hole (prefix and suffix) whose middle has the property, and the answer of `text_infilling`."""
    given: dict[str, Any] = {"logprobs": True, **options}
    return _first(
        lambda part: llama.text_infilling(*zip(*part, strict=True), 0, 1, most, **given), among, has
    )


def _first(ask: Callable[[Any], Any], among: Sequence[Any], has: Has) -> tuple[Any, Any]:
    tried: list[tuple[Any, Any]] = []
    for start in range(0, len(among), BATCH):
        part = among[start : start + BATCH]
        for prompt, answer in zip(part, ask(part), strict=True):
            tried.append((prompt, answer))
            if has(answer):
                return prompt, answer
    shown = "\n".join(f"{prompt!r} -> {answer['generation']!r}" for prompt, answer in tried)
    raise AssertionError(
        f"no prompt has the answer that this law needs; add prompts to TEXTS or HOLES:\n{shown}"
    )


# ---- properties ----------------------------------------------------------------------------------------------


def ends(answer: Any) -> bool:
    """By itself, behind some text."""
    return answer["finish_reason"] == "stop" and bool(answer["generation"])


def goes_on(answer: Any) -> bool:
    """To the limit."""
    return answer["finish_reason"] == "length"


def has_word(answer: Any) -> bool:
    """From whose inside `inside` takes a stop string."""
    return bool(_inside(answer["generation"]))


def inside(text: str) -> tuple[str, int]:
    """Letters within a word of a text, as a stop string, and where they stand first: behind the text's beginning."""
    found = _inside(text)
    assert found, f"no word of three letters in {text!r}"
    return found[0]


def _inside(text: str) -> list[tuple[str, int]]:
    letters = [match[1] for match in re.finditer(r"[a-zA-Z]([a-zA-Z]{2,4})", text)]
    return [(each, text.index(each)) for each in letters if text.index(each)]


def crosses(answer: Any) -> bool:
    """Whether `across` finds a stop string."""
    pieces = [each.replace("\u2581", " ").replace("<0x0A>", "\n") for each in answer["tokens"]]
    return _across(pieces) is not None


def across(texts: Sequence[str]) -> tuple[int, str]:
    """A stop string that begins within a token and ends in the next: the token's index, and the string.

    texts: of an answer's tokens. The string stands in the answer first where these two tokens are.
    """
    found = _across(texts)
    assert found is not None, f"no token of two characters that is new to the text in {texts!r}"
    return found


def _across(texts: Sequence[str]) -> tuple[int, str] | None:
    text = "".join(texts)
    for i, (first, second) in enumerate(itertools.pairwise(texts)):
        stop = first[1:] + second[:1]
        if first[1:].strip() and second and text.index(stop) == len("".join(texts[:i])) + 1:
            return i, stop
    return None
