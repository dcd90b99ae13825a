"""Calls of a Llama that together take every option, for laws that compare two devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from llama import Llama

__all__ = ["CALLS", "same"]

PROMPTS = ["def return self value", "é 漢字 x", "def return self list for i"]
LONG = "def return self value list for i in range(10): import " * 2
_FEW = {"max_gen_len": 8}


def _stream(llama: Llama) -> list[Any]:
    """Two streams that are open at the same time, one of which is left early."""
    with contextlib.closing(llama.stream([LONG], 0.8, 0.9, seed=3, **_FEW)) as left:
        first = next(left)
        rows: list[list[Any]] = [[] for _ in PROMPTS]
        for delta in llama.stream(PROMPTS, temperature=0, **_FEW):
            rows[delta.index] += [delta.text, delta.finish_reason or ""]
    return [first.text, list(map("".join, rows)), llama.engine.unfinished]


def _complete(**options: Any) -> Callable[[Llama], Any]:
    return lambda llama: llama.text_completion(PROMPTS, **{**_FEW, **options})


CALLS: dict[str, Callable[[Llama], Any]] = {
    "greedy": _complete(temperature=0, logprobs=True),
    "sampled": _complete(temperature=0.9, top_p=1.0, seed=1),
    "top-p": _complete(temperature=0.9, top_p=0.8, seed=1),
    "top-k": _complete(temperature=0.9, top_p=1.0, top_k=5, seed=1),
    "min-p": _complete(temperature=0.9, top_p=1.0, min_p=0.1, seed=1),
    "all limits": _complete(temperature=1.2, top_p=0.9, top_k=20, min_p=0.01, seed=2, logprobs=2),
    "penalties": _complete(
        temperature=0.9, seed=1, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5
    ),
    "bias": _complete(temperature=0, logit_bias={300: 4.0, 17: -100.0}),
    "echo": _complete(temperature=0, echo=True, logprobs=3),
    "scores": _complete(echo=True, logprobs=True, max_gen_len=0),
    "samples": _complete(temperature=1.0, n=3, seed=4),
    "prediction": lambda llama: llama.text_completion(
        [LONG], 0, prediction=LONG, max_gen_len=16, logprobs=True
    ),
    "stop": _complete(temperature=0, stop=["e"]),
    "least tokens": _complete(temperature=0, min_tokens=4),
    "long prompt": lambda llama: llama.text_completion([LONG, LONG + "x", "class"], temperature=0, **_FEW),
    "infilling": lambda llama: llama.text_infilling(["def <FILL> return"], temperature=0, **_FEW),
    "chat": lambda llama: llama.chat_completion([[{"role": "user", "content": "list"}]], 0.7, seed=5, **_FEW),
    "stream": _stream,
}


def same(found: Any, expected: Any) -> bool:
    """Equal, but for rounding of log-probabilities. A list that came through JSON equals a tuple."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        alike = isinstance(found, list | tuple) and len(found) == len(expected)
        return alike and all(map(same, found, expected))
    if isinstance(expected, float):
        return found == pytest.approx(expected, abs=2e-4)
    return bool(found == expected)
